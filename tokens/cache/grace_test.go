package cache

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/boltstore"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"
)

// After a refresh has returned, no gateway caches the old token beyond its grace. After a revoke
// has returned, no gateway accepts either token.
func TestPredecessorIsCachedOnlyUntilItsGraceEnds(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := openPatient(t, server.URL()), openPatient(t, server.URL())
	awaitPeers(t, a, b)
	const grace = 30 * time.Second
	for what, end := range map[string]func(old, next *tokens.Session) error{
		"the old token is revoked":       func(old, _ *tokens.Session) error { return a.Revoke(t.Context(), old.Hash) },
		"the new token is revoked":       func(_, next *tokens.Session) error { return a.Revoke(t.Context(), next.Hash) },
		"the session is revoked by id":   func(old, _ *tokens.Session) error { return a.RevokeSession(t.Context(), "", old.ID) },
		"the user is logged out":         func(*tokens.Session, *tokens.Session) error { _, err := a.RevokeUser(t.Context(), "ann"); return err },
		"the new token is refreshed too": nil,
	} {
		for range 10 {
			old := storetest.New(t, "ann")
			if err := a.Create(t.Context(), old, 0); err != nil {
				t.Fatal(err)
			}
			a.warm(old)
			b.warm(old)
			next := old.Renewed(storetest.NewHash(t), time.Now(), time.Hour)
			if _, err := a.Rotate(t.Context(), old.Hash, storetest.Successor(next), grace); err != nil {
				t.Fatal(err)
			}
			latest := time.Now().Add(grace)
			for _, g := range []*gateway{b, a} {
				if got, err := g.answer(old); err != nil || got.Expires().After(latest) {
					t.Errorf("the old token expires at %v, %v after its grace: %v", got.Expires(), got.Expires().Sub(latest), err)
				}
				g.warm(old)
				g.warm(next)
				g.allow(old)
				g.allow(next)
			}
			if end == nil {
				third := next.Renewed(storetest.NewHash(t), time.Now(), time.Hour)
				if _, err := a.Rotate(t.Context(), next.Hash, storetest.Successor(third), grace); err != nil {
					t.Fatal(err)
				}
				b.deny(old)
				a.deny(old)
				b.allow(next)
				continue
			}
			if err := end(old, next); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			for _, g := range []*gateway{b, a} {
				g.deny(old)
				g.deny(next)
			}
		}
	}
}

// A cached token in its grace is refused at the deadline, without an invalidation.
func TestGraceEndsInMemoryAtDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := boltstore.Open(t.TempDir(), boltstore.Config{SweepEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		c, err := New(store, new(alwaysHeld), Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		old := storetest.New(t, "ann")
		next := old.Renewed(storetest.NewHash(t), time.Now(), time.Hour)
		if err := c.Create(t.Context(), old, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Rotate(t.Context(), old.Hash, storetest.Successor(next), 10*time.Second); err != nil {
			t.Fatal(err)
		}
		use := func() error { _, err := c.Principal(t.Context(), old.Hash); return err }
		if err := use(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*time.Second - 1)
		if err := use(); err != nil || c.shard(old.Hash).hits.Load() != 1 {
			t.Errorf("just before the deadline: %v, from memory %d times", err, c.shard(old.Hash).hits.Load())
		}
		time.Sleep(time.Nanosecond)
		if err := use(); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("at the deadline: %v", err)
		}
		if _, err := c.Principal(t.Context(), next.Hash); err != nil {
			t.Errorf("the new token: %v", err)
		}
	})
}
