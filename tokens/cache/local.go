package cache

import (
	"context"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// LocalTracker is the tracker of a store that only this process uses and that is as fast as a
// cache. It never holds a lease, so each look-up reads the store. The store reports each ended
// token before it answers the change, so Envoy may use its table as long as this process runs.
type LocalTracker struct {
	// Store reports each ended token. Required.
	Store interface{ OnEnd(func(tokens.Hash)) }

	predecessor time.Time // until then, Envoy may use the table of a killed process before this one
	stop        context.CancelFunc
	stopped     chan struct{}
}

var _ Tracker = (*LocalTracker)(nil)

// localLease is how long Envoy uses its table after this process stops; localHeartbeat is the
// interval at which that time is extended.
const (
	localLease     = time.Second
	localHeartbeat = localLease / 4
)

// Start subscribes l to the store's reports and extends the table's validity until Close.
func (a *LocalTracker) Start(l Listener) {
	a.predecessor = time.Now().Add(withMargin(localLease))
	a.Store.OnEnd(l.Invalidate)
	ctx, cancel := context.WithCancel(context.Background())
	a.stop, a.stopped = cancel, make(chan struct{})
	go func() {
		defer close(a.stopped)
		for ctx.Err() == nil {
			l.Extend(table.Now().Add(localLease))
			_ = sleep(ctx, localHeartbeat)
		}
	}()
}

// Held returns false.
func (*LocalTracker) Held(time.Time) bool { return false }

// WaitInvalidated waits until no Envoy can use the table of a process before this one. Later it returns at once,
// because the store reports an ended token before it answers.
func (a *LocalTracker) WaitInvalidated(ctx context.Context) error {
	return sleep(ctx, time.Until(a.predecessor))
}

// Close stops to extend the table's validity.
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
