package cache

import (
	"context"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// LocalTracker is the tracker of a store that this process has to itself and that answers as fast as a cache would: it never holds a
// lease, so each look-up asks the store. The store reports each token that it ends before the change is
// answered, so Envoy may decide by itself for as long as the process runs.
type LocalTracker struct {
	// Store reports what it ends. Required.
	Store interface{ OnEnd(func(tokens.Hash)) }

	stop    context.CancelFunc
	stopped chan struct{}
}

var _ Tracker = (*LocalTracker)(nil)

// How long Envoy goes on by itself if this process stands still, and how often it is told that it does not.
const (
	aloneLease = time.Second
	aloneBeat  = aloneLease / 4
)

// Start begins to report what the store ends, and to extend what Envoys may use.
func (a *LocalTracker) Start(l Listener) {
	a.Store.OnEnd(l.Invalidate)
	ctx, cancel := context.WithCancel(context.Background())
	a.stop, a.stopped = cancel, make(chan struct{})
	go func() {
		defer close(a.stopped)
		for ctx.Err() == nil {
			l.Extend(table.Now().Add(aloneLease))
			_ = sleep(ctx, aloneBeat)
		}
	}()
}

// Held returns false.
func (*LocalTracker) Held(time.Time) bool { return false }

// WaitInvalidated returns at once: what the store has ended was reported before it answered.
func (*LocalTracker) WaitInvalidated(ctx context.Context) error { return ctx.Err() }

// Close ends the reports.
func (a *LocalTracker) Close() error {
	if a.stop != nil {
		a.stop()
		<-a.stopped
	}
	return nil
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
