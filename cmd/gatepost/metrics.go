package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// processMetrics counts what happens to the parts as a whole.
type processMetrics struct {
	envoyStarts, envoyDeaths prometheus.Counter
}

func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "gatepost_build_info", Help: "The version of this Gatepost, as a label.",
	}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

func newProcessMetrics(registry prometheus.Registerer) *processMetrics {
	m := &processMetrics{
		envoyStarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_envoy_starts_total", Help: "Starts of the Envoy that `gatepost run` keeps running.",
		}),
		envoyDeaths: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_envoy_deaths_total", Help: "Ends of that Envoy which nobody asked for.",
		}),
	}
	registry.MustRegister(m.envoyStarts, m.envoyDeaths)
	return m
}

func (m *processMetrics) envoyStarted(int) { m.envoyStarts.Inc() }
func (m *processMetrics) envoyDied(error)  { m.envoyDeaths.Inc() }
