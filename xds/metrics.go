package xds

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what goes over the streams.
type metrics struct {
	pushes, acks, nacks *prometheus.CounterVec // by type
	connected           prometheus.Gauge
	info                *prometheus.GaugeVec
}

// newMetrics makes the metrics and registers them with reg, unless that is nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	byType := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type"})
		for _, t := range typeNames {
			c.WithLabelValues(t) // 0 is a value too
		}
		c.WithLabelValues(typeSecret)
		return c
	}
	m := &metrics{
		pushes: byType("gatepost_xds_pushes_total", "Updates sent to an Envoy, by type of resource."),
		acks:   byType("gatepost_xds_acks_total", "Updates that an Envoy has acknowledged, by type of resource."),
		nacks:  byType("gatepost_xds_nacks_total", "Updates that an Envoy has rejected, by type of resource."),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "gatepost_xds_connected_envoys", Help: "Envoys that are connected for their configuration.",
		}),
		info: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gatepost_config_version", Help: "1 for the version of the configuration that is being served.",
		}, []string{"version"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.pushes, m.acks, m.nacks, m.connected, m.info} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering xds metrics: %w", err)
		}
	}
	return m, nil
}

// version notes which version is served now.
func (m *metrics) version(v string) {
	m.info.Reset()
	m.info.WithLabelValues(v).Set(1)
}
