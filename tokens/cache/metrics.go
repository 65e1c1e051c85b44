package cache

import (
	"sync/atomic"
	"time"

	"gatepost/convention"

	"github.com/prometheus/client_golang/prometheus"
)

// Stats are the cache's counts.
type Stats struct {
	// Hits were answered from memory, Misses from the store.
	Hits, Misses uint64
	// Entries is the number of cached sessions, Bytes their estimated memory.
	Entries, Bytes int
	// Evictions made room for other sessions.
	Evictions uint64
	// EpochDrops is how often the cache was emptied. Each start of the tracking counts too.
	EpochDrops uint64
}

// Stats returns the counts so far.
func (c *Cache) Stats() Stats {
	all := Stats{EpochDrops: c.epoch.Load()}
	for _, s := range c.shards {
		entries, bytes := s.sizes()
		all.Hits += s.hits.Load()
		all.Misses += s.misses.Load()
		all.Evictions += s.evictions.Load()
		all.Entries += entries
		all.Bytes += bytes
	}
	return all
}

// register registers the metrics. They are computed on each scrape, so a hit only counts in its
// shard.
func (c *Cache) register(registerer prometheus.Registerer) error {
	counter := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, read)
	}
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	sum := func(of func(*shard) *atomic.Uint64) func() float64 {
		return func() float64 {
			var n uint64
			for _, s := range c.shards {
				n += of(s).Load()
			}
			return float64(n)
		}
	}
	collectors := []prometheus.Collector{
		counter("gatepost_cache_hits_total", "Token look-ups answered from memory.",
			sum(func(s *shard) *atomic.Uint64 { return &s.hits })),
		counter("gatepost_cache_misses_total", "Token look-ups answered by the store.",
			sum(func(s *shard) *atomic.Uint64 { return &s.misses })),
		counter("gatepost_cache_evictions_total", "Cached sessions evicted to make room.",
			sum(func(s *shard) *atomic.Uint64 { return &s.evictions })),
		counter("gatepost_cache_epoch_drops_total",
			"How often the cache was emptied because the tracking began or was lost, or Redis was flushed.",
			func() float64 { return float64(c.epoch.Load()) }),
		counter("gatepost_cache_panics_total", "Look-ups that ended in a panic of the store.",
			func() float64 { return float64(c.panics.Load()) }),
		gauge("gatepost_cache_entries", "Sessions cached in memory.",
			func() float64 { return float64(c.Stats().Entries) }),
		gauge("gatepost_cache_bytes", "Estimated memory of the cached sessions.",
			func() float64 { return float64(c.Stats().Bytes) }),
		gauge(convention.MetricLeaseHeld, "1 if look-ups may be answered from memory, 0 if each reads the store.", func() float64 {
			if c.tracker.Held(time.Now()) {
				return 1
			}
			return 0
		}),
	}
	if r, ok := c.tracker.(*Redis); ok {
		collectors = append(collectors,
			counter("gatepost_cache_revokes_acknowledged_total", "Revokes that returned after all gateways had answered.",
				func() float64 { return float64(r.acknowledged.Load()) }),
			counter("gatepost_cache_revokes_waited_out_total", "Revokes that returned after all leases had expired.",
				func() float64 { return float64(r.waitedOut.Load()) }))
	}
	for _, collector := range collectors {
		if err := registerer.Register(collector); err != nil {
			return err
		}
	}
	return nil
}
