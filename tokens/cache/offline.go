package cache

import (
	"context"
	"time"
)

// OfflineTracker is the tracker of a process that changes the gateways' store without tracking it:
// a command, or a gateway without a cache. It receives nothing from the gateways, so it holds no
// lease. After a revoke it waits for the longest time that a gateway or its Envoy may accept the
// token from memory.
type OfflineTracker struct {
	// Lease is the lease of the gateways. 0: 1 s.
	Lease time.Duration
}

var _ Tracker = OfflineTracker{}

// Start does nothing.
func (OfflineTracker) Start(Listener) {}

// Held returns false.
func (OfflineTracker) Held(time.Time) bool { return false }

// WaitInvalidated waits until every lease that was held at the call has expired.
func (o OfflineTracker) WaitInvalidated(ctx context.Context) error {
	return sleep(ctx, withMargin(orDefault(o.Lease, time.Second)))
}

// Close does nothing.
func (OfflineTracker) Close() error { return nil }
