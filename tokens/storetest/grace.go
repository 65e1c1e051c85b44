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

// long is a grace that no test outlasts.
const long = time.Hour

// exchange rotates a token with a grace and fails the test if that fails.
func (s store) exchange(current *tokens.Session, grace time.Duration) *tokens.Session {
	s.t.Helper()
	next := current.Renewed(NewHash(s.t), time.Now(), time.Hour)
	s.exchangeFor(current.Hash, next, grace, next)
	return next
}

// exchangeFor rotates a token, offers next, and fails the test unless it is given want.
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

// opensAs fails the test unless the token opens the session, as another of its tokens.
func (s store) opensAs(h tokens.Hash, session *tokens.Session) {
	s.t.Helper()
	got, err := s.Lookup(s.t.Context(), h)
	if err != nil {
		s.t.Errorf("a token in its grace: %v", err)
		return
	}
	if diff := cmp.Diff(session, got, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(tokens.Session{}, "Hash", "Expires")); diff != "" || got.Hash != h {
		s.t.Errorf("a token in its grace opens another session:\n%s", diff)
	}
}

// isReused fails the test unless the rotation of the token is a reuse, which ended the session.
func (s store) isReused(old *tokens.Session, ended ...*tokens.Session) {
	s.t.Helper()
	thief := old.Renewed(NewHash(s.t), time.Now(), time.Hour)
	if given, err := s.Rotate(s.t.Context(), old.Hash, Successor(thief), long); !errors.Is(err, tokens.ErrReused) || given.Session != nil {
		s.t.Errorf("refreshing an old token: %+v, %v", given, err)
	}
	for _, one := range append(ended, old, thief) {
		s.refused(one.Hash)
	}
}

func grace(t *testing.T, s store) {
	old := s.create(New(t, "ann"))
	s.opens(old)
	next := s.exchange(old, long)
	for range 3 {
		s.opensAs(old.Hash, next)
		s.opens(next)
		s.lists("ann", next)
		s.exchangeFor(old.Hash, old.Renewed(NewHash(t), time.Now(), time.Hour), long, next)
	}
	// What is offered is not looked at, let alone kept.
	stranger := New(t, "bob")
	s.exchangeFor(old.Hash, stranger, 0, next)
	s.refused(stranger.Hash)
	s.opensAs(old.Hash, next)
	s.opens(next)
}

