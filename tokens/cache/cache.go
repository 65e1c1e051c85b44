// Package cache decides for how long the answer of a token store stays valid in memory. It answers
// look-ups from memory and never accepts a revoked token.
//
// # The promise
//
// After a revoke has returned in mode [Strict], every gateway refuses a use of the token that
// begins later. This holds if Redis, a connection or a gateway's process is killed, frozen, slow,
// or cut off on one side or on both. A use begins when [Cache.Principal] is called. If Envoy
// answers from its table, the use begins when the module looks into the table.
//
// The cache cannot detect data that Redis loses: a restart with old data (remedy: appendonly), or a
// fail-over to a replica without the revoke (remedy: WAIT, min-replicas-to-write). A master that
// was already replaced also loses the writes it accepts. Behind Sentinel, the tracking leaves such
// a master with the next heartbeat, or after its demotion if no Sentinel answers. In a Cluster, it
// leaves as soon as the masters report the change to each other.
//
// # How it works
//
// Redis itself reports changes: one connection to each master ([Redis]) tracks every token key in
// broadcast mode. Messages on one connection arrive in order, so the reply to a heartbeat shows
// that all earlier invalidations have arrived. Therefore:
//
//   - A cached answer counts only while the lease is held, until L after the last answered
//     heartbeat was *sent*. When the lease ends, the epoch is increased and the cache is emptied
//     before the lease can be held again.
//   - An answer is cached only if, since before the look-up was sent, nothing in its shard was
//     invalidated (generation) and the lease was held without a gap (epoch). A data reply that
//     arrives after the invalidation of its key is not cached.
//   - Callers share a look-up in progress on the same conditions.
//   - The lease covers only answers of the tracked server. A master that Sentinel has replaced can
//     act as master for some seconds more. So each heartbeat queries the Sentinels, and all that
//     answer must name the tracked server. All data connections must lead to it while the lease is
//     held: others are closed before the lease begins, and a new one to another server ends the
//     lease before it can be used ([dataConns]). In a Cluster, the first reply about a token from
//     an untracked node ends the lease before the reply is used, and a revoke there waits for L
//     ([routes]).
//   - A revoke first refuses the token here, then writes to the store. After the store's answer it
//     waits until no other gateway can hold an older answer: at most L by the clock.
//
// # How a revoke returns sooner
//
// Every gateway receives every other gateway's heartbeat ("here", by PUBLISH, on the tracking
// connection). A lease held at time t was therefore announced to all subscribers of the master
// after t-L. A gateway that has been subscribed without a gap for L knows every gateway that may
// hold a lease. After the store's answer it publishes "settle". A gateway that reads this has read
// every invalidation that Redis sent before (one connection, in order). It makes one more round
// trip to Redis and answers "settled". The revoke returns when each gateway has answered or has
// sent nothing for L. A gateway that first announces itself after the "settle" began with an empty
// cache, so all its answers were read after the revoke. There is no lease without PUBLISH: a
// gateway that cannot announce itself must not hold one. The clocks of two machines must run at the
// same rate to within one percent; they need not agree.
//
// A process can be stopped between its check of the lease and its answer. That use began before the
// revoke; when the process resumes, it answers that one use and finds the lease ended at the next
// one. At least one of the monotonic and the wall clock must advance while a process is stopped;
// the one that is ahead counts.
//
// # Own code and libraries
//
// go-redis sends every other command. The tracking connection has its own small RESP3 reader
// (resp.go), because go-redis can lose an invalidation unnoticed: it reads pushes only while it
// reads a command's reply, it logs and skips a push that it cannot parse, and its PubSub reconnects
// by itself. Here, anything unexpected ends the connection and the lease. go-redis does dial,
// authenticate, set up TLS and look up the master through Sentinel.
//
// The table is an index of four bytes per token, with one clock hand per shard. No cache library
// checks a generation under the lock that inserts. In a Go map the hashes alone would take half as
// much memory as the principals.
//
// Unknown tokens and errors are never cached. Each junk token costs a look-up, but it cannot evict
// live sessions.
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
	// Strict returns when no gateway, and no Envoy, can accept the token any more.
	Strict Revocation = iota
	// Prompt returns when the store has answered. Gateways receive the invalidation within
	// milliseconds, and stop accepting the token when their lease ends at the latest.
	Prompt
)

// Config bounds the cache. The zero Config is valid.
type Config struct {
	// MaxEntries is the maximum number of cached tokens. 0: 100,000.
	MaxEntries int
	// MaxBytes is the maximum estimated memory of the cached tokens. 0: 32 MiB.
	MaxBytes int
	// LookupTimeout bounds one look-up in the store. 0: 1 s.
	LookupTimeout time.Duration
	// MaxLookups is the maximum number of concurrent look-ups in the store. Further ones fail
	// with tokens.ErrUnavailable at once. 0: 1024.
	MaxLookups int
	// Revocation is the initial mode of revokes; [Cache.SetRevocation] changes it.
	Revocation Revocation
	// Table holds the decisions for the module in Envoy. The caller closes it after the cache. Nil:
	// there is no module.
	Table *table.Table
	// Registerer takes the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer
	// Logger logs panics of the store. Nil: nothing is logged.
	Logger *slog.Logger
}

