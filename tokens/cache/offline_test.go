package cache

import (
	"context"
	"errors"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redistest"
)

func outside(t *testing.T, addr string) *Cache {
	t.Helper()
	c, err := New(plain{client(t, addr)}, OfflineTracker{}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A command that ends a session knows of no gateway, and none of it: what it says has ended is refused all the same, by a
// gateway that hears of it and by one that does not.
func TestWhatWasEndedFromOutsideIsRefusedByGateways(t *testing.T) {
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	hears, deaf := start(t, server.Addr, server.Addr), start(t, server.Addr, tracking.Addr)
	command := outside(t, server.Addr)
	for what, end := range map[string]func(s *tokens.Session) error{
		"its token":       func(s *tokens.Session) error { return command.Revoke(t.Context(), s.Hash) },
		"its id":          func(s *tokens.Session) error { return command.RevokeSession(t.Context(), "", s.ID) },
		"all of a user's": func(s *tokens.Session) error { _, err := command.RevokeUser(t.Context(), s.User); return err },
	} {
		s := hears.create("ann")
		hears.warm(s)
		deaf.awaitHeld()
		deaf.warm(s)
		tracking.Hold(faultproxy.Up, faultproxy.Down)
		if err := end(s); err != nil {
			t.Fatalf("revoking a session by %s: %v", what, err)
		}
		hears.deny(s)
		deaf.deny(s)
		tracking.Heal()
	}
}

func TestAnEndFromOutsideWhoseWaitWasCutIsNoSuccess(t *testing.T) {
	server := redistest.Start(t)
	g := start(t, server.Addr, server.Addr)
	s := g.create("ann")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := outside(t, server.Addr).Revoke(ctx, s.Hash); !errors.Is(err, tokens.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

func TestOutsideNothingIsAnsweredFromMemory(t *testing.T) {
	server := redistest.Start(t)
	g, command := start(t, server.Addr, server.Addr), outside(t, server.Addr)
	s := g.create("ann")
	for range 2 {
		if _, err := command.Lookup(t.Context(), s.Hash); err != nil {
			t.Fatal(err)
		}
	}
	g.revoke(s)
	if _, err := command.Lookup(t.Context(), s.Hash); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("got %v, want ErrUnknown", err)
	}
	if command.Held() {
		t.Error("a lease is held")
	}
}
