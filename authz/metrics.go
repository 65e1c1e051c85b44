package authz

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"gatepost/convention"

	"github.com/prometheus/client_golang/prometheus"
)

// The names of services come from Envoy, which has them from the definitions. The limits are for years of changed
// definitions, and for a stranger on the port: at most maxServices names are counted, none longer than maxName.
const (
	maxServices = 1 << 15
	maxName     = 64 // as in the definitions
)

// The labels of requests without a service, and of services above the limit.
const (
	serviceNone  = "(none)"
	serviceOther = "(other)"
)

// counts counts decisions. The counters of a service are made at its first request, so that counting one more takes two
// look-ups and an addition.
type counts struct {
	decisions *prometheus.CounterVec
	limit     int // of services
	mu        sync.RWMutex
	services  map[string]*serviceCounts
	adding    sync.Mutex                              // guards counted of all services
	hits      func() (of func(service string) uint64) // nil: Envoy decides nothing by itself
}

// serviceCounts are the counters of a service.
type serviceCounts struct {
	label   string
	decided [reasons]atomic.Pointer[prometheus.Counter] // made at first use: each takes some hundred bytes
	hits    prometheus.Counter                          // requests that the module in Envoy let pass
	counted uint64                                      // how many of them are in hits
}

// failures counts the Checks that ended in an error. The client then gets a 503 from Envoy itself.
type failures struct {
	vec                             *prometheus.CounterVec
	panicked, unreadable, badAnswer prometheus.Counter
}

func newCounts() (*counts, failures) {
	c := &counts{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: convention.MetricDecisions,
			Help: "Requests decided about, by service, decision (allow, deny, error: no decision was possible) and reason.",
		}, []string{"service", "decision", "reason"}),
		limit:    maxServices,
		services: map[string]*serviceCounts{},
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

// checkBuckets range from a decision from memory to the longest that Envoy waits for one, in seconds.
var checkBuckets = []float64{1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, .01, .025, .05, .1, .25, .5, 1, 2}

func newDurations() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "gatepost_check_duration_seconds",
		Help:    "Seconds from a check of Envoy being read until its response, with the look-up of the token.",
		Buckets: checkBuckets,
	})
}

func (s *Server) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{s.counts, s.failures.vec, s.denials.leftOutTotal, s.durations} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("registering authz metrics: %w", err)
		}
	}
	return nil
}

func (c *counts) add(service string, r Reason) {
	counters := c.of(service)
	counter := counters.decided[r].Load()
	if counter == nil {
		made := c.decisions.WithLabelValues(counters.label, string(r.Outcome()), r.String())
		counter = &made
		counters.decided[r].Store(counter)
	}
	(*counter).Inc()
}

// Describe implements [prometheus.Collector].
func (c *counts) Describe(out chan<- *prometheus.Desc) { c.decisions.Describe(out) }

// Collect implements [prometheus.Collector]. The hits of the module are those of this moment.
func (c *counts) Collect(out chan<- prometheus.Metric) {
	if c.hits != nil {
		c.addHits(c.hits())
	}
	c.decisions.Collect(out)
}

// addHits counts the requests that the module in Envoy has let pass since the last call. It has let pass none of a
// service before the first check of it.
func (c *counts) addHits(of func(service string) uint64) {
	c.adding.Lock()
	defer c.adding.Unlock()
	c.mu.RLock()
	defer c.mu.RUnlock()
	for service, counters := range c.services {
		if n := of(service); n > counters.counted {
			counters.hits.Add(float64(n - counters.counted))
			counters.counted = n
		}
	}
}

// of returns the counters of a service, those of serviceOther if there are too many services.
func (c *counts) of(service string) *serviceCounts {
	c.mu.RLock()
	counters := c.services[service]
	c.mu.RUnlock()
	if counters == nil {
		counters = c.resolve(service)
	}
	return counters
}

func (c *counts) resolve(service string) *serviceCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	service = strings.Clone(service) // a part of the request, which must not be kept
	label := service
	if service == "" {
		label = serviceNone
	} else if len(c.services) >= c.limit || len(service) > maxName {
		service, label = serviceOther, serviceOther
	}
	if counters := c.services[service]; counters != nil {
		return counters
	}
	counters := &serviceCounts{label: label, hits: c.decisions.WithLabelValues(label, string(Allowed), ReasonModule)}
	c.services[service] = counters
	return counters
}
