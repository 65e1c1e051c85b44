package cache

import (
	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// What Envoy decides by itself. After an allow, the decision is put into the table from which the module in Envoy answers
// (package table). It may be used as long as this cache may use a kept answer, and no longer:
//
//   - It is written under the shard's lock, and only if nothing of the shard was called back since before the token was looked up
//     (generation), and the epoch is the same. So a call-back either finds it in the table, or prevents it. These are
//     the conditions on which an answer of the store is kept.
//   - A call-back takes it out in the same critical section in which the cache forgets the token. The trackers call back before
//     they say so ("settled"), and a revoke is answered after that.
//   - The table as a whole is in force until the lease ends, counted from when the heartbeat was sent, by CLOCK_BOOTTIME and by the
//     wall clock ([Cache.Extend]). A gateway that stands still therefore stops its Envoy in time for the others' revokes.
//   - A gap in the tracking is another epoch: the table gets another key, under which none of the former decisions is found.

// Ticket is taken before a token is looked up; see [Cache.Grant].
func (c *Cache) Ticket(h tokens.Hash) table.Ticket {
	t := table.Ticket{Epoch: c.epoch.Load()} // before the generation: InvalidateAll changes them in this order
	s := c.shard(h)
	s.mu.RLock()
	defer s.mu.RUnlock()
	t.Generation = s.generation
	return t
}

// Grant lets Envoy decide by itself as was decided after the ticket was taken, unless the token may have changed since.
func (c *Cache) Grant(t table.Ticket, e table.Entry) {
	s := c.shard(e.Token)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.generation == t.Generation && s.revoking[e.Token] == 0 {
		c.table.Put(t.Epoch, &e)
	}
}

// Hits returns how many requests Envoy has decided by itself, by service.
func (c *Cache) Hits() (of func(service string) uint64) { return c.table.Hits().Of }

// Extend lets Envoys use the decisions in the table until then. It implements [Listener].
func (c *Cache) Extend(until table.Instant) { c.table.Extend(until) }
