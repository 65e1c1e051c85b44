package storetest

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"gatepost/tokens"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// long is a grace that outlasts every test.
const long = time.Hour

// exchange rotates a token with a grace and fails the test if that fails.
func (s store) exchange(current *tokens.Session, grace time.Duration) *tokens.Session {
	s.t.Helper()
	next := current.Renewed(NewHash(s.t), time.Now(), time.Hour)
	s.exchangeFor(current.Hash, next, grace, next)
	return next
}

// exchangeFor rotates a token, offers next, and fails the test unless the store returns want.
func (s store) exchangeFor(old tokens.Hash, next *tokens.Session, grace time.Duration, want *tokens.Session) {
	s.t.Helper()
	given, err := s.Rotate(s.t.Context(), old, Successor(next), grace)
	if err != nil {
		s.t.Fatalf("refreshing: %v", err)
	}
	if diff := cmp.Diff(Successor(want), given, cmpopts.EquateEmpty()); diff != "" {
		s.t.Errorf("another successor:\n%s", diff)
	}
}

// assertLiveAs fails the test unless the token, another one of the session, is live.
func (s store) assertLiveAs(h tokens.Hash, session *tokens.Session) {
	s.t.Helper()
	got, err := s.Lookup(s.t.Context(), h)
	if err != nil {
		s.t.Errorf("a token in its grace: %v", err)
		return
	}
	if diff := cmp.Diff(session, got, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(tokens.Session{}, "Hash", "Expires")); diff != "" || got.Hash != h {
		s.t.Errorf("a token in its grace returns another session:\n%s", diff)
	}
}

// assertReused fails the test unless rotating the token is a reuse that ended the session.
func (s store) assertReused(old *tokens.Session, ended ...*tokens.Session) {
	s.t.Helper()
	thief := old.Renewed(NewHash(s.t), time.Now(), time.Hour)
	if given, err := s.Rotate(s.t.Context(), old.Hash, Successor(thief), long); !errors.Is(err, tokens.ErrReused) || given.Session != nil {
		s.t.Errorf("refreshing an old token: %+v, %v", given, err)
	}
	for _, one := range append(ended, old, thief) {
		s.assertRefused(one.Hash)
	}
}

func grace(t *testing.T, s store) {
	old := s.create(New(t, "ann"))
	s.assertLive(old)
	next := s.exchange(old, long)
	for range 3 {
		s.assertLiveAs(old.Hash, next)
		s.assertLive(next)
		s.assertListed("ann", next)
		s.exchangeFor(old.Hash, old.Renewed(NewHash(t), time.Now(), time.Hour), long, next)
	}
	// The offered session is ignored.
	stranger := New(t, "bob")
	s.exchangeFor(old.Hash, stranger, 0, next)
	s.assertRefused(stranger.Hash)
	s.assertLiveAs(old.Hash, next)
	s.assertLive(next)
}

// graceBeyondExpiry covers a client that refreshes just before its token expires, gets no answer,
// and retries.
func graceBeyondExpiry(t *testing.T, s store) {
	var old, next *tokens.Session
	// until the lifetime is long enough for this machine
	for lifetime := 100 * time.Millisecond; next == nil; lifetime *= 2 {
		old = NewLasting(t, "ann", lifetime)
		if err := s.Create(t.Context(), old, 0); errors.Is(err, tokens.ErrInvalid) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		offered := old.Renewed(NewHash(t), time.Now(), time.Hour)
		switch _, err := s.Rotate(t.Context(), old.Hash, Successor(offered), long); {
		case err == nil:
			next = offered
		case !errors.Is(err, tokens.ErrUnknown) || old.Live(time.Now()):
			t.Fatalf("refreshing: %v", err)
		}
	}
	eventually(t, "an expired token is refused in its grace too", func() bool {
		_, err := s.Lookup(t.Context(), old.Hash)
		return errors.Is(err, tokens.ErrUnknown)
	})
	s.exchangeFor(old.Hash, New(t, "bob"), long, next)
	s.assertRefused(old.Hash)
	s.assertLive(next)
	if err := s.Revoke(t.Context(), old.Hash); err != nil {
		t.Fatal(err)
	}
	s.assertRefused(next.Hash)
	s.assertListed("ann")
	if given, err := s.Rotate(t.Context(), old.Hash, Successor(New(t, "bob")), long); err == nil {
		t.Errorf("after the end of the session: %+v", given)
	}
}

