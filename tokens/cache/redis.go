package cache

import (
	"cmp"
	"context"
	cryptorand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"gatepost/tokens/cache/table"

	"github.com/redis/go-redis/v9"
)

// RedisConfig configures the tracking of Redis. The zero RedisConfig is valid.
type RedisConfig struct {
	// Lease is how long cached answers are valid after the last answered heartbeat was sent. All
	// gateways of one Redis must use the same value. 0: 1 s. Tracking starts if a round trip takes
	// less than a quarter of it (the start needs four), and continues up to three quarters
	// (heartbeats are a quarter apart).
	Lease time.Duration
	// Sentinels are queried for the master with each heartbeat; required behind Sentinel. While
	// none of them answers, there is no lease.
	Sentinels Sentinels
	// Logger logs when the tracking begins and why it ended. Nil: nothing is logged.
	Logger *slog.Logger
}

// Redis is the tracker of a store in Redis. It has one connection to each master, on which Redis
// sends invalidations (CLIENT TRACKING, RESP3, Redis 6 or later) and the gateways exchange notices
// (the user needs the channels "gatepost:gateway*").
//
// In a cluster, the lease is held only while it is held at all masters, including those without
// slots, and while each of them names the same masters with each heartbeat. Otherwise a slot could
// move to a master that is not tracked. While one master is down, look-ups in the other slots read
// Redis.
type Redis struct {
	id        string // this gateway's id
	masters   func(context.Context) ([]master, error)
	sentinels Sentinels
	lease     time.Duration
	log       *slog.Logger
	listener  Listener

	term  lease
	count atomic.Uint64

	mu    sync.Mutex
	conns []*conn // the current tracking connections; nil: none

	stop    context.CancelFunc
	stopped chan struct{}
	// acknowledged and waitedOut count how strict revokes completed.
	acknowledged, waitedOut atomic.Uint64
}

var _ Tracker = (*Redis)(nil)

// Track returns a tracker of the Redis that client uses: one server, one behind Sentinel, or a
// cluster. It uses the client's way of dialling and, in a cluster, its list of nodes. Close the
// client after the tracker. Behind Sentinel and in a cluster, client must be the client of the
// look-ups, and must not have been used yet.
func Track(client redis.UniversalClient, config RedisConfig) (*Redis, error) {
	masters, err := findMasters(client, config.Sentinels)
	if err != nil {
		return nil, err
	}
	var id [8]byte
	if _, err := cryptorand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	r := &Redis{
		id:        hex.EncodeToString(id[:]),
		masters:   masters,
		sentinels: config.Sentinels,
		lease:     orDefault(config.Lease, time.Second),
		log:       cmp.Or(config.Logger, slog.New(slog.DiscardHandler)),
		stopped:   make(chan struct{}),
	}
	return r, nil
}

// Start begins to track.
func (r *Redis) Start(l Listener) {
	r.listener = l
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go r.run(ctx)
}

// Held reports whether the lease is held.
func (r *Redis) Held(now time.Time) bool { return r.term.held(now) }

// Close ends the tracking.
func (r *Redis) Close() error {
	if r.stop != nil {
		r.stop()
		<-r.stopped
	}
	return nil
}

// Backoff between attempts to connect. A Redis that returns is found within half a second.
const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = 400 * time.Millisecond
)

// run tracks all masters until the context ends. If one connection fails, it starts again.
func (r *Redis) run(ctx context.Context) {
	defer close(r.stopped)
	backoff, lastReason := minBackoff, ""
	for ctx.Err() == nil {
		began, err := r.track(ctx)
		if ctx.Err() != nil {
			return
		}
		if began {
			backoff, lastReason = minBackoff, ""
			r.log.Warn("redis tracking lost: look-ups ask the store", "reason", err.Error())
		} else if lastReason != err.Error() {
			lastReason = err.Error() // log each reason once, not each attempt
			r.log.Warn("redis cannot be tracked: look-ups ask the store", "reason", lastReason)
		}
		_ = sleep(ctx, backoff/2+rand.N(backoff/2))
		backoff = min(2*backoff, maxBackoff)
	}
}

