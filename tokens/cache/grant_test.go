package cache

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/boltstore"
	"gatepost/tokens/cache/table"
	"gatepost/tokens/cache/table/tabletest"
	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"
)

// module is a table and the module of an Envoy that reads it. It may be used by many goroutines at once.
type module struct {
	mu    sync.Mutex
	table *table.Table
	*tabletest.Driver
}

func startModule(t testing.TB) *module {
	t.Helper()
	path := filepath.Join(t.TempDir(), "table")
	made, err := table.Create(path, 4096, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &module{table: made, Driver: tabletest.Start(t)}
	m.Must("config %s", path)
	m.Route([16]byte{1}, time.Minute, "-")
	t.Cleanup(func() { _ = made.Close() })
	return m
}

// hits reports whether the module lets a request with the session's token pass.
func (m *module) hits(s *tokens.Session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.Hits(s.ID)
}

// entryOf is the decision about a request with the session's token. In these tests the id is the token.
func entryOf(s *tokens.Session) table.Entry {
	return table.Entry{Rule: [16]byte{1}, Inputs: [4]string{s.ID}, Token: s.Hash, User: s.User, Expires: s.Expires}
}

// withModule starts a gateway with a module, and waits until it holds its lease.
func withModule(t testing.TB, data, tracking string) *gateway {
	t.Helper()
	m := startModule(t)
	g := open(t, data, tracking, Config{Table: m.table})
	g.module = m
	g.awaitHeld()
	return g
}

// learn has the module know the session, by one request that Gatepost allows.
func (g *gateway) learn(s *tokens.Session) {
	g.t.Helper()
	redistest.Eventually(g.t, "a hit", func() bool {
		ticket := g.Ticket(s.Hash)
		if _, err := g.Principal(g.t.Context(), s.Hash); err == nil {
			g.Grant(ticket, entryOf(s))
		}
		return g.module.hits(s)
	})
}

func TestModuleKnowsNothingOfATokenWhoseRevokeHasReturned(t *testing.T) {
	server := redistest.Start(t)
	a, b := withModule(t, server.Addr, server.Addr), withModule(t, server.Addr, server.Addr)
	awaitAcquainted(t, a, b)
	command := outside(t, server.Addr)
	for what, end := range map[string]func(s *tokens.Session) error{
		"at the gateway":      func(s *tokens.Session) error { return a.Revoke(t.Context(), s.Hash) },
		"at the other":        func(s *tokens.Session) error { return b.Revoke(t.Context(), s.Hash) },
		"by the session's id": func(s *tokens.Session) error { return b.RevokeSession(t.Context(), s.User, s.ID) },
		"all of the user's":   func(s *tokens.Session) error { _, err := b.RevokeUser(t.Context(), s.User); return err },
		"by a refresh": func(s *tokens.Session) error {
			_, err := b.Rotate(t.Context(), s.Hash, tokens.Successor{Session: session(s.User)}, 0)
			return err
		},
		"by a command": func(s *tokens.Session) error { return command.Revoke(t.Context(), s.Hash) },
	} {
		s, other := a.create("ann-"+what), a.create("bob")
		for _, g := range []*gateway{a, b} {
			g.learn(s)
			g.learn(other)
		}
		if err := end(s); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, g := range []*gateway{a, b} {
			if g.module.hits(s) {
				t.Errorf("%s: a module lets the token pass", what)
			}
			if !g.module.hits(other) {
				t.Errorf("%s: another token is not known any more", what)
			}
		}
	}
}

// TestModuleStopsWithItsGatewaysLease: a gateway that hears nothing from Redis lets its Envoy go on for no longer than the lease,
// and a revoke elsewhere waits for that.
func TestModuleStopsWithItsGatewaysLease(t *testing.T) {
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	a, deaf := withModule(t, server.Addr, server.Addr), withModule(t, server.Addr, tracking.Addr)
	awaitAcquainted(t, a, deaf)
	s := a.create("ann")
	deaf.learn(s)
	tracking.Hold(faultproxy.Up, faultproxy.Down)
	a.revoke(s)
	if deaf.module.hits(s) {
		t.Error("a module lets a token pass whose revoke has returned")
	}
	tracking.Heal()
	deaf.awaitHeld()
	if deaf.module.hits(s) {
		t.Error("a module knows the token again")
	}
}

// TestGrantAfterACallBackIsRefused is the race of a look-up with a revoke: the decision follows from an answer of before.
func TestGrantAfterACallBackIsRefused(t *testing.T) {
	m := startModule(t)
	c, err := New(&everything{}, &always{}, Config{Table: m.table})
	if err != nil {
		t.Fatal(err)
	}
	for what, between := range map[string]func(h tokens.Hash){
		"called back":      c.Invalidate,
		"all called back":  func(tokens.Hash) { c.InvalidateAll() },
		"revoked":          func(h tokens.Hash) { _ = c.Revoke(context.Background(), h) },
		"revoked and back": func(h tokens.Hash) { c.Invalidate(h); c.Invalidate(h) },
	} {
		s := session("ann")
		ticket := c.Ticket(s.Hash)
		between(s.Hash)
		c.Extend(table.Now().Add(time.Second))
		c.Grant(ticket, entryOf(s))
		if m.hits(s) {
			t.Errorf("%s: the decision of before is used", what)
		}
		c.Extend(table.Now().Add(time.Second))
		c.Grant(c.Ticket(s.Hash), entryOf(s))
		if !m.hits(s) {
			t.Errorf("%s: a decision of afterwards is not used", what)
		}
	}
	// While a revoke is under way the token opens nothing.
	s := session("ann")
	end := c.refuse(s.Hash)
	c.Grant(c.Ticket(s.Hash), entryOf(s))
	if m.hits(s) {
		t.Error("a token that is being revoked is granted")
	}
	end()
}

// TestEmbeddedStoreAndTheModule: the store that this process has to itself has a heartbeat of its own, and whatever ends a token there
// ends what the module knows of it, before the call returns.
func TestEmbeddedStoreAndTheModule(t *testing.T) {
	store, err := boltstore.Open(t.TempDir(), boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m := startModule(t)
	c, err := New(store, &LocalTracker{Store: store}, Config{Table: m.table})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g := &gateway{Cache: c, module: m, t: t}
	for what, end := range map[string]func(s *tokens.Session) error{
		"its token":            func(s *tokens.Session) error { return c.Revoke(t.Context(), s.Hash) },
		"its id":               func(s *tokens.Session) error { return c.RevokeSession(t.Context(), s.User, s.ID) },
		"all of a user's":      func(s *tokens.Session) error { _, err := c.RevokeUser(t.Context(), s.User); return err },
		"one session too many": func(s *tokens.Session) error { return c.Create(t.Context(), session(s.User), 1) },
		"a refresh": func(s *tokens.Session) error {
			_, err := c.Rotate(t.Context(), s.Hash, storetest.Successor(s.Renewed(randomHash(), time.Now(), time.Hour)), 0)
			return err
		},
	} {
		s := g.create("ann-" + what)
		g.learn(s)
		if err := end(s); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if m.hits(s) {
			t.Errorf("%s: the module lets the token pass", what)
		}
	}
	s := g.create("ann")
	g.learn(s)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_ = m.table.Close()
	if m.hits(s) {
		t.Error("the module goes on after the gateway has ended")
	}
}

// extensions records until when Envoys may decide by themselves.
type extensions struct {
	deaf
	until chan table.Instant
}

func (e *extensions) Extend(until table.Instant) { e.until <- until }

// TestHeartbeatCountsFromWhenItWasSent: Redis may answer late, and the others count from when they heard it.
func TestHeartbeatCountsFromWhenItWasSent(t *testing.T) {
	server := redistest.Start(t)
	proxy := faultproxy.Start(t, server.Addr)
	tracker, err := Track(client(t, proxy.Addr), RedisConfig{})
	if err != nil {
		t.Fatal(err)
	}
	heard := &extensions{until: make(chan table.Instant, 1000)}
	tracker.Start(heard)
	defer tracker.Close()
	<-heard.until // it is connected
	proxy.Hold(faultproxy.Down)
	for len(heard.until) > 0 {
		<-heard.until
	}
	waits := func() bool {
		tracker.mu.Lock()
		defer tracker.mu.Unlock()
		for _, c := range tracker.conns {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.awaited) >= 2
		}
		return false
	}
	redistest.Eventually(t, "a heartbeat that waits for its answer", waits)
	afterwards := table.Now()
	proxy.Heal()
	until := <-heard.until
	if late := afterwards.Add(tracker.lease); until.Boot > late.Boot || until.Wall.After(late.Wall) {
		t.Errorf("Envoys go on until %v after the heartbeat was sent, longer than a lease", until.Boot-afterwards.Boot)
	}
}