// graceEnds checks the deadline by the clock. An answer is correct if it was correct at some time
// during the call.
func graceEnds(t *testing.T, s store) {
	const length = 200 * time.Millisecond
	old := s.create(New(t, "ann"))
	from := time.Now()
	next := s.exchange(old, length)
	to := time.Now()
	eventually(t, "a token is refused after its grace", func() bool {
		called := time.Now()
		got, err := s.Lookup(t.Context(), old.Hash)
		switch {
		case err == nil && got.Expires.After(to.Add(length)):
			t.Errorf("the expiry is %v after the end of the grace", got.Expires.Sub(to.Add(length)))
		case err == nil && called.After(to.Add(length)):
			t.Errorf("the token is accepted %v after its grace", called.Sub(to.Add(length)))
		case errors.Is(err, tokens.ErrUnknown) && time.Now().Before(from.Add(length-time.Millisecond)): // times are whole milliseconds
			t.Error("the token is refused before the end of its grace")
		}
		return errors.Is(err, tokens.ErrUnknown)
	})
	s.assertLive(next)
	s.assertListed("ann", next)
	s.assertReused(old, next)
	s.assertListed("ann")
}

func graceOfOneGeneration(t *testing.T, s store) {
	first := s.create(New(t, "ann"))
	second := s.exchange(first, long)
	third := s.exchange(second, long)
	s.assertRefused(first.Hash)
	s.assertLiveAs(second.Hash, third)
	s.assertLive(third)
	s.assertListed("ann", third)
	s.exchangeFor(second.Hash, second.Renewed(NewHash(t), time.Now(), time.Hour), long, third)
	s.assertReused(first, second, third)
	s.assertListed("ann")

	// A successor that was exchanged without a grace counts as exchanged too.
	first = s.create(New(t, "ann"))
	second = s.exchange(first, long)
	third = s.exchange(second, 0)
	s.assertRefused(first.Hash)
	s.assertRefused(second.Hash)
	s.assertLive(third)
	s.assertReused(first, second, third)
	s.assertListed("ann")
}

func graceWithinLives(t *testing.T, s store) {
	old := s.create(NewLasting(t, "ann", time.Minute))
	s.exchange(old, long)
	if got, err := s.Lookup(t.Context(), old.Hash); err != nil || !got.Expires.Equal(old.Expires) {
		t.Errorf("a grace beyond the token's own life: %+v, %v", got, err)
	}
	old = s.create(New(t, "ann"))
	next := old.Renewed(NewHash(t), time.Now(), time.Minute)
	s.exchangeFor(old.Hash, next, long, next)
	if got, err := s.Lookup(t.Context(), old.Hash); err != nil || !got.Expires.Equal(next.Expires) {
		t.Errorf("a grace beyond the successor's life: %+v, %v", got, err)
	}
}

// ends returns the ways to end a session with two tokens, by name.
func (s store) ends() map[string]func(old, next *tokens.Session) error {
	ctx := s.t.Context()
	return map[string]func(old, next *tokens.Session) error{
		"a revoke of the old token": func(old, _ *tokens.Session) error { return s.Revoke(ctx, old.Hash) },
		"a revoke of the new token": func(_, next *tokens.Session) error { return s.Revoke(ctx, next.Hash) },
		"an end by the owner":       func(old, _ *tokens.Session) error { return s.RevokeSession(ctx, "ann", old.ID) },
		"an end by the id":          func(old, _ *tokens.Session) error { return s.RevokeSession(ctx, "", old.ID) },
		"a logout of the user":      func(*tokens.Session, *tokens.Session) error { return second(s.RevokeUser(ctx, "ann")) },
		"a login over the limit": func(*tokens.Session, *tokens.Session) error {
			return s.Create(ctx, NewLasting(s.t, "ann", 2*time.Hour), 1)
		},
		"a reuse of the token before it": nil,
	}
}

