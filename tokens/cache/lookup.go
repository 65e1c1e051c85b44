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
	errPanic = fmt.Errorf("%w: panic in a look-up", tokens.ErrUnavailable)
	errBusy  = fmt.Errorf("%w: too many look-ups under way", tokens.ErrUnavailable)
	errMixed = fmt.Errorf("%w: it answered with another token's session", tokens.ErrUnavailable)
)

// Lookup returns the live session of a token as the store has it, or tokens.ErrUnknown, or tokens.ErrUnavailable.
// From memory [Cache.Principal] answers: of all that is known of a session, that is what is kept.
func (c *Cache) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	s := c.shard(h)
	if s.isEnding(h) {
		return nil, tokens.ErrUnknown
	}
	if !c.takeSlot() {
		return nil, errBusy
	}
	defer c.freeSlot()
	return c.lookup(ctx, s, h)
}

// takeSlot says whether one more look-up may be under way; who took a slot frees it.
func (c *Cache) takeSlot() bool {
	select {
	case c.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (c *Cache) freeSlot() { <-c.slots }

// Principal returns who holds a token that is live, or tokens.ErrUnknown, or tokens.ErrUnavailable. A hit allocates nothing.
func (c *Cache) Principal(ctx context.Context, h tokens.Hash) (tokens.Principal, error) {
	// The order matters: the time first, then the lease, then the epoch. Where the lease ended and began again
	// after the time was read, the epoch has been counted up before, and is seen here.
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
	return c.ask(ctx, s, h, held)
}

// load is one look-up in the store on behalf of all who ask for the token meanwhile.
type load struct {
	done      chan struct{} // closed when the two below are set
	principal tokens.Principal
	err       error

	generation, epoch uint64 // when it was sent
}

// ask asks the store. Where no lease is held, nobody could say how old the answer of another's look-up is:
// then each asks for itself, and keeps nothing.
func (c *Cache) ask(ctx context.Context, s *shard, h tokens.Hash, held bool) (tokens.Principal, error) {
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
	// Whoever asked first may go away; the others wait for the same answer.
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
	defer c.freeSlot()
	f.principal, f.err = c.guardedHolder(ctx, s, h)
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

// guardedHolder is principal for a goroutine of the cache's own. A panic of the store would end the process there; it is
// logged, and an error.
func (c *Cache) guardedHolder(ctx context.Context, s *shard, h tokens.Hash) (principal tokens.Principal, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.panics.Add(1)
			c.logger.Error("panic while a token was looked up", "panic", panics.Text(p), "stack", panics.Stack())
			principal, err = tokens.Principal{}, errPanic
		}
	}()
	return c.principal(ctx, s, h)
}

// principal makes one look-up in the store, and takes of its answer what is kept.
func (c *Cache) principal(ctx context.Context, s *shard, h tokens.Hash) (tokens.Principal, error) {
	session, err := c.lookup(ctx, s, h)
	if err != nil {
		return tokens.Principal{}, err
	}
	return session.Principal(), nil
}

// lookup makes one look-up in the store, whose answer is the token's or an error of package tokens.
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
	case err == nil && s.isEnding(h):
		return nil, tokens.ErrUnknown // revoked here since it was asked for
	}
	return session, err
}
