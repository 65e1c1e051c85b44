package cache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatepost/panics"
	"gatepost/tokens"
)

var (
	errPanic = fmt.Errorf("%w: panic during a look-up", tokens.ErrUnavailable)
	errBusy  = fmt.Errorf("%w: too many concurrent look-ups", tokens.ErrUnavailable)
	errMixed = fmt.Errorf("%w: the store returned another token's session", tokens.ErrUnavailable)
)

// Lookup returns the live session of a token from the store, or tokens.ErrUnknown, or
// tokens.ErrUnavailable. It always reads the store, because the cache keeps principals only;
// [Cache.Principal] answers from memory.
func (c *Cache) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	s := c.shard(h)
	if s.isRevoking(h) {
		return nil, tokens.ErrUnknown
	}
	if !c.takeSlot() {
		return nil, errBusy
	}
	defer c.freeSlot()
	return c.lookup(ctx, s, h)
}

// takeSlot reports whether another look-up may start. If it returns true, the caller calls
// freeSlot.
func (c *Cache) takeSlot() bool {
	select {
	case c.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (c *Cache) freeSlot() { <-c.slots }

// Principal returns the principal of a live token, or tokens.ErrUnknown, or tokens.ErrUnavailable.
// A hit does not allocate.
func (c *Cache) Principal(ctx context.Context, h tokens.Hash) (tokens.Principal, error) {
	// The order matters: time, then lease, then epoch. If the lease ended and began again after the
	// time was read, the epoch was increased before, and the comparison fails.
	now := time.Now()
	held := c.tracker.Held(now)
	s := c.shard(h)
	if held {
		if principal, epoch := s.get(h); !principal.IsZero() && epoch == c.epoch.Load() {
			if principal.Live(now) {
				s.hits.Add(1)
				return principal, nil
			}
			s.dropExpired(h, now)
		}
	}
	s.misses.Add(1)
	return c.fetch(ctx, s, h, held)
}

// load is one look-up in the store, shared by all callers that need the token at the time.
type load struct {
	done      chan struct{} // closed when principal and err are set
	principal tokens.Principal
	err       error

	generation, epoch uint64 // at the time the look-up was sent
}

// fetch queries the store. Without a lease, the age of another caller's look-up is unknown, so each
// caller sends its own look-up and nothing is cached.
func (c *Cache) fetch(ctx context.Context, s *shard, h tokens.Hash, held bool) (tokens.Principal, error) {
	s.mu.Lock()
	if s.revoking[h] > 0 {
		s.mu.Unlock()
		return tokens.Principal{}, tokens.ErrUnknown
	}
	epoch := c.epoch.Load()
	f := s.loads[h]
	if held && f != nil && f.generation == s.generation && f.epoch == epoch {
		s.mu.Unlock()
		return f.wait(ctx)
	}
	if !c.takeSlot() {
		s.mu.Unlock()
		return tokens.Principal{}, errBusy
	}
	if !held {
		s.mu.Unlock()
		defer c.freeSlot()
		return c.principal(ctx, s, h)
	}
	f = &load{done: make(chan struct{}), generation: s.generation, epoch: epoch}
	s.loads[h] = f
	s.mu.Unlock()
	// The first caller may leave; the others still wait for the answer.
	go c.loadOnce(context.WithoutCancel(ctx), s, h, f)
	return f.wait(ctx)
}

func (f *load) wait(ctx context.Context) (tokens.Principal, error) {
	select {
	case <-f.done:
		return f.principal, f.err
	case <-ctx.Done():
		return tokens.Principal{}, fmt.Errorf("%w: %w", tokens.ErrUnavailable, ctx.Err())
	}
}

func (c *Cache) loadOnce(ctx context.Context, s *shard, h tokens.Hash, f *load) {
	f.principal, f.err = c.recoverPrincipal(ctx, s, h)
	c.freeSlot() // before the callers hear of the answer: one of them may ask again at once
	s.mu.Lock()
	if s.loads[h] == f {
		delete(s.loads, h)
	}
	now := time.Now()
	if f.err == nil && c.tracker.Held(now) && f.generation == s.generation && f.epoch == c.epoch.Load() {
		s.put(f.principal, f.epoch, c.maxEntries, c.maxBytes)
	}
	s.mu.Unlock()
	close(f.done)
}

// recoverPrincipal calls principal from a goroutine of the cache. It recovers a panic of the store,
// which would otherwise end the process, logs it and returns errPanic.
func (c *Cache) recoverPrincipal(ctx context.Context, s *shard, h tokens.Hash) (principal tokens.Principal, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.panics.Add(1)
			c.logger.Error("panic while a token was looked up", "panic", panics.Text(p), "stack", panics.Stack())
			principal, err = tokens.Principal{}, errPanic
		}
	}()
	return c.principal(ctx, s, h)
}

// principal makes one look-up in the store and returns the session's principal.
func (c *Cache) principal(ctx context.Context, s *shard, h tokens.Hash) (tokens.Principal, error) {
	session, err := c.lookup(ctx, s, h)
	if err != nil {
		return tokens.Principal{}, err
	}
	return session.Principal(), nil
}

// lookup makes one look-up in the store. It returns the token's session or an error of package
// tokens.
func (c *Cache) lookup(ctx context.Context, s *shard, h tokens.Hash) (*tokens.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	session, err := c.store.Lookup(ctx, h)
	switch {
	case err == nil && (session == nil || session.Hash != h):
		return nil, errMixed
	case err == nil && !session.Live(time.Now()):
		return nil, tokens.ErrUnknown
	case err != nil && !errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, tokens.ErrUnavailable):
		return nil, fmt.Errorf("%w: %w", tokens.ErrUnavailable, err)
	case err == nil && s.isRevoking(h):
		return nil, tokens.ErrUnknown // revoked here during the look-up
	}
	return session, err
}
