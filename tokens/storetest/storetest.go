// Package storetest decides what a correct token store is. Every store must pass its suite, [Run].
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/tokens"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
)

// patience is how long the suite waits for an expected event on a busy machine.
const patience = 5 * time.Minute

// New mints a token and returns a session of user: an hour for the token, a day for the session.
func New(t testing.TB, user string) *tokens.Session {
	t.Helper()
	return NewLasting(t, user, time.Hour)
}

// NewLasting is [New] with another lifetime of the token.
func NewLasting(t testing.TB, user string, lifetime time.Duration) *tokens.Session {
	t.Helper()
	s, err := tokens.NewSession(NewHash(t), user, []string{"read", "write"}, time.Now(), lifetime, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.ClientAddress, s.UserAgent = "192.0.2.7", "curl/8.9"
	return s
}

// NewHash returns the hash of a new token.
func NewHash(t testing.TB) tokens.Hash {
	t.Helper()
	token, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		t.Fatal(err)
	}
	return token.Hash()
}

// Successor returns the session with a placeholder for its sealed token.
func Successor(next *tokens.Session) tokens.Successor {
	return tokens.Successor{Session: next, Token: append(tokens.Sealed("sealed "), next.Hash[:]...)}
}

// Run tests the contract of [tokens.Store]. open returns an empty store; the suite closes it.
func Run(t *testing.T, open func(t *testing.T) tokens.Store) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, s store)
	}{
		{"a created session is found unchanged", foundAndWhole},
		{"a session that was never created is unknown", unknown},
		{"invalid sessions are refused", invalid},
		{"unusual user names work", oddNames},
		{"a session expires", expires},
		{"a revoked token is refused", revoked},
		{"revoking an unknown token is not an error", revokingUnknown},
		{"sessions are listed, the newest first", listed},
		{"a session is ended by its public id", endedByID},
		{"only the owner can end a session", endedByOwner},
		{"all sessions of a user are ended", endedByUser},
		{"over the limit, the sessions that expire first end", limited},
		{"a rotated token is refused and the new one accepted", rotated},
		{"a token rotated twice ends its session", reused},
		{"a rotated token still ends its session by a revoke", revokedByOld},
		{"rotations that fail have distinct errors", notRotated},
		{"at most one of many concurrent rotations succeeds", rotationRace},
		{"ending a user's sessions includes those in a refresh", rotationAgainstEnd},
		{"in its grace a rotated token is live and gets the same successor", grace},
		{"a grace ends at its deadline", graceEnds},
		{"a grace ends when the successor is rotated", graceOfOneGeneration},
		{"a grace ends with either token's expiry", graceWithinLives},
		{"a token that expired in its grace still gets its successor", graceBeyondExpiry},
		{"every end of a session ends the grace", graceAgainstEnds},
		{"all concurrent rotations in a grace get one successor", graceRace},
		{"an end during rotations in a grace ends both tokens", graceRaceAgainstEnd},
		{"a session in its grace counts once, by its newer token", graceCountsOnce},
		{"ending a user's sessions leaves no live session unlisted", creationAgainstEnd},
		{"concurrent logins respect the limit", limitRace},
		{"concurrent use mixes no sessions", concurrentUse},
		{"the last use of a session is stored", touched},
		{"a call with an ended context is unavailable", contextEnded},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := store{open(t), t}
			defer func() {
				if err := s.Close(); err != nil {
					t.Errorf("closing: %v", err)
				}
			}()
			c.test(t, s)
		})
	}
}

// store is the store under test with the helpers of the tests.
type store struct {
	tokens.Store
	t *testing.T
}

func (s store) create(session *tokens.Session) *tokens.Session {
	s.t.Helper()
	if err := s.Create(s.t.Context(), session, 0); err != nil {
		s.t.Fatalf("creating a session: %v", err)
	}
	return session
}

// rotate exchanges a token without a grace.
func (s store) rotate(old tokens.Hash, next *tokens.Session) error {
	_, err := s.Rotate(s.t.Context(), old, Successor(next), 0)
	return err
}

// assertLive fails the test unless the session's token is live and the session unchanged.
func (s store) assertLive(session *tokens.Session) {
	s.t.Helper()
	got, err := s.Lookup(s.t.Context(), session.Hash)
	if err != nil {
		s.t.Errorf("a live token: %v", err)
		return
	}
	if diff := cmp.Diff(session, got, cmpopts.EquateEmpty()); diff != "" {
		s.t.Errorf("the session has changed:\n%s", diff)
	}
}

