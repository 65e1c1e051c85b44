package cache

import (
	"context"
	"time"
)

// Outside is the tracker of a process that changes the store of gateways without tracking it: a command, or a gateway
// that runs without a cache. It receives nothing from the gateways, so it holds no lease, and after a revoke it waits
// for the longest that any gateway and its Envoy may accept the token from memory.
type Outside struct {
	// Lease is the gateways' own. 0: 1 s.
	Lease time.Duration
}

var _ Tracker = Outside{}

// Start does nothing.
func (Outside) Start(Listener) {}

// Held returns false.
func (Outside) Held(time.Time) bool { return false }

// Settle waits until what was so before can be believed by none.
func (o Outside) Settle(ctx context.Context) error {
	return sleep(ctx, withMargin(orDefault(o.Lease, time.Second)))
}

// Close does nothing.
func (Outside) Close() error { return nil }
