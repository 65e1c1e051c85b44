package authz

import (
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// maxServices is how many services are counted by name. The names come from the definitions; the bound is for years
// of changing them, and for whoever else reaches the port.
const maxServices = 1 << 16

// What stands for the name of a service where there is none, or one too many.
const (
	serviceNone  = "(none)"
	serviceOther = "(other)"
)

// counts counts decisions. Each service's counters are resolved at its first request, so that counting one more
// is two look-ups and an addition.
type counts struct {
	decisions *prometheus.CounterVec
	mu        sync.RWMutex
	services  map[string]*[reasons]prometheus.Counter // :: service → reason → counter
}

// failures counts the checks that ended without an answer; Envoy's own 503 is what the client gets.
type failures struct {
	vec                             *prometheus.CounterVec
	panicked, unreadable, badAnswer prometheus.Counter
}

func newCounts() (*counts, failures) {
	c := &counts{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gatepost_decisions_total",
			Help: "Requests decided about, by service, decision (allow, deny, error: could not tell) and reason.",
		}, []string{"service", "decision", "reason"}),
		services: map[string]*[reasons]prometheus.Counter{},
	}
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatepost_check_failures_total",
		Help: "Checks that ended without a decision, by cause (panic, unreadable request, bad answer).",
	}, []string{"cause"})
	return c, failures{
		vec:        vec,
		panicked:   vec.WithLabelValues("panic"),
		unreadable: vec.WithLabelValues("unreadable"),
		badAnswer:  vec.WithLabelValues("bad_answer"),
	}
}

func newRenewals() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gatepost_lease_renewals_total",
		Help: "Leases that were renewed with the answer to another request.",
	})
}

func (s *Server) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{s.counts.decisions, s.failures.vec, s.renewals, s.denials.leftOutTotal} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("registering authz metrics: %w", err)
		}
	}
	return nil
}

func (c *counts) add(service string, r reason) {
	c.mu.RLock()
	counters := c.services[service]
	c.mu.RUnlock()
	if counters == nil {
		counters = c.resolve(service)
	}
	counters[r].Inc()
}

// addHits counts what the lease filter tells of the requests that it let pass.
func (c *counts) addHits(hits string) {
	for service, n := range eachHits(hits) {
		c.mu.RLock()
		known := c.services[service] != nil || len(c.services) < maxServices
		c.mu.RUnlock()
		if !known {
			service = serviceOther
		}
		c.decisions.WithLabelValues(service, string(allowed), reasonLease).Add(float64(n))
	}
}

func (c *counts) resolve(service string) *[reasons]prometheus.Counter {
	c.mu.Lock()
	defer c.mu.Unlock()
	label := service
	if service == "" {
		label = serviceNone
	} else if len(c.services) >= maxServices {
		service, label = serviceOther, serviceOther
	}
	if counters := c.services[service]; counters != nil {
		return counters
	}
	counters := new([reasons]prometheus.Counter)
	for r := range reasons {
		counters[r] = c.decisions.WithLabelValues(label, string(r.decision()), r.String())
	}
	c.services[service] = counters
	return counters
}
