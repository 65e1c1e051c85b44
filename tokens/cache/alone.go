package cache

import (
	"context"
	"sync"
	"time"
)

// Alone is the tracker for a store that this process has to itself and that answers as fast as a cache would: it
// never holds a lease, so each look-up asks the store. What it does is to wait, after a revoke, for what Envoys may remember.
type Alone struct{ envoy envoyLease }

var _ Tracker = (*Alone)(nil)

// Start does nothing.
func (*Alone) Start(Listener) {}

// Held returns false.
func (*Alone) Held(time.Time) bool { return false }

// Settle waits until no Envoy can remember a decision.
func (a *Alone) Settle(ctx context.Context) error {
	return sleep(ctx, withMarginUnlessZero(a.envoy.outstanding(time.Now())))
}

// SetEnvoyLease implements [Tracker].
func (a *Alone) SetEnvoyLease(d time.Duration) { a.envoy.set(d, time.Now()) }

// EnvoyLease returns what was set.
func (a *Alone) EnvoyLease(time.Time) time.Duration { return a.envoy.current() }

// Close does nothing.
func (*Alone) Close() error { return nil }

// envoyLease is for how long Envoys may remember a decision, and for how long some may after it was made shorter.
type envoyLease struct {
	mu     sync.Mutex
	length time.Duration
	// before is a longer one, which may be in use until.
	before time.Duration
	until  time.Time
}

func (e *envoyLease) set(d time.Duration, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d = max(d, 0)
	if d < e.length {
		e.before = max(e.length, e.beforeAt(now))
		e.until = now.Add(withMargin(e.before))
	}
	e.length = d
}

// current is what may be granted.
func (e *envoyLease) current() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.length
}

// outstanding is what may have been granted and not ended.
func (e *envoyLease) outstanding(now time.Time) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return max(e.length, e.beforeAt(now))
}

func (e *envoyLease) beforeAt(now time.Time) time.Duration {
	if now.Before(e.until) {
		return e.before
	}
	return 0
}

func withMarginUnlessZero(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return withMargin(d)
}

// sleep waits for d, or returns the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
