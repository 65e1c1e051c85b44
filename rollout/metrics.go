package rollout

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	failed  prometheus.Counter
	applied prometheus.Histogram
}

// register makes the metrics.
func (r *Rollout) register(registry prometheus.Registerer) error {
	r.metrics = metrics{
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_definitions_failed_total", Help: "Definitions that could not be served as they are; what was served before stayed.",
		}),
		applied: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "gatepost_definitions_apply_duration_seconds", Help: "Time from a change of the definitions being saved until every Envoy serves it.",
			Buckets: []float64{0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30},
		}),
	}
	current := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "gatepost_definitions_current", Help: "1 if the newest definitions are served, all of them; else 0.",
	}, func() float64 {
		if status := r.Status(); status.Loaded() == nil && status.Degraded() == "" {
			return 1
		}
		return 0
	})
	withheld := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "gatepost_services_withheld", Help: "Services that answer 503 because Envoy rejects their definition.",
	}, func() float64 { return float64(len(r.Status().Withheld)) })
	if registry == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{r.metrics.failed, r.metrics.applied, current, withheld} {
		if err := registry.Register(c); err != nil {
			return err
		}
	}
	return nil
}