// assertRefused fails the test unless the token is unknown.
func (s store) assertRefused(h tokens.Hash) {
	s.t.Helper()
	if got, err := s.Lookup(s.t.Context(), h); !errors.Is(err, tokens.ErrUnknown) || errors.Is(err, tokens.ErrUnavailable) || got != nil {
		s.t.Errorf("a token that must be refused: %+v, %v", got, err)
	}
}

// list returns the ids of a user's sessions, in the store's order.
func (s store) list(user string) []string {
	s.t.Helper()
	sessions, err := s.Sessions(s.t.Context(), user)
	if err != nil {
		s.t.Fatalf("listing sessions: %v", err)
	}
	ids := []string{}
	for _, one := range sessions {
		if one.User != user {
			s.t.Fatalf("the list of %q has a session of %q", user, one.User)
		}
		ids = append(ids, one.ID)
	}
	return ids
}

func (s store) assertListed(user string, sessions ...*tokens.Session) {
	s.t.Helper()
	want := []string{}
	for _, one := range sessions {
		want = append(want, one.ID)
	}
	if diff := cmp.Diff(want, s.list(user)); diff != "" {
		s.t.Errorf("the sessions of %.20q:\n%s", user, diff)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func foundAndWhole(t *testing.T, s store) {
	one, two := s.create(New(t, "ann")), s.create(New(t, "ann"))
	plain := New(t, "bob")
	plain.Scopes, plain.ClientAddress, plain.UserAgent = nil, "", ""
	s.create(plain)
	for range 2 {
		s.assertLive(one)
		s.assertLive(two)
		s.assertLive(plain)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
}

func unknown(t *testing.T, s store) {
	s.assertRefused(NewHash(t))
	s.assertRefused(tokens.Hash{})
	s.assertListed("nobody")
	s.assertListed("")
	if n, err := s.RevokeUser(t.Context(), "nobody"); n != 0 || err != nil {
		t.Errorf("ended %d sessions of an unknown user, %v", n, err)
	}
	for _, id := range []string{uuid.NewString(), "", "x", "*", "../..", strings.Repeat("a", 10_000)} {
		for _, user := range []string{"", "ann"} {
			if err := s.RevokeSession(t.Context(), user, id); !errors.Is(err, tokens.ErrUnknown) {
				t.Errorf("ending the session %.20q of %q: %v", id, user, err)
			}
		}
	}
}

func invalid(t *testing.T, s store) {
	for name, change := range map[string]func(*tokens.Session){
		"no user":      func(o *tokens.Session) { o.User = "" },
		"no UTF-8":     func(o *tokens.Session) { o.User = "\xff" },
		"endless name": func(o *tokens.Session) { o.User = strings.Repeat("a", tokens.MaxUserLength+1) },
		"no token":     func(o *tokens.Session) { o.Hash = tokens.Hash{} },
		"no id":        func(o *tokens.Session) { o.ID = "" },
		"expired":      func(o *tokens.Session) { o.Expires = time.Now().Add(-time.Second) },
	} {
		session := New(t, "ann")
		change(session)
		if err := s.Create(t.Context(), session, 0); !errors.Is(err, tokens.ErrInvalid) || errors.Is(err, tokens.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		s.assertRefused(session.Hash)
	}
	s.assertListed("ann")
}

func oddNames(t *testing.T, s store) {
	var all []*tokens.Session
	for _, user := range []string{
		"a", "A", "a ", " a", "ä", "a\u0308", "0", "null", "*", "a*", "a:b", "a/b", "../etc/passwd", "a\x00b", "a\r\nSET x y",
		"{tag}", "{", "ann@example.org", "用户", "👩‍💻", "%s%n", strings.Repeat("x", 1024), strings.Repeat("ö", 512), strings.Repeat("x", 1023),
	} {
		all = append(all, s.create(New(t, user)))
	}
	for _, session := range all {
		s.assertLive(session)
		s.assertListed(session.User, session)
	}
	for i, session := range all {
		if n, err := s.RevokeUser(t.Context(), session.User); n != 1 || err != nil {
			t.Errorf("ended %d sessions of %.20q, %v", n, session.User, err)
		}
		s.assertRefused(session.Hash)
		if i+1 < len(all) {
			s.assertLive(all[i+1])
		}
	}
}

func expires(t *testing.T, s store) {
	long := s.create(New(t, "ann"))
	short := expired(t, s, "ann")
	if time.Now().Before(short.Expires) {
		t.Error("a token was refused before it expired")
	}
	s.assertLive(long)
	s.assertListed("ann", long)
	// A server counts from the arrival of the session, so it may end one that has just expired. Each try has a new one.
	eventually(t, "an expired session cannot be ended", func() bool {
		return errors.Is(s.RevokeSession(t.Context(), "ann", expired(t, s, "ann").ID), tokens.ErrUnknown)
	})
	if err := s.rotate(short.Hash, short.Renewed(NewHash(t), time.Now(), time.Hour)); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("refreshing an expired token: %v", err)
	}
	eventually(t, "expired sessions are not counted", func() bool {
		one := s.create(New(t, "bob"))
		expired(t, s, "bob")
		n, err := s.RevokeUser(t.Context(), "bob")
		s.assertRefused(one.Hash)
		return n == 1 && err == nil
	})
}

// expired returns a session that the store kept and no longer accepts.
func expired(t *testing.T, s store, user string) *tokens.Session {
	t.Helper()
	var short *tokens.Session
	eventually(t, "a short session that is stored before it expires", func() bool {
		short = NewLasting(t, user, 300*time.Millisecond)
		return s.Create(t.Context(), short, 0) == nil
	})
	eventually(t, "an expired token is refused", func() bool {
		got, err := s.Lookup(t.Context(), short.Hash)
		if err == nil && !got.Expires.After(time.Now().Add(-time.Second)) {
			t.Error("an expired token is accepted")
		}
		return errors.Is(err, tokens.ErrUnknown)
	})
	return short
}

func revoked(t *testing.T, s store) {
	gone, kept, other := s.create(New(t, "ann")), s.create(New(t, "ann")), s.create(New(t, "bob"))
	s.assertLive(gone)
	for range 2 {
		if err := s.Revoke(t.Context(), gone.Hash); err != nil {
			t.Fatalf("revoking: %v", err)
		}
		s.assertRefused(gone.Hash)
	}
	s.assertLive(kept)
	s.assertLive(other)
	s.assertListed("ann", kept)
	if err := s.RevokeSession(t.Context(), "", gone.ID); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("ending a revoked session: %v", err)
	}
	if err := s.rotate(gone.Hash, gone.Renewed(NewHash(t), time.Now(), time.Hour)); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("refreshing a revoked token: %v", err)
	}
}

func revokingUnknown(t *testing.T, s store) {
	for _, h := range []tokens.Hash{NewHash(t), {}} {
		if err := s.Revoke(t.Context(), h); err != nil {
			t.Errorf("revoking an unknown token: %v", err)
		}
	}
}

func listed(t *testing.T, s store) {
	var made []*tokens.Session
	for i := range 5 {
		session := New(t, "ann")
		// each older than the previous one
		session.Issued = session.Issued.Add(-time.Duration(i) * time.Minute)
		made = append(made, session)
	}
	for _, i := range []int{2, 0, 4, 1, 3} {
		s.create(made[i])
	}
	s.create(New(t, "bob"))
	s.assertListed("ann", made...)
	sessions, err := s.Sessions(t.Context(), "ann")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(made, sessions); diff != "" {
		t.Errorf("the sessions have changed:\n%s", diff)
	}
}

func endedByID(t *testing.T, s store) {
	for _, user := range []string{"", "ann"} {
		gone, kept := s.create(New(t, "ann")), s.create(New(t, "ann"))
		if err := s.RevokeSession(t.Context(), user, gone.ID); err != nil {
			t.Fatalf("ending a session: %v", err)
		}
		s.assertRefused(gone.Hash)
		s.assertLive(kept)
		s.assertListed("ann", kept)
		if err := s.RevokeSession(t.Context(), user, gone.ID); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("ending it again: %v", err)
		}
		if err := s.Revoke(t.Context(), kept.Hash); err != nil {
			t.Fatal(err)
		}
	}
}

