package cache

import (
	"context"
	"time"
)

// OfflineTracker is the tracker of a process that changes the store of gateways without tracking it: a command, or a gateway
// that runs without a cache. It receives nothing from the gateways, so it holds no lease, and after a revoke it waits
// for the longest that any gateway and its Envoy may accept the token from memory.
type OfflineTracker struct {
	// Lease is the gateways' own. 0: 1 s.
	Lease time.Duration
}

var _ Tracker = OfflineTracker{}

// Start does nothing.
func (OfflineTracker) Start(Listener) {}

// Held returns false.
func (OfflineTracker) Held(time.Time) bool { return false }

// WaitInvalidated waits until what was so before can be believed by none.
func (o OfflineTracker) WaitInvalidated(ctx context.Context) error {
	return sleep(ctx, withMargin(orDefault(o.Lease, time.Second)))
}

// Close does nothing.
func (OfflineTracker) Close() error { return nil }