func graceAgainstEnds(t *testing.T, s store) {
	for name, end := range s.ends() {
		first := s.create(New(t, "ann"))
		old := s.exchange(first, long)
		next := s.exchange(old, long)
		s.assertLiveAs(old.Hash, next) // also loads it into a cache
		s.assertLive(next)
		if end == nil {
			s.assertReused(first)
		} else if err := end(old, next); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.assertRefused(old.Hash)
		s.assertRefused(next.Hash)
		for _, one := range []*tokens.Session{old, next} {
			thief := one.Renewed(NewHash(t), time.Now(), time.Hour)
			given, err := s.Rotate(t.Context(), one.Hash, Successor(thief), long)
			if !errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, tokens.ErrReused) || given.Session != nil {
				t.Errorf("refreshing after %s: %+v, %v", name, given, err)
			}
			s.assertRefused(thief.Hash)
		}
		if n, err := s.RevokeUser(t.Context(), "ann"); err != nil || n > 1 {
			t.Errorf("after %s, %d sessions are live, %v", name, n, err)
		}
		s.assertListed("ann")
	}
}

func graceRace(t *testing.T, s store) {
	for range 10 {
		old := s.create(New(t, "ann"))
		given := make([]tokens.Successor, 8)
		errs := make([]error, len(given))
		var wg sync.WaitGroup
		for i := range given {
			next := Successor(old.Renewed(NewHash(t), time.Now(), time.Hour))
			wg.Go(func() { given[i], errs[i] = s.Rotate(t.Context(), old.Hash, next, long) })
		}
		wg.Wait()
		for i, err := range errs {
			switch {
			case err != nil:
				t.Fatalf("refreshing: %v", err)
			case given[i].Session.Hash != given[0].Session.Hash || !bytes.Equal(given[i].Token, given[0].Token):
				t.Error("two callers got two tokens")
			}
		}
		next := given[0].Session
		s.assertLive(next)
		s.assertLiveAs(old.Hash, next)
		s.assertListed("ann", next)
		if n, err := s.RevokeUser(t.Context(), "ann"); n != 1 || err != nil {
			t.Errorf("ended %d sessions, %v", n, err)
		}
		s.assertRefused(next.Hash)
		s.assertRefused(old.Hash)
	}
}

func graceRaceAgainstEnd(t *testing.T, s store) {
	ways := []func(*tokens.Session) error{
		func(*tokens.Session) error { return second(s.RevokeUser(t.Context(), "ann")) },
		func(o *tokens.Session) error { return known(s.RevokeSession(t.Context(), "ann", o.ID)) },
		func(o *tokens.Session) error { return s.Revoke(t.Context(), o.Hash) },
	}
	for i := range 60 {
		old := s.create(New(t, "ann"))
		offered := make([]*tokens.Session, 3)
		var wg sync.WaitGroup
		for i := range offered {
			offered[i] = old.Renewed(NewHash(t), time.Now(), time.Hour)
			wg.Go(func() {
				_, err := s.Rotate(t.Context(), old.Hash, Successor(offered[i]), long)
				if err != nil && !errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, tokens.ErrReused) {
					t.Errorf("refreshing: %v", err)
				}
			})
		}
		wg.Go(func() {
			time.Sleep(time.Duration(i/len(ways)) * 80 * time.Microsecond)
			if err := ways[i%len(ways)](old); err != nil {
				t.Errorf("ending: %v", err)
			}
		})
		wg.Wait()
		for _, one := range append(offered, old) {
			s.assertRefused(one.Hash)
		}
		s.assertListed("ann")
	}
}

func graceCountsOnce(t *testing.T, s store) {
	oldest := s.create(New(t, "ann"))
	middle := s.create(NewLasting(t, "ann", time.Hour+time.Minute))
	// This session was refreshed last, so it is the newest, although its first token expires first.
	next := oldest.Renewed(NewHash(t), time.Now(), time.Hour+2*time.Minute)
	s.exchangeFor(oldest.Hash, next, long, next)
	third := NewLasting(t, "ann", time.Hour+3*time.Minute)
	if err := s.Create(t.Context(), third, 3); err != nil {
		t.Fatal(err)
	}
	for _, one := range []*tokens.Session{middle, next, third} {
		s.assertLive(one)
	}
	s.assertLiveAs(oldest.Hash, next)
	fourth := NewLasting(t, "ann", time.Hour+4*time.Minute)
	if err := s.Create(t.Context(), fourth, 3); err != nil {
		t.Fatal(err)
	}
	s.assertRefused(middle.Hash)
	s.assertLive(next)
	s.assertLiveAs(oldest.Hash, next)
	if n, err := s.RevokeUser(t.Context(), "ann"); n != 3 || err != nil {
		t.Errorf("ended %d sessions of 3, %v", n, err)
	}
	for _, one := range []*tokens.Session{oldest, next, third, fourth} {
		s.assertRefused(one.Hash)
	}
}
