package cache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatepost/tokens"
)

// Revoke ends the session of a token. This gateway refuses the token from the call on; after Revoke
// returns nil in mode [Strict], every gateway refuses it. That takes up to a lease if a gateway or
// Redis does not answer; the context must allow for it. After an error the session may or may not
// be revoked; Revoke can be repeated.
func (c *Cache) Revoke(ctx context.Context, h tokens.Hash) error {
	mode := c.mode()
	known, _ := c.shard(h).get(h)
	defer c.refuse(h)()
	if err := c.end(ctx, h, known); err != nil {
		return err
	}
	return c.awaitInvalidation(ctx, mode)
}

// end ends the session of a token in the store. If the token was in memory, the store need not look up whose it is.
func (c *Cache) end(ctx context.Context, h tokens.Hash, known tokens.Principal) error {
	if ender, can := c.store.(tokens.Ender); can && !known.IsZero() {
		if ended, err := ender.End(ctx, known); ended || err != nil {
			return err
		}
	}
	return c.store.Revoke(ctx, h)
}

// Rotate exchanges the token old for next and waits as Revoke does. After it returns, no gateway
// accepts old for longer than the store does now, which is until its grace ends. Until the store
// has exchanged it, this gateway accepts old too: if the store is unreachable, the client has no
// other token. A context that ends after the exchange only ends the wait.
func (c *Cache) Rotate(ctx context.Context, old tokens.Hash, next tokens.Successor, grace time.Duration) (tokens.Successor, error) {
	mode := c.mode()
	given, err := c.store.Rotate(ctx, old, next, grace)
	// After an error too: the store may have exchanged it.
	c.Invalidate(old)
	if err == nil || errors.Is(err, tokens.ErrReused) { // on reuse, the store ends the newer token
		_ = c.awaitInvalidation(ctx, mode)
	}
	return given, err
}

// RevokeSession ends a session by its public id. It returns as Revoke does.
func (c *Cache) RevokeSession(ctx context.Context, user, id string) error {
	mode := c.mode()
	if err := c.store.RevokeSession(ctx, user, id); err != nil {
		return err
	}
	return c.awaitInvalidation(ctx, mode)
}

// RevokeUser ends all sessions of a user. It returns as Revoke does. If the wait fails after the
// store has ended the sessions, it returns their number with the error.
func (c *Cache) RevokeUser(ctx context.Context, user string) (int, error) {
	mode := c.mode()
	n, err := c.store.RevokeUser(ctx, user)
	if err != nil {
		return n, err
	}
	return n, c.awaitInvalidation(ctx, mode)
}

func (c *Cache) mode() Revocation { return Revocation(c.revocation.Load()) }

// awaitInvalidation waits, after the store's answer, for what the mode promises.
func (c *Cache) awaitInvalidation(ctx context.Context, mode Revocation) error {
	if mode == Prompt {
		return nil
	}
	if err := c.tracker.WaitInvalidated(ctx); err != nil {
		return fmt.Errorf("%w: waiting until no gateway can accept the token: %w", tokens.ErrUnavailable, err)
	}
	return nil
}

// refuse makes this gateway refuse the token until end is called. It removes the cached entry;
// look-ups that were sent before are neither cached nor shared.
func (c *Cache) refuse(h tokens.Hash) (end func()) {
	s := c.shard(h)
	s.mu.Lock()
	c.invalidate(s, h)
	s.revoking[h]++
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.invalidate(s, h)
		if s.revoking[h]--; s.revoking[h] == 0 {
			delete(s.revoking, h)
		}
	}
}

// isRevoking reports whether this gateway is revoking the token.
func (s *shard) isRevoking(h tokens.Hash) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revoking[h] > 0
}