func endedByOwner(t *testing.T, s store) {
	ann, _ := s.create(New(t, "ann")), s.create(New(t, "bob"))
	for _, user := range []string{"bob", "Ann", "ann ", "nobody"} {
		if err := s.RevokeSession(t.Context(), user, ann.ID); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("%q ended ann's session: %v", user, err)
		}
	}
	for _, id := range []string{strings.ToUpper(ann.ID), strings.ReplaceAll(ann.ID, "-", ""), "urn:uuid:" + ann.ID, ann.ID[:35]} {
		if err := s.RevokeSession(t.Context(), "ann", id); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("a session was ended by %q: %v", id, err)
		}
	}
	s.assertLive(ann)
}

func endedByUser(t *testing.T, s store) {
	var mine []*tokens.Session
	for range 20 {
		mine = append(mine, s.create(New(t, "ann")))
	}
	other := s.create(New(t, "ann2"))
	if n, err := s.RevokeUser(t.Context(), "ann"); n != len(mine) || err != nil {
		t.Fatalf("ended %d sessions of %d, %v", n, len(mine), err)
	}
	for _, session := range mine {
		s.assertRefused(session.Hash)
	}
	s.assertListed("ann")
	s.assertLive(other)
	if n, err := s.RevokeUser(t.Context(), "ann"); n != 0 || err != nil {
		t.Errorf("ended %d more, %v", n, err)
	}
	again := s.create(New(t, "ann"))
	s.assertLive(again)
	s.assertListed("ann", again)
}