// A Tracker receives changes that other gateways and operators make in the store. It knows for how
// long those gateways may use older answers. The implementations are [Redis], [LocalTracker] and
// [OfflineTracker].
type Tracker interface {
	// Start begins to track. Changes are reported to l until Close has returned.
	Start(l Listener)

	// Held reports whether every change older than a lease has been reported to the listener.
	// If there is a gap between two times at which the lease is held, InvalidateAll was called in
	// between. Held does not block.
	Held(now time.Time) bool

	// WaitInvalidated returns nil when no gateway and no Envoy can decide a new use from what the
	// store answered before WaitInvalidated was called. Otherwise it returns the context's error.
	WaitInvalidated(ctx context.Context) error

	// Close ends the tracking. No lease is held after it.
	Close() error
}

// A Listener receives invalidations. Its methods must not block.
type Listener interface {
	// Invalidate reports that the token has changed.
	Invalidate(h tokens.Hash)
	// InvalidateAll reports that any token may have changed.
	InvalidateAll()
	// Extend lets Envoys use the decisions in their table until then. A tracker calls it with the
	// lease's end when the lease is extended; [LocalTracker] calls it all the time.
	Extend(until table.Instant)
}

// shards is the number of parts of the cache, one for each first byte of a hash. An invalidation
// discards the look-ups in progress in its shard, so more shards mean fewer discarded look-ups.
const shards = 256

// Cache is a token store that answers look-ups from memory if its [Tracker] allows it.
// Every change of a token must go through the cache or be reported by the tracker.
type Cache struct {
	store   tokens.Store
	tracker Tracker
	logger  *slog.Logger
	panics  atomic.Uint64 // panics of the store in the goroutine of a load

	timeout              time.Duration
	maxEntries, maxBytes int // of a shard
	slots                chan struct{}
	revocation           atomic.Int32
	table                *table.Table // the decisions for Envoys; nil: none

	// epoch counts the gaps in the tracking. Answers from an earlier epoch are not used.
	epoch  atomic.Uint64
	shards [shards]*shard
}

var (
	_ tokens.Store   = (*Cache)(nil)
	_ tokens.Toucher = (*Cache)(nil)
)

// New returns a cache in front of store and starts the tracker. Close closes both.
func New(store tokens.Store, tracker Tracker, config Config) (*Cache, error) {
	c := &Cache{
		store:      store,
		tracker:    tracker,
		logger:     cmp.Or(config.Logger, slog.New(slog.DiscardHandler)),
		timeout:    orDefault(config.LookupTimeout, time.Second),
		maxEntries: min(max(1, orDefault(config.MaxEntries, 100_000)/shards), maxSlots-1),
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

// SetRevocation changes the mode of revokes. Revokes in progress keep their mode.
func (c *Cache) SetRevocation(r Revocation) { c.revocation.Store(int32(r)) }

// Held reports whether look-ups are answered from memory now.
func (c *Cache) Held() bool { return c.tracker.Held(time.Now()) }

// shard returns the shard of a token. Only minted tokens, whose hashes are random, use memory in
// it.
func (c *Cache) shard(h tokens.Hash) *shard { return c.shards[h[0]] }

// Invalidate removes a token from the cache and from the table. It implements [Listener].
func (c *Cache) Invalidate(h tokens.Hash) {
	s := c.shard(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.invalidate(s, h)
}

// invalidate removes a token. The caller holds the shard's lock, so a Grant either ran before and
// is undone, or runs after and is refused.
func (c *Cache) invalidate(s *shard, h tokens.Hash) {
	s.invalidate(h)
	c.table.Drop(h)
}

// InvalidateAll empties the cache. It implements [Listener].
func (c *Cache) InvalidateAll() {
	// The new epoch makes all older answers invalid at once; the loop frees their memory.
	c.table.Reset(c.epoch.Add(1))
	for _, s := range c.shards {
		s.mu.Lock()
		s.clear()
		s.mu.Unlock()
	}
}

// Create stores a new session. If this ends an older session, gateways receive the invalidation as
// after a [Prompt] revoke.
func (c *Cache) Create(ctx context.Context, s *tokens.Session, limit int) error {
	return c.store.Create(ctx, s, limit)
}

// Sessions lists a user's sessions from the store.
func (c *Cache) Sessions(ctx context.Context, user string) ([]*tokens.Session, error) {
	return c.store.Sessions(ctx, user)
}

// Touch calls Touch of the inner store. It does nothing if the store is no tokens.Toucher.
func (c *Cache) Touch(ctx context.Context, of tokens.Principal, at time.Time, address string) error {
	if inner, ok := c.store.(tokens.Toucher); ok {
		return inner.Touch(ctx, of, at, address)
	}
	return nil
}

// Ping pings the store.
func (c *Cache) Ping(ctx context.Context) error { return c.store.Ping(ctx) }

// Close ends the tracking and closes the store.
func (c *Cache) Close() error { return errors.Join(c.tracker.Close(), c.store.Close()) }
