package cache

import (
	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// Decisions for Envoy. After an allow, the decision is written to the table from which the module
// in Envoy answers (package table). The module may use it as long as this cache may use a cached
// answer:
//
//   - It is written under the shard's lock, and only if nothing in the shard was invalidated since
//     before the look-up (generation) and the epoch is the same. So an invalidation either finds
//     the decision in the table or prevents the write. The same conditions hold for cached answers.
//   - An invalidation removes it in the critical section that removes the token from the cache. The
//     trackers invalidate before they acknowledge ("settled"), and a revoke returns after that.
//   - The whole table is valid until the lease ends, counted from the time the heartbeat was sent,
//     by CLOCK_BOOTTIME and by the wall clock ([Cache.Extend]). So if a gateway is stopped, its
//     Envoy stops to use the table before another gateway's revoke returns.
//   - A gap in the tracking begins a new epoch: the table gets a new key, under which no former
//     decision is found.

// Ticket returns the state before a look-up of the token; pass it to [Cache.Grant].
func (c *Cache) Ticket(h tokens.Hash) table.Ticket {
	// before the generation: InvalidateAll changes them in this order
	t := table.Ticket{Epoch: c.epoch.Load()}
	s := c.shard(h)
	s.mu.RLock()
	defer s.mu.RUnlock()
	t.Generation = s.generation
	return t
}

// Grant writes a decision for Envoy, unless the token may have changed since the ticket was taken.
func (c *Cache) Grant(t table.Ticket, e table.Entry) {
	s := c.shard(e.Token)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.generation == t.Generation && s.revoking[e.Token] == 0 {
		c.table.Put(t.Epoch, &e)
	}
}

// Hits returns a function that reports how many requests of a service Envoy has decided by itself.
func (c *Cache) Hits() (of func(service string) uint64) { return c.table.Hits().Of }

// Extend lets Envoys use the decisions in the table until then. It implements [Listener].
func (c *Cache) Extend(until table.Instant) { c.table.Extend(until) }