func limited(t *testing.T, s store) {
	const limit = 3
	var made []*tokens.Session
	for i := range 6 {
		session := New(t, "ann")
		session.Issued = session.Issued.Add(time.Duration(i) * time.Second)
		session.Expires = session.Expires.Add(time.Duration(i) * time.Second)
		if err := s.Create(t.Context(), session, limit); err != nil {
			t.Fatal(err)
		}
		made = append(made, session)
		s.assertLive(session)
	}
	for _, session := range made[:3] {
		s.assertRefused(session.Hash)
	}
	s.assertListed("ann", made[5], made[4], made[3])

	// A new session stays, even if it is the first to expire.
	short := NewLasting(t, "ann", time.Minute)
	short.Issued = made[5].Issued.Add(time.Second)
	if err := s.Create(t.Context(), short, limit); err != nil {
		t.Fatal(err)
	}
	s.assertLive(short)
	s.assertListed("ann", short, made[5], made[4])

	// With a lower limit, one login ends several sessions.
	last := New(t, "ann")
	if err := s.Create(t.Context(), last, 1); err != nil {
		t.Fatal(err)
	}
	s.assertListed("ann", last)
	for _, session := range append(made, short) {
		s.assertRefused(session.Hash)
	}
}

func rotated(t *testing.T, s store) {
	current := s.create(New(t, "ann"))
	for range 5 {
		next := current.Renewed(NewHash(t), time.Now().Add(time.Minute), time.Hour)
		if err := s.rotate(current.Hash, next); err != nil {
			t.Fatalf("refreshing: %v", err)
		}
		s.assertRefused(current.Hash)
		s.assertLive(next)
		s.assertListed("ann", next)
		current = next
	}
	if err := s.RevokeSession(t.Context(), "", current.ID); err != nil {
		t.Errorf("ending a refreshed session by its id: %v", err)
	}
	s.assertRefused(current.Hash)
	s.assertListed("ann")
}

func reused(t *testing.T, s store) {
	for _, generations := range []int{1, 3} {
		first, bystander := s.create(New(t, "ann")), s.create(New(t, "ann"))
		current := first
		for range generations {
			next := current.Renewed(NewHash(t), time.Now(), time.Hour)
			if err := s.rotate(current.Hash, next); err != nil {
				t.Fatal(err)
			}
			current = next
		}
		s.assertLive(current)
		for range 2 {
			thief := first.Renewed(NewHash(t), time.Now(), time.Hour)
			if err := s.rotate(first.Hash, thief); !errors.Is(err, tokens.ErrReused) {
				t.Errorf("refreshing an old token: %v", err)
			}
			s.assertRefused(thief.Hash)
			s.assertRefused(current.Hash)
			s.assertRefused(first.Hash)
		}
		s.assertLive(bystander)
		s.assertListed("ann", bystander)
		if err := s.Revoke(t.Context(), bystander.Hash); err != nil {
			t.Fatal(err)
		}
	}
}

func revokedByOld(t *testing.T, s store) {
	old := s.create(New(t, "ann"))
	next := old.Renewed(NewHash(t), time.Now(), time.Hour)
	if err := s.rotate(old.Hash, next); err != nil {
		t.Fatal(err)
	}
	if err := s.Revoke(t.Context(), old.Hash); err != nil {
		t.Fatalf("revoking: %v", err)
	}
	s.assertRefused(old.Hash)
	s.assertRefused(next.Hash)
	s.assertListed("ann")
}

