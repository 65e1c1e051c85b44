// Package cache decides for how long the answer of a token store may be believed: it answers look-ups from memory
// without ever accepting a token that was revoked.
//
// # The promise
//
// A use of a token that begins after a revoke of it has returned (mode [Proven]) is refused by every gateway, whatever
// happens to Redis, to a connection or to a gateway's process: killed, frozen, slow, cut off on one side or on both.
// A use begins when [Cache.Principal] is called, or if Envoy answers from its table, when the module looks into the table.
// What Redis forgets, the cache cannot know: a restart with old data (remedy: appendonly), or a fail-over to a
// replica that had not heard of the revoke (remedy: WAIT, min-replicas-to-write), which is also the lot of what a master takes
// that was replaced already. Such a master is left behind Sentinel with the next heartbeat, or where none of the Sentinels
// can be asked when it has been deposed; in a Cluster when the masters know of it from each other.
//
// # How it is kept
//
// Redis itself says what has changed: a connection of our own to each master ([Redis]) tracks every key of a token in
// broadcast mode. On one connection everything comes in order, so the answer to a heartbeat shows that all that was
// called back before has been heard. Therefore
//
//   - a kept answer counts only while the lease is held, that is until L after the last answered heartbeat was *sent*.
//     Where the lease ends, the epoch is counted up and everything is forgotten, before the lease can be held again.
//   - an answer is kept only if nothing of its shard was called back (generation) and the lease was held without a gap
//     (epoch) since before it was asked for. A data reply that arrives after the call-back of its key is not kept.
//   - a look-up that is under way is joined by others on the same conditions only.
//   - the lease vouches for the answers of the tracked server alone. A master that Sentinel has replaced goes on for seconds as
//     if it were one. So the Sentinels are asked with each heartbeat, and all that answer must name the tracked
//     server; and all data connections lead there while the lease is held: others are closed before it begins, and a new one that
//     leads elsewhere ends it before it can be used ([led]). In a Cluster the first reply about a token from a node that is
//     not tracked ends the lease before the reply is used, and a revoke there waits for L ([routes]).
//   - a revoke makes the token refused here, then writes to the store, and after the store's answer it waits until no
//     other gateway can hold an answer from before: L by the clock in any case.
//
// # How a revoke answers sooner
//
// The heartbeat is a message that every gateway hears ("here", by PUBLISH, on the tracking connection). So a lease that
// is held at a time t was announced, to all who listened at the master, after t-L. A gateway that has listened
// without a gap for L therefore knows of every gateway which may hold a lease. After the store's answer it publishes "settle"; a
// gateway that reads this has read every call-back that Redis sent before (one connection, in order), makes one more round trip to Redis,
// and answers "settled". The revoke returns when each gateway either has answered or was last heard L ago. A gateway
// that first announces itself after the "settle" began with an empty cache, and asked Redis for all that it holds after
// the token was gone. A gateway may only hold a lease if it may announce itself: there is no lease
// without PUBLISH. The clocks of two machines must run at the same rate to a hundredth; they need not agree.
//
// A process that is stopped between the look at the lease and its answer began the use before; when it goes on,
// it answers that one use and finds the lease ended at the next one. The clock that must have gone on while it stood still is the
// monotonic or the wall clock, whichever is ahead.
//
// # What is written here and what is not
//
// go-redis carries every other command. The tracking connection is read by a small reader of RESP3 of our own (resp.go):
// go-redis reads pushes only when a command is read on that connection, logs and skips a push that it cannot
// parse, and its PubSub reconnects unasked, each a call-back that may be lost unnoticed; here whatever is not
// understood ends the connection and with it the lease. Dialling, TLS and credentials are go-redis's, and so is the way of look-ups by Sentinel.
// The table is an index of four bytes a token and a clock hand per shard: no cache library checks a generation under the lock that inserts,
// and in a map of Go the hashes alone would take half as much as the principals.
//
// Unknown tokens and errors are not kept at all. Junk costs a look-up each; what it cannot do is to
// push live sessions out of memory.
package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"

	"github.com/prometheus/client_golang/prometheus"
)

// Revocation selects when a revoke returns.
type Revocation int32

const (
	// Proven returns when no gateway, and no Envoy, can accept the token any more.
	Proven Revocation = iota
	// Prompt returns when the store has answered. Gateways hear of it in milliseconds, and at the latest when the lease
	// has ended.
	Prompt
)

// Config bounds the cache. The zero Config is a good one.
type Config struct {
	// MaxEntries is how many tokens are kept at most. 0: 100,000.
	MaxEntries int
	// MaxBytes is how much memory the kept tokens take at most, as estimated. 0: 32 MiB.
	MaxBytes int
	// LookupTimeout bounds one look-up in the store. 0: 1 s.
	LookupTimeout time.Duration
	// MaxLookups is how many look-ups in the store are under way at once at most; more are answered
	// with tokens.ErrUnavailable at once. 0: 1024.
	MaxLookups int
	// Revocation is when a revoke answers at the start; [Cache.SetRevocation] changes it.
	Revocation Revocation
	// Table is where the module in Envoy finds decisions; the caller closes it after the cache. Nil: there is none.
	Table *table.Table
	// Registerer takes the metrics. Nil: none.
	Registerer prometheus.Registerer
	// Logger takes panics of the store. Nil: slog.Default.
	Logger *slog.Logger
}