// track connects to all masters and tracks until the first connection fails. It returns whether the
// tracking began, and why it ended.
func (r *Redis) track(ctx context.Context) (began bool, err error) {
	conns, err := r.connectAll(ctx)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	first := conns[0] // behind Sentinel the only one
	data, routes := first.master.data, first.master.routes
	// Unpin after the lease has ended: while it may be held, no look-up may use another server.
	if data != nil {
		defer func() { data.unpin(errors.Is(err, errReplaced)) }()
	}
	if routes != nil {
		defer routes.unpin()
	}
	r.mu.Lock()
	r.conns = conns
	r.mu.Unlock()
	defer r.forget()
	moved := func() {
		r.forget()
		cancel(errMoved)
	}
	if data != nil {
		data.pin(first.net.RemoteAddr().String(), moved)
	}
	if routes != nil {
		routes.pin(conns, moved)
	}
	r.log.Info("redis is tracked", "masters", len(conns))

	var all sync.WaitGroup
	for _, c := range conns {
		all.Go(func() {
			if err := c.run(ctx); err != nil {
				cancel(fmt.Errorf("redis at %s: %w", c.master.name, err))
			}
		})
	}
	all.Wait()
	return true, context.Cause(ctx)
}

// forget ends the lease and then empties the cache.
func (r *Redis) forget() {
	r.mu.Lock()
	r.conns = nil
	r.term.end()
	r.mu.Unlock()
	r.listener.InvalidateAll()
}

// connectAll connects to all masters concurrently. If one fails, it closes the others.
func (r *Redis) connectAll(ctx context.Context) ([]*conn, error) {
	timeout, cancel := context.WithTimeout(ctx, r.lease)
	defer cancel()
	masters, err := r.masters(timeout)
	if err != nil {
		return nil, err
	}
	conns, errs := make([]*conn, len(masters)), make([]error, len(masters))
	var all sync.WaitGroup
	for i, m := range masters {
		all.Go(func() {
			c, err := r.connect(ctx, m)
			if err != nil {
				errs[i] = fmt.Errorf("redis at %s: %w", m.name, err)
			}
			conns[i] = c
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, c := range conns {
			if c != nil {
				_ = c.net.Close()
			}
		}
		return nil, err
	}
	return conns, nil
}

// confirm records that a heartbeat of one connection, sent at the time sent, was answered. The
// lease counts from the oldest heartbeat of all connections.
func (r *Redis) confirm(c *conn, sent table.Instant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return
	}
	c.confirmed = sent
	oldest := sent
	for _, other := range r.conns {
		if other.confirmed.Wall.IsZero() {
			return // not all have answered yet
		}
		if other.confirmed.Wall.Before(oldest.Wall) {
			oldest = other.confirmed
		}
		if other.master.data != nil && other.named.Wall.Before(oldest.Wall) {
			oldest = other.named
		}
	}
	// A lease that has expired, even for a moment, is a gap: invalidations from it may still
	// arrive.
	if now := time.Now(); !r.term.held(now) {
		if !now.Before(oldest.Wall.Add(r.lease)) {
			return // already expired again
		}
		r.listener.InvalidateAll()
	}
	r.term.extend(oldest.Wall, r.lease)
	r.listener.Extend(oldest.Add(r.lease))
}

// WaitInvalidated returns when all gateways have confirmed the earlier invalidations, or when their
// leases have expired.
func (r *Redis) WaitInvalidated(ctx context.Context) error {
	r.mu.Lock()
	conns := r.conns
	r.mu.Unlock()
	if len(conns) == 0 {
		if err := r.awaitAgreement(ctx); err != nil {
			return err
		}
		conns = []*conn{nil}
	}
	out := time.NewTimer(withMargin(r.lease))
	defer out.Stop()
	barriers := make([]<-chan struct{}, len(conns))
	for i, c := range conns {
		if c != nil {
			barriers[i] = c.requestBarrier().done
		}
	}
	for _, done := range barriers {
		select {
		case <-done:
		case <-out.C:
			r.waitedOut.Add(1)
			return ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.acknowledged.Add(1)
	return ctx.Err()
}