func notRotated(t *testing.T, s store) {
	session := s.create(New(t, "ann"))
	renew := func() *tokens.Session { return session.Renewed(NewHash(t), time.Now(), time.Hour) }
	if err := s.rotate(NewHash(t), renew()); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("refreshing an unknown token: %v", err)
	}
	for name, change := range map[string]func(*tokens.Session){
		"another user":     func(n *tokens.Session) { n.User = "bob" },
		"another session":  func(n *tokens.Session) { n.ID = uuid.NewString() },
		"a longer session": func(n *tokens.Session) { n.Ends = n.Ends.Add(time.Hour) },
		"the same token":   func(n *tokens.Session) { n.Hash = session.Hash },
		"no user":          func(n *tokens.Session) { n.User = "" },
	} {
		next := renew()
		change(next)
		if err := s.rotate(session.Hash, next); !errors.Is(err, tokens.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if next.Hash != session.Hash {
			s.assertRefused(next.Hash)
		}
	}
	s.assertLive(session)
	s.assertListed("ann", session)
}

func rotationRace(t *testing.T, s store) {
	for range 10 {
		session := s.create(New(t, "ann"))
		nexts := make([]*tokens.Session, 8)
		errs := make([]error, len(nexts))
		var wg sync.WaitGroup
		for i := range nexts {
			nexts[i] = session.Renewed(NewHash(t), time.Now(), time.Hour)
			wg.Go(func() { errs[i] = s.rotate(session.Hash, nexts[i]) })
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			switch {
			case err == nil:
				won++
			case errors.Is(err, tokens.ErrReused), errors.Is(err, tokens.ErrUnknown):
				s.assertRefused(nexts[i].Hash)
			default:
				t.Errorf("refreshing: %v", err)
			}
		}
		if won > 1 {
			t.Errorf("%d of %d refreshes of one token succeeded", won, len(nexts))
		}
		s.assertRefused(session.Hash)
		// Each of the others reused the token, so the session has ended.
		for _, next := range nexts {
			s.assertRefused(next.Hash)
		}
		s.assertListed("ann")
	}
}

func rotationAgainstEnd(t *testing.T, s store) {
	ends := []func(*tokens.Session) error{
		func(*tokens.Session) error { _, err := s.RevokeUser(t.Context(), "ann"); return err },
		func(o *tokens.Session) error { return known(s.RevokeSession(t.Context(), "ann", o.ID)) },
		func(o *tokens.Session) error { return known(s.RevokeSession(t.Context(), "", o.ID)) },
		func(o *tokens.Session) error { return s.Revoke(t.Context(), o.Hash) },
	}
	for i := range 80 {
		session := s.create(New(t, "ann"))
		next := session.Renewed(NewHash(t), time.Now(), time.Hour)
		var ended, refreshed error
		var wg sync.WaitGroup
		wg.Go(func() { refreshed = s.rotate(session.Hash, next) })
		wg.Go(func() {
			time.Sleep(time.Duration(i/len(ends)) * 40 * time.Microsecond)
			ended = ends[i%len(ends)](session)
		})
		wg.Wait()
		if ended != nil {
			t.Fatalf("ending: %v", ended)
		}
		if refreshed != nil && !errors.Is(refreshed, tokens.ErrUnknown) {
			t.Fatalf("refreshing: %v", refreshed)
		}
		s.assertRefused(session.Hash)
		s.assertRefused(next.Hash)
		s.assertListed("ann")
	}
}

// known ignores ErrUnknown, because the session may have ended already.
func known(err error) error {
	if errors.Is(err, tokens.ErrUnknown) {
		return nil
	}
	return err
}

func creationAgainstEnd(t *testing.T, s store) {
	for round := range 20 {
		user := fmt.Sprintf("ann%d", round)
		made := make([]*tokens.Session, 8)
		errs := make([]error, len(made))
		var wg sync.WaitGroup
		for i := range made {
			made[i] = New(t, user)
			wg.Go(func() { errs[i] = s.Create(t.Context(), made[i], 0) })
		}
		var ending error
		wg.Go(func() { _, ending = s.RevokeUser(t.Context(), user) })
		wg.Wait()
		if ending != nil {
			t.Fatalf("ending: %v", ending)
		}
		listed := s.list(user)
		for i, session := range made {
			if errs[i] != nil && !errors.Is(errs[i], tokens.ErrUnavailable) {
				t.Errorf("creating: %v", errs[i])
			}
			_, err := s.Lookup(t.Context(), session.Hash)
			if live := err == nil; live != slices.Contains(listed, session.ID) || live && errs[i] != nil {
				t.Errorf("a session is live: %v, listed: %v, and Create returned %v", live, !live, errs[i])
			}
		}
		// A session that was created after the call is ended by the next call.
		if _, err := s.RevokeUser(t.Context(), user); err != nil {
			t.Fatal(err)
		}
		for _, session := range made {
			s.assertRefused(session.Hash)
		}
	}
}

