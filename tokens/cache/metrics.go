package cache

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Stats is how the cache has done.
type Stats struct {
	// Hits were answered from memory, Misses asked the store.
	Hits, Misses uint64
	// Entries are the kept sessions, and Bytes the memory they take, as estimated.
	Entries, Bytes int
	// Evictions made room for others.
	Evictions uint64
	// EpochDrops is how often everything was forgotten, which each start of the tracking does as well.
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

// register registers the metrics, which are read when they are asked for: a hit counts in its shard alone.
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
		counter("gatepost_cache_hits_total", "Look-ups of tokens that were answered from memory.",
			sum(func(s *shard) *atomic.Uint64 { return &s.hits })),
		counter("gatepost_cache_misses_total", "Look-ups of tokens that were not.",
			sum(func(s *shard) *atomic.Uint64 { return &s.misses })),
		counter("gatepost_cache_evictions_total", "Sessions that were dropped from memory to make room.",
			sum(func(s *shard) *atomic.Uint64 { return &s.evictions })),
		counter("gatepost_cache_epoch_drops_total", "How often all kept sessions were dropped: the tracking began or was lost, or Redis was flushed.",
			func() float64 { return float64(c.epoch.Load()) }),
		counter("gatepost_cache_panics_total", "Look-ups that ended in a panic of the store.",
			func() float64 { return float64(c.panics.Load()) }),
		gauge("gatepost_cache_entries", "Sessions kept in memory.", func() float64 { return float64(c.Stats().Entries) }),
		gauge("gatepost_cache_bytes", "Memory that the kept sessions take, estimated.", func() float64 { return float64(c.Stats().Bytes) }),
		gauge("gatepost_cache_lease_held", "1 where look-ups may be answered from memory, 0 where each asks the store.", func() float64 {
			if c.tracker.Held(time.Now()) {
				return 1
			}
			return 0
		}),
	}
	if r, ok := c.tracker.(*Redis); ok {
		collectors = append(collectors,
			counter("gatepost_cache_revokes_acknowledged_total", "Revokes that returned when all gateways had answered.",
				func() float64 { return float64(r.acknowledged.Load()) }),
			counter("gatepost_cache_revokes_waited_out_total", "Revokes that returned when all leases had run out.",
				func() float64 { return float64(r.waitedOut.Load()) }))
	}
	for _, collector := range collectors {
		if err := registerer.Register(collector); err != nil {
			return err
		}
	}
	return nil
}