// A Tracker hears what other gateways and operators change in the store, and knows what they may still believe.
// It has three implementations, [Redis], [Alone] and [Outside].
type Tracker interface {
	// Start begins to track. What has changed is told to l, until Close has returned.
	Start(l Listener)

	// Held says whether all that was changed in the store up to a lease ago has been told to the listener. Between two
	// times at which it is held with a gap in between, the listener was told to forget all. It does not block.
	Held(now time.Time) bool

	// WaitInvalidated returns nil when no use that begins from now on can be decided, by any gateway or by any Envoy, by what the store
	// answered before WaitInvalidated was called; or the context's error.
	WaitInvalidated(ctx context.Context) error

	// Close ends the tracking; nothing is held after it.
	Close() error
}

// A Listener is told what is to be forgotten. It must not block.
type Listener interface {
	// Invalidate: the token was changed.
	Invalidate(h tokens.Hash)
	// InvalidateAll: anything may have changed.
	InvalidateAll()
	// Extend: Envoys may use the decisions in their table until then. It is called when a lease is extended, with the lease's end,
	// and by a tracker of a store that nothing else can change.
	Extend(until table.Instant)
}

// shards is how many parts the cache has, one for each first byte of a hash: enough that a call-back, after which the look-ups
// under way in its part are not kept, meets few of them.
const shards = 256

// Cache is a token store that answers look-ups from memory where a [Tracker] says that it may.
// All that changes tokens must go through it or be heard by its tracker.
type Cache struct {
	store   tokens.Store
	tracker Tracker
	logger  *slog.Logger
	panics  atomic.Uint64 // of the store, in a look-up that no caller would recover

	timeout              time.Duration
	maxEntries, maxBytes int // of a shard
	slots                chan struct{}
	revocation           atomic.Int32
	table                *table.Table // what Envoys decide by themselves; nil: nothing

	// epoch counts the gaps in what was heard. What was asked for in another epoch is not believed.
	epoch  atomic.Uint64
	shards [shards]*shard
}

var (
	_ tokens.Store   = (*Cache)(nil)
	_ tokens.Toucher = (*Cache)(nil)
)

// New returns a cache in front of store, and starts the tracker. Close closes both.
func New(store tokens.Store, tracker Tracker, config Config) (*Cache, error) {
	c := &Cache{
		store:      store,
		tracker:    tracker,
		logger:     cmp.Or(config.Logger, slog.Default()),
		timeout:    orDefault(config.LookupTimeout, time.Second),
		maxEntries: min(max(1, orDefault(config.MaxEntries, 100_000)/shards), maxPlaces-1),
		maxBytes:   orDefault(config.MaxBytes, 32<<20) / shards,
		slots:      make(chan struct{}, orDefault(config.MaxLookups, 1024)),
		table:      config.Table,
	}
	c.revocation.Store(int32(config.Revocation))
	for i := range c.shards {
		c.shards[i] = newShard()
	}
	if config.Registerer != nil {
		if err := c.register(config.Registerer); err != nil {
			return nil, fmt.Errorf("registering the cache's metrics: %w", err)
		}
	}
	tracker.Start(c)
	return c, nil
}

func orDefault[N int | time.Duration](n, otherwise N) N {
	if n <= 0 {
		return otherwise
	}
	return n
}

// SetRevocation changes when a revoke answers; those under way keep to what was set when they began.
func (c *Cache) SetRevocation(r Revocation) { c.revocation.Store(int32(r)) }

// Held says whether look-ups are answered from memory at present.
func (c *Cache) Held() bool { return c.tracker.Held(time.Now()) }

// shard returns the part that a token belongs to. Only tokens that were minted, at random, take memory there.
func (c *Cache) shard(h tokens.Hash) *shard { return c.shards[h[0]] }

// Invalidate forgets a token, here and in the table. It implements [Listener].
func (c *Cache) Invalidate(h tokens.Hash) {
	s := c.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.callBack(s, h)
}

// callBack forgets a token. The shard's lock is held: a Grant comes before, and is undone, or after, and is refused.
func (c *Cache) callBack(s *shard, h tokens.Hash) {
	s.callBack(h)
	c.table.Drop(h)
}

// InvalidateAll forgets everything. It implements [Listener].
func (c *Cache) InvalidateAll() {
	// From here on nothing of before is believed; the rest gives back the memory.
	c.table.Reset(c.epoch.Add(1))
	for _, s := range c.shards {
		s.mu.Lock()
		s.clear()
		s.mu.Unlock()
	}
}

// Create keeps a new session in the store. Where that ends an older one, gateways hear of it as of a [Prompt] revoke.
func (c *Cache) Create(ctx context.Context, s *tokens.Session, limit int) error {
	return c.store.Create(ctx, s, limit)
}

// Sessions lists a user's sessions as the store has them.
func (c *Cache) Sessions(ctx context.Context, user string) ([]*tokens.Session, error) {
	return c.store.Sessions(ctx, user)
}

// Touch is the inner store's, and nothing where that is no tokens.Toucher.
func (c *Cache) Touch(ctx context.Context, of tokens.Principal, at time.Time, address string) error {
	if inner, ok := c.store.(tokens.Toucher); ok {
		return inner.Touch(ctx, of, at, address)
	}
	return nil
}

// Ping asks the store itself.
func (c *Cache) Ping(ctx context.Context) error { return c.store.Ping(ctx) }

// Close ends the tracking and closes the store.
func (c *Cache) Close() error { return errors.Join(c.tracker.Close(), c.store.Close()) }
