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

func offlineCache(t *testing.T, addr string) *Cache {
	t.Helper()
	c, err := New(plain{client(t, addr)}, OfflineTracker{}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A command that revokes a session does not know the gateways. After it returns, both a connected
// and an isolated gateway refuse the token.
func TestOfflineRevokeIsRefusedByGateways(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	connected, isolated := start(t, server.Addr, server.Addr), start(t, server.Addr, tracking.Addr)
	command := offlineCache(t, server.Addr)
	for what, end := range map[string]func(s *tokens.Session) error{
		"its token": func(s *tokens.Session) error { return command.Revoke(t.Context(), s.Hash) },
		"its id":    func(s *tokens.Session) error { return command.RevokeSession(t.Context(), "", s.ID) },
		"its user":  func(s *tokens.Session) error { _, err := command.RevokeUser(t.Context(), s.User); return err },
	} {
		s := connected.create("ann")
		connected.warm(s)
		isolated.awaitHeld()
		isolated.warm(s)
		tracking.Hold(faultproxy.Up, faultproxy.Down)
		if err := end(s); err != nil {
			t.Fatalf("revoking a session by %s: %v", what, err)
		}
		connected.deny(s)
		isolated.deny(s)
		tracking.Heal()
	}
}

func TestCanceledOfflineRevokeFails(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g := start(t, server.Addr, server.Addr)
	s := g.create("ann")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := offlineCache(t, server.Addr).Revoke(ctx, s.Hash); !errors.Is(err, tokens.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

func TestOfflineCacheReadsStore(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g, command := start(t, server.Addr, server.Addr), offlineCache(t, server.Addr)
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
