package cache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatepost/tokens"
)

// Revoke ends the session of a token. From its call on the token opens nothing here; when it returns nil and
// the mode is [Proven], it opens nothing at any gateway. That may take as long as a lease if a gateway
// or Redis does not answer; the context should allow for it. A revoke that ended with an error may have
// happened or not: it can be repeated.
func (c *Cache) Revoke(ctx context.Context, h tokens.Hash) error {
	mode := c.mode()
	defer c.refuse(h)()
	if err := c.store.Revoke(ctx, h); err != nil {
		return err
	}
	return c.settle(ctx, mode)
}

// Rotate exchanges the token old for next, and waits as Revoke does: when it returns, no gateway keeps old for longer than
// the store says now, which is until its grace ends. Until the store has exchanged it, old is as live as it was, here too:
// if the store is out of reach, it is the only token that the client has. A context that ends after the exchange ends the
// waiting only.
func (c *Cache) Rotate(ctx context.Context, old tokens.Hash, next tokens.Successor, grace time.Duration) (tokens.Successor, error) {
	mode := c.mode()
	given, err := c.store.Rotate(ctx, old, next, grace)
	// After an error too: it may have happened.
	c.Invalidate(old)
	if err == nil || errors.Is(err, tokens.ErrReused) { // reused: the session's newer token was ended
		_ = c.settle(ctx, mode)
	}
	return given, err
}

// RevokeSession ends a session by its public id. It returns as Revoke does.
func (c *Cache) RevokeSession(ctx context.Context, user, id string) error {
	mode := c.mode()
	if err := c.store.RevokeSession(ctx, user, id); err != nil {
		return err
	}
	return c.settle(ctx, mode)
}

// RevokeUser ends all sessions of a user. It returns as Revoke does; where it fails after the store has ended
// them, it returns their number beside the error.
func (c *Cache) RevokeUser(ctx context.Context, user string) (int, error) {
	mode := c.mode()
	n, err := c.store.RevokeUser(ctx, user)
	if err != nil {
		return n, err
	}
	return n, c.settle(ctx, mode)
}

func (c *Cache) mode() Revocation { return Revocation(c.revocation.Load()) }

// settle waits, after the store's answer, for what the mode promises.
func (c *Cache) settle(ctx context.Context, mode Revocation) error {
	if mode == Prompt {
		return nil
	}
	if err := c.tracker.WaitInvalidated(ctx); err != nil {
		return fmt.Errorf("%w: waiting until no gateway can accept the token: %w", tokens.ErrUnavailable, err)
	}
	return nil
}

// refuse has this gateway refuse the token until the returned function is called: its entry is gone, and the
// look-ups that were sent before are neither kept nor joined.
func (c *Cache) refuse(h tokens.Hash) (end func()) {
	s := c.shard(h)
	s.mu.Lock()
	c.callBack(s, h)
	s.revoking[h]++
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.callBack(s, h)
		if s.revoking[h]--; s.revoking[h] == 0 {
			delete(s.revoking, h)
		}
	}
}

// isEnding says whether this gateway is revoking the token.
func (s *shard) isEnding(h tokens.Hash) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revoking[h] > 0
}