func limitRace(t *testing.T, s store) {
	const limit = 5
	var wg sync.WaitGroup
	errs := make([]error, 30)
	for i := range errs {
		session := New(t, "ann")
		wg.Go(func() { errs[i] = s.Create(t.Context(), session, limit) })
	}
	wg.Wait()
	for _, err := range errs {
		// A login may fail if another one has replaced its session, but must not be lost silently.
		if err != nil && !errors.Is(err, tokens.ErrUnavailable) {
			t.Errorf("creating: %v", err)
		}
	}
	if n := len(s.list("ann")); n > limit {
		t.Errorf("%d sessions, %d allowed", n, limit)
	}
}

func concurrentUse(t *testing.T, s store) {
	var wg sync.WaitGroup
	for worker := range 8 {
		user := fmt.Sprintf("user%d", worker)
		wg.Go(func() {
			for range 15 {
				session := New(t, user)
				if err := s.Create(t.Context(), session, 0); err != nil {
					t.Errorf("creating: %v", err)
					return
				}
				for range 5 {
					s.assertLive(session)
				}
				next := session.Renewed(NewHash(t), time.Now(), time.Hour)
				if err := s.rotate(session.Hash, next); err != nil {
					t.Errorf("refreshing: %v", err)
					return
				}
				s.assertRefused(session.Hash)
				s.assertLive(next)
				if err := s.Revoke(t.Context(), next.Hash); err != nil {
					t.Errorf("revoking: %v", err)
					return
				}
				s.assertRefused(next.Hash)
			}
		})
	}
	wg.Wait()
	for worker := range 8 {
		s.assertListed(fmt.Sprintf("user%d", worker))
	}
}

func touched(t *testing.T, s store) {
	toucher, ok := s.Store.(tokens.Toucher)
	if !ok {
		t.Fatal("the store is not a Toucher")
	}
	session := s.create(New(t, "ann"))
	at := session.Issued.Add(time.Minute)
	for _, address := range []string{"192.0.2.1", "2001:db8::1", ""} {
		if err := toucher.Touch(t.Context(), session.Principal(), at, address); err != nil {
			t.Fatalf("touching: %v", err)
		}
		listed, err := s.Sessions(t.Context(), "ann")
		if err != nil || len(listed) != 1 || !listed[0].LastSeen.Equal(at) || listed[0].LastAddress != address {
			t.Fatalf("listed %+v, %v", listed, err)
		}
	}
	next := session.Renewed(NewHash(t), time.Now(), time.Hour)
	if err := s.rotate(session.Hash, next); err != nil {
		t.Fatal(err)
	}
	if listed, err := s.Sessions(t.Context(), "ann"); err != nil || len(listed) != 1 || !listed[0].LastSeen.Equal(at) {
		t.Errorf("after a refresh: %+v, %v", listed, err)
	}
	if err := s.Revoke(t.Context(), next.Hash); err != nil {
		t.Fatal(err)
	}
	if err := toucher.Touch(t.Context(), next.Principal(), at, "192.0.2.1"); err != nil {
		t.Errorf("touching an ended session: %v", err)
	}
	s.assertRefused(next.Hash)
	s.assertListed("ann")
}

func contextEnded(t *testing.T, s store) {
	session := s.create(New(t, "ann"))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{
		"create":         s.Create(over, New(t, "ann"), 0),
		"rotate":         second(s.Rotate(over, session.Hash, Successor(session.Renewed(NewHash(t), time.Now(), time.Hour)), 0)),
		"revoke":         s.Revoke(over, session.Hash),
		"revoke session": s.RevokeSession(over, "ann", session.ID),
		"revoke user":    second(s.RevokeUser(over, "ann")),
		"sessions":       second(s.Sessions(over, "ann")),
	} {
		if !errors.Is(err, tokens.ErrUnavailable) || errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.assertLive(session)
	s.assertListed("ann", session)
}

func second[T any](_ T, err error) error { return err }
