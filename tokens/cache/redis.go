package cache

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"gatepost/tokens/cache/table"

	"github.com/redis/go-redis/v9"
)

// RedisConfig says how Redis is tracked. The zero RedisConfig is a good one.
type RedisConfig struct {
	// Lease is for how long what Redis does not call back is believed after the last sign of life. All
	// gateways at one Redis must have the same. 0: 1 s. A quarter of it is the longest round trip at which the
	// tracking begins (it takes four), and three quarters the longest at which it goes on (heartbeats are a quarter apart).
	Lease time.Duration
	// Prefix is what the keys of sessions begin with; 64 hex digits follow. Empty: "gatepost:tok:".
	Prefix string
	// Sentinels are asked with each heartbeat for the master; needed where Sentinel leads the client. There is no
	// lease while they do not answer.
	Sentinels Sentinels
	// Logger is told when the tracking begins and why it ended. Nil: nobody.
	Logger *slog.Logger
}

// Redis is the tracker of a store in Redis: one connection to each master, on which Redis calls back what was
// changed (CLIENT TRACKING, RESP3, Redis 6 or later) and the gateways hear each other (the user needs the channels "gatepost:gateway*").
//
// In a cluster a lease is held only where it is held at all masters, those without slots included, and each
// of them names the same masters with each heartbeat: one that could be given a slot unheard ends it. While a master
// is down, look-ups of the other shards ask Redis.
type Redis struct {
	id        string // of this gateway among the others
	masters   func(context.Context) ([]master, error)
	sentinels Sentinels
	lease     time.Duration
	prefix    string
	log       *slog.Logger
	listener  Listener

	term  lease
	count atomic.Uint64

	mu    sync.Mutex
	conns []*conn // of the tracking that goes on, or nil

	stop    context.CancelFunc
	stopped chan struct{}
	// acknowledged and waitedOut count how revokes were proven.
	acknowledged, waitedOut atomic.Uint64
}

var _ Tracker = (*Redis)(nil)

// Track returns a tracker of the Redis that client talks to: a single one, one behind Sentinel, or a cluster. Of the
// client it uses the way of dialling and, in a cluster, the list of nodes; it must be closed after the tracker. Behind Sentinel
// and in a cluster it must be the client of the look-ups, and not have been used yet.
func Track(client redis.UniversalClient, config RedisConfig) (*Redis, error) {
	if config.Prefix == "" {
		config.Prefix = "gatepost:tok:"
	}
	masters, err := findMasters(client, config.Sentinels, config.Prefix)
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
		prefix:    config.Prefix,
		log:       config.Logger,
		stopped:   make(chan struct{}),
	}
	if r.log == nil {
		r.log = slog.New(slog.NewTextHandler(io.Discard, nil))
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

// Held says whether the lease is held.
func (r *Redis) Held(now time.Time) bool { return r.term.held(now) }

// Close ends the tracking.
func (r *Redis) Close() error {
	if r.stop != nil {
		r.stop()
		<-r.stopped
	}
	return nil
}

// How long it waits before it connects again: a Redis that returns is found within half a second.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 400 * time.Millisecond
)

// run tracks until the context ends: all masters, or it begins anew.
func (r *Redis) run(ctx context.Context) {
	defer close(r.stopped)
	pause, said := firstPause, ""
	for ctx.Err() == nil {
		began, err := r.track(ctx)
		if ctx.Err() != nil {
			return
		}
		if began {
			pause, said = firstPause, ""
			r.log.Warn("redis tracking lost: look-ups ask the store", "reason", err.Error())
		} else if said != err.Error() {
			said = err.Error() // once for each reason, not once for each try
			r.log.Warn("redis cannot be tracked: look-ups ask the store", "reason", said)
		}
		_ = sleep(ctx, pause/2+rand.N(pause/2))
		pause = min(2*pause, lastPause)
	}
}

// track connects to all masters and stays until the first connection fails. It says whether it got that far, and why it ended.
func (r *Redis) track(ctx context.Context) (began bool, err error) {
	conns, err := r.connectAll(ctx)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	first := conns[0] // the only one where Sentinel leads
	led, routes := first.master.led, first.master.routes
	// Unpinned after the lease has ended, and not before: while it may be held, no look-up can go elsewhere.
	if led != nil {
		defer func() { led.unpin(errors.Is(err, errReplaced)) }()
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
	if led != nil {
		led.pin(first.net.RemoteAddr().String(), moved)
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

// forget ends the lease and then has everything forgotten.
func (r *Redis) forget() {
	r.mu.Lock()
	r.conns = nil
	r.term.end()
	r.mu.Unlock()
	r.listener.InvalidateAll()
}

// connectAll connects to all masters at once, or to none.
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

// confirm takes an answered heartbeat of one connection, which was sent at the time sent. The lease of all is as old as
// the oldest of them.
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
			return // not all have been heard yet
		}
		if other.confirmed.Wall.Before(oldest.Wall) {
			oldest = other.confirmed
		}
		if other.master.led != nil && other.named.Wall.Before(oldest.Wall) {
			oldest = other.named
		}
	}
	// A lease that ran out, if for a moment only, is a gap: what was called back in it may be on its way still.
	if now := time.Now(); !r.term.held(now) {
		if !now.Before(oldest.Wall.Add(r.lease)) {
			return // it could not be held now either
		}
		r.listener.InvalidateAll()
	}
	r.term.extend(oldest.Wall, r.lease)
	r.listener.Extend(oldest.Add(r.lease))
}

// WaitInvalidated returns when all gateways have said that they heard what was changed before, or when their leases have run out.
func (r *Redis) WaitInvalidated(ctx context.Context) error {
	r.mu.Lock()
	conns := r.conns
	r.mu.Unlock()
	out := time.NewTimer(withMargin(r.lease))
	defer out.Stop()
	if len(conns) == 0 {
		conns = []*conn{nil}
	}
	settlings := make([]<-chan struct{}, len(conns))
	for i, c := range conns {
		if c != nil {
			settlings[i] = c.settle().done
		}
	}
	for _, done := range settlings {
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