// graceBeyondExpiry is of a client that refreshes shortly before its token expires, gets no answer, and tries again.
func graceBeyondExpiry(t *testing.T, s store) {
	var old, next *tokens.Session
	for lifetime := 100 * time.Millisecond; next == nil; lifetime *= 2 { // until the machine is fast enough
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
	eventually(t, "an expired token is refused in its grace, too", func() bool {
		_, err := s.Lookup(t.Context(), old.Hash)
		return errors.Is(err, tokens.ErrUnknown)
	})
	s.exchangeFor(old.Hash, New(t, "bob"), long, next)
	s.refused(old.Hash)
	s.opens(next)
	if err := s.Revoke(t.Context(), old.Hash); err != nil {
		t.Fatal(err)
	}
	s.refused(next.Hash)
	s.lists("ann")
	if given, err := s.Rotate(t.Context(), old.Hash, Successor(New(t, "bob")), long); err == nil {
		t.Errorf("after the end of the session: %+v", given)
	}
}

// graceEnds shows the deadline by the clock: an answer is right if it was right at some time between the question and it.
func graceEnds(t *testing.T, s store) {
	const length = 200 * time.Millisecond
	old := s.create(New(t, "ann"))
	from := time.Now()
	next := s.exchange(old, length)
	to := time.Now()
	eventually(t, "a token is refused after its grace", func() bool {
		asked := time.Now()
		got, err := s.Lookup(t.Context(), old.Hash)
		switch {
		case err == nil && got.Expires.After(to.Add(length)):
			t.Errorf("it is said to live for %v beyond its grace", got.Expires.Sub(to.Add(length)))
		case err == nil && asked.After(to.Add(length)):
			t.Errorf("it is accepted %v after its grace", asked.Sub(to.Add(length)))
		case errors.Is(err, tokens.ErrUnknown) && time.Now().Before(from.Add(length-time.Millisecond)): // times are whole milliseconds
			t.Error("it is refused before the end of its grace")
		}
		return errors.Is(err, tokens.ErrUnknown)
	})
	s.opens(next)
	s.lists("ann", next)
	s.isReused(old, next)
	s.lists("ann")
}

func graceOfOneGeneration(t *testing.T, s store) {
	first := s.create(New(t, "ann"))
	second := s.exchange(first, long)
	third := s.exchange(second, long)
	s.refused(first.Hash)
	s.opensAs(second.Hash, third)
	s.opens(third)
	s.lists("ann", third)
	s.exchangeFor(second.Hash, second.Renewed(NewHash(t), time.Now(), time.Hour), long, third)
	s.isReused(first, second, third)
	s.lists("ann")

	// A successor that was exchanged without a grace is no less exchanged.
	first = s.create(New(t, "ann"))
	second = s.exchange(first, long)
	third = s.exchange(second, 0)
	s.refused(first.Hash)
	s.refused(second.Hash)
	s.opens(third)
	s.isReused(first, second, third)
	s.lists("ann")
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

// ends are the ways to end the session of two tokens, by name.
func (s store) ends() map[string]func(old, next *tokens.Session) error {
	ctx := s.t.Context()
	return map[string]func(old, next *tokens.Session) error{
		"a revoke of the old token": func(old, _ *tokens.Session) error { return s.Revoke(ctx, old.Hash) },
		"a revoke of the new token": func(_, next *tokens.Session) error { return s.Revoke(ctx, next.Hash) },
		"an end by the owner":       func(old, _ *tokens.Session) error { return s.RevokeSession(ctx, "ann", old.ID) },
		"an end by the id":          func(old, _ *tokens.Session) error { return s.RevokeSession(ctx, "", old.ID) },
		"an end of all of ann's":    func(*tokens.Session, *tokens.Session) error { return second(s.RevokeUser(ctx, "ann")) },
		"a login that was one too many": func(*tokens.Session, *tokens.Session) error {
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
		s.opensAs(old.Hash, next) // and is in memory, where a store has one
		s.opens(next)
		if end == nil {
			s.isReused(first)
		} else if err := end(old, next); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.refused(old.Hash)
		s.refused(next.Hash)
		for _, one := range []*tokens.Session{old, next} {
			thief := one.Renewed(NewHash(t), time.Now(), time.Hour)
			given, err := s.Rotate(t.Context(), one.Hash, Successor(thief), long)
			if !errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, tokens.ErrReused) || given.Session != nil {
				t.Errorf("refreshing after %s: %+v, %v", name, given, err)
			}
			s.refused(thief.Hash)
		}
		if n, err := s.RevokeUser(t.Context(), "ann"); err != nil || n > 1 {
			t.Errorf("after %s %d sessions were left, %v", name, n, err)
		}
		s.lists("ann")
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
		s.opens(next)
		s.opensAs(old.Hash, next)
		s.lists("ann", next)
		if n, err := s.RevokeUser(t.Context(), "ann"); n != 1 || err != nil {
			t.Errorf("ended %d sessions, %v", n, err)
		}
		s.refused(next.Hash)
		s.refused(old.Hash)
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
			s.refused(one.Hash)
		}
		s.lists("ann")
	}
}

func graceCountsOnce(t *testing.T, s store) {
	oldest := s.create(New(t, "ann"))
	middle := s.create(NewLasting(t, "ann", time.Hour+time.Minute))
	// Refreshed last, it is the newest, though its first token expires first.
	next := oldest.Renewed(NewHash(t), time.Now(), time.Hour+2*time.Minute)
	s.exchangeFor(oldest.Hash, next, long, next)
	third := NewLasting(t, "ann", time.Hour+3*time.Minute)
	if err := s.Create(t.Context(), third, 3); err != nil {
		t.Fatal(err)
	}
	for _, one := range []*tokens.Session{middle, next, third} {
		s.opens(one)
	}
	s.opensAs(oldest.Hash, next)
	fourth := NewLasting(t, "ann", time.Hour+4*time.Minute)
	if err := s.Create(t.Context(), fourth, 3); err != nil {
		t.Fatal(err)
	}
	s.refused(middle.Hash)
	s.opens(next)
	s.opensAs(oldest.Hash, next)
	if n, err := s.RevokeUser(t.Context(), "ann"); n != 3 || err != nil {
		t.Errorf("ended %d sessions of 3, %v", n, err)
	}
	for _, one := range []*tokens.Session{oldest, next, third, fourth} {
		s.refused(one.Hash)
	}
}
