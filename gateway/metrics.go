package gateway

import (
	"context"
	"io"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"gatepost/envoy"
)

// processMetrics counts what happens to the parts as a whole.
type processMetrics struct {
	envoyStarts, envoyDeaths prometheus.Counter
	panics                   *prometheus.CounterVec // by handler: token or admin
}

func newRegistry(version string) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "gatepost_build_info", Help: "The version of this Gatepost, as a label.",
	}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	registry.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

func newProcessMetrics(registry prometheus.Registerer, droppedLogLines func() uint64) *processMetrics {
	m := &processMetrics{
		envoyStarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_envoy_starts_total", Help: "Starts of the Envoy that `gatepost run` keeps running.",
		}),
		envoyDeaths: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_envoy_deaths_total", Help: "Ends of that Envoy which nobody asked for.",
		}),
		panics: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatepost_panics_total", Help: "Requests answered with 500 because of a panic, by handler (token, admin).",
		}, []string{"handler"}),
	}
	if droppedLogLines == nil {
		droppedLogLines = func() uint64 { return 0 }
	}
	logDropped := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "gatepost_log_lines_dropped_total", Help: "Log lines that were not written, because standard error was not read fast enough or failed.",
	}, func() float64 { return float64(droppedLogLines()) })
	registry.MustRegister(m.envoyStarts, m.envoyDeaths, m.panics, logDropped)
	return m
}

func (m *processMetrics) envoyStarted(int) { m.envoyStarts.Inc() }
func (m *processMetrics) envoyDied(error)  { m.envoyDeaths.Inc() }

// envoyMetrics reads the essential metrics of Envoy. It is nil if the address of Envoy's admin interface is not known.
func (g *Gateway) envoyMetrics() func(context.Context) (io.ReadCloser, error) {
	address := g.envoyAdmin()
	if address == "" {
		return nil
	}
	return func(ctx context.Context) (io.ReadCloser, error) { return envoy.EssentialReader(ctx, address) }
}
