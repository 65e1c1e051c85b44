package authz

import (
	"context"
	"sync"
	"time"
)

// deadlined is a context with a deadline that sets no timer until somebody waits for it. Most look-ups are
// answered from memory and never wait; a timer for each would be their dearest part.
type deadlined struct {
	parent context.Context
	at     time.Time

	mu     sync.Mutex
	timed  context.Context // nil until somebody waits
	cancel context.CancelFunc
}

// withTimeout returns a context that ends after d, or with its parent. done must be called when it is no longer used.
func withTimeout(parent context.Context, d time.Duration) *deadlined {
	at := time.Now().Add(d)
	if sooner, ok := parent.Deadline(); ok && sooner.Before(at) {
		at = sooner
	}
	return &deadlined{parent: parent, at: at}
}

// Deadline is when the context ends at the latest.
func (c *deadlined) Deadline() (time.Time, bool) { return c.at, true }

// Done sets the timer, where none is set.
func (c *deadlined) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed == nil {
		c.timed, c.cancel = context.WithDeadline(c.parent, c.at)
	}
	return c.timed.Done()
}

// Err sets no timer: it looks at the clock.
func (c *deadlined) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed != nil {
		return c.timed.Err()
	}
	if err := c.parent.Err(); err != nil {
		return err
	}
	if !time.Now().Before(c.at) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value asks the context with the timer, where there is one: by it package context finds what to tell its
// children from, and need not start a goroutine for each.
func (c *deadlined) Value(key any) any {
	c.mu.Lock()
	asked := c.timed
	c.mu.Unlock()
	if asked == nil {
		asked = c.parent
	}
	return asked.Value(key)
}

// done ends the context. Who holds on to it finds it canceled.
func (c *deadlined) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed == nil {
		c.timed, c.cancel = ended, func() {}
	}
	c.cancel()
}

var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()
