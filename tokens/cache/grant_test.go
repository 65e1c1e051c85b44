package cache

import (
	"context"
	"path/filepath"
	"slices"
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

// module is a table and the module of an Envoy that reads it. It is safe for concurrent use.
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

// hits reports whether the module allows a request with the session's token.
func (m *module) hits(s *tokens.Session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.Hits(s.ID)
}

// entryOf returns the decision about a request with the session's token. Here the id is the token.
func entryOf(s *tokens.Session) table.Entry {
	return table.Entry{Rule: [16]byte{1}, Inputs: [4]string{s.ID}, Token: s.Hash, User: s.User, Expires: s.Expires}
}

// withModule starts a gateway with a module and waits until it holds the lease.
func withModule(t testing.TB, data, tracking string) *gateway {
	t.Helper()
	m := startModule(t)
	g := open(t, data, tracking, Config{Table: m.table})
	g.module = m
	g.awaitHeld()
	return g
}

// warmModule sends requests until the module answers for the session.
func (g *gateway) warmModule(s *tokens.Session) {
	g.t.Helper()
	redistest.Eventually(g.t, "a hit", func() bool {
		ticket := g.Ticket(s.Hash)
		if _, err := g.Principal(g.t.Context(), s.Hash); err == nil {
			g.Grant(ticket, entryOf(s))
		}
		return g.module.hits(s)
	})
}

func TestModuleDropsTokenBeforeRevokeReturns(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := withModule(t, server.Addr, server.Addr), withModule(t, server.Addr, server.Addr)
	awaitPeers(t, a, b)
	command := offlineCache(t, server.Addr)
	for what, end := range map[string]func(s *tokens.Session) error{
		"at this gateway":     func(s *tokens.Session) error { return a.Revoke(t.Context(), s.Hash) },
		"at another gateway":  func(s *tokens.Session) error { return b.Revoke(t.Context(), s.Hash) },
		"by the session's id": func(s *tokens.Session) error { return b.RevokeSession(t.Context(), s.User, s.ID) },
		"by the user":         func(s *tokens.Session) error { _, err := b.RevokeUser(t.Context(), s.User); return err },
		"by a refresh": func(s *tokens.Session) error {
			_, err := b.Rotate(t.Context(), s.Hash, tokens.Successor{Session: session(s.User)}, 0)
			return err
		},
		"by a command": func(s *tokens.Session) error { return command.Revoke(t.Context(), s.Hash) },
	} {
		undisturbed(t, []*gateway{a, b}, func() (failure string) {
			s, other := a.create("ann-"+what), a.create("bob")
			a.settle()
			for _, g := range []*gateway{a, b} {
				g.warmModule(s)
				g.warmModule(other)
			}
			if err := end(s); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			for _, g := range []*gateway{a, b} {
				if g.module.hits(s) {
					t.Errorf("%s: a module allows the token", what)
				}
				if g.module.hits(other) {
					continue
				}
				// A reply to a heartbeat extends the lease, and the table a moment later. This waits for that.
				_ = g.connections()
				if !g.module.hits(other) {
					failure = what + ": a module refuses another token"
				}
			}
			return failure
		})
	}
}

// undisturbed repeats an attempt until it succeeds. It reports a failure only if no gateway lost
// its lease during the attempt, which can happen on a busy machine.
func undisturbed(t *testing.T, gateways []*gateway, attempt func() (failure string)) {
	t.Helper()
	epochs := func() (all []uint64, held bool) {
		held = true
		for _, g := range gateways {
			all = append(all, g.epoch.Load())
			held = held && g.Held()
		}
		return all, held
	}
	redistest.Eventually(t, "an attempt without a lost lease", func() bool {
		before, _ := epochs()
		failure := attempt()
		if after, held := epochs(); failure != "" && held && slices.Equal(before, after) {
			t.Fatal(failure)
		}
		return failure == ""
	})
}

// If a gateway is cut off from Redis, its Envoy uses the table until the lease ends at the latest.
// A revoke at another gateway waits for that.
func TestModuleStopsAtEndOfLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	a, isolated := withModule(t, server.Addr, server.Addr), withModule(t, server.Addr, tracking.Addr)
	awaitPeers(t, a, isolated)
	s := a.create("ann")
	isolated.warmModule(s)
	tracking.Hold(faultproxy.Up, faultproxy.Down)
	a.revoke(s)
	if isolated.module.hits(s) {
		t.Error("the module allows a token after its revoke returned")
	}
	tracking.Heal()
	isolated.awaitHeld()
	if isolated.module.hits(s) {
		t.Error("the module allows the token again")
	}
}

// A look-up races with a revoke: the decision follows from an answer of before the revoke.
func TestGrantAfterInvalidationIsRefused(t *testing.T) {
	m := startModule(t)
	c, err := New(&fullStore{}, &alwaysHeld{}, Config{Table: m.table})
	if err != nil {
		t.Fatal(err)
	}
	for what, between := range map[string]func(h tokens.Hash){
		"invalidated":       c.Invalidate,
		"all invalidated":   func(tokens.Hash) { c.InvalidateAll() },
		"revoked":           func(h tokens.Hash) { _ = c.Revoke(context.Background(), h) },
		"invalidated twice": func(h tokens.Hash) { c.Invalidate(h); c.Invalidate(h) },
	} {
		s := session("ann")
		ticket := c.Ticket(s.Hash)
		between(s.Hash)
		c.Extend(table.Now().Add(time.Second))
		c.Grant(ticket, entryOf(s))
		if m.hits(s) {
			t.Errorf("%s: the earlier decision is used", what)
		}
		c.Extend(table.Now().Add(time.Second))
		c.Grant(c.Ticket(s.Hash), entryOf(s))
		if !m.hits(s) {
			t.Errorf("%s: a later decision is not used", what)
		}
	}
	// During a revoke, a new decision about the token is refused.
	s := session("ann")
	end := c.refuse(s.Hash)
	c.Grant(c.Ticket(s.Hash), entryOf(s))
	if m.hits(s) {
		t.Error("a token that is being revoked is granted")
	}
	end()
}

// With the embedded store, every way to end a token removes it from the module's table before the
// call returns.
func TestModuleWithEmbeddedStore(t *testing.T) {
	store, err := boltstore.Open(t.TempDir(), boltstore.Config{})
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
		"its user":             func(s *tokens.Session) error { _, err := c.RevokeUser(t.Context(), s.User); return err },
		"one session too many": func(s *tokens.Session) error { return c.Create(t.Context(), session(s.User), 1) },
		"a refresh": func(s *tokens.Session) error {
			_, err := c.Rotate(t.Context(), s.Hash, storetest.Successor(s.Renewed(randomHash(), time.Now(), time.Hour)), 0)
			return err
		},
	} {
		s := g.create("ann-" + what)
		g.warmModule(s)
		if err := end(s); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if m.hits(s) {
			t.Errorf("%s: the module allows the token", what)
		}
	}
	s := g.create("ann")
	g.warmModule(s)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_ = m.table.Close()
	if m.hits(s) {
		t.Error("the module answers after the gateway has closed")
	}
}

// After a gap in the tracking, the lease begins again, and no decision of before is used.
func TestInvalidateAllEndsEveryDecision(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g := withModule(t, server.Addr, server.Addr)
	s, other := g.create("ann"), g.create("bob")
	g.warmModule(s)
	g.InvalidateAll()
	g.warmModule(other) // the table is in use again
	if g.module.hits(s) {
		t.Error("the module allows a token that it was allowed before the gap")
	}
}

// A check that ran during a gap in the tracking asked the store. Its decision is written only after the tracking has
// begun again, and nothing reported that the token ended in between. So the end of a gap begins an epoch, as its start
// does.
func TestModuleGetsNoDecisionOfAGap(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	g := withModule(t, server.Addr, tracking.Addr)
	s, other, epoch := g.create("ann"), g.create("bob"), g.epoch.Load()
	tracking.Refuse()
	tracking.Cut()
	redistest.Eventually(t, "the gap", func() bool { return len(g.connections()) == 0 && g.epoch.Load() > epoch })
	ticket := g.Ticket(s.Hash)
	g.allow(s)
	server.Do("DEL", key(s.Hash))
	tracking.Heal()
	g.awaitHeld()
	g.Grant(ticket, entryOf(s))
	g.warmModule(other) // the table is in use again
	if g.module.hits(s) {
		t.Error("the module allows a token that ended before the tracking began again")
	}
}

// An Envoy that runs on its own may still use the table of a killed Gatepost. With the embedded store, only the clock
// tells the next Gatepost when that ends, also if it has no table itself.
func TestRevokeAfterAProcessWasKilled(t *testing.T) {
	t.Parallel()
	store, err := boltstore.Open(t.TempDir(), boltstore.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := session("ann")
	if err := store.Create(t.Context(), s, 0); err != nil {
		t.Fatal(err)
	}
	killed := startModule(t)
	e := entryOf(s)
	killed.table.Put(0, &e)
	killed.table.Extend(table.Now().Add(localLease))
	c, err := New(store, &LocalTracker{Store: store}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !killed.hits(s) {
		t.Skip("the machine was too slow: the table has expired")
	}
	if err := c.Revoke(t.Context(), s.Hash); err != nil {
		t.Fatal(err)
	}
	if killed.hits(s) {
		t.Error("after the revoke, the token passes by the table of the killed process")
	}
}

// extensions records the times passed to Extend.
type extensions struct {
	discard
	until chan table.Instant
}

func (e *extensions) Extend(until table.Instant) { e.until <- until }

// The lease counts from the time a heartbeat was sent, because other gateways count from then too.
func TestLeaseCountsFromSentHeartbeat(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	proxy := faultproxy.Start(t, server.Addr)
	tracker, err := Track(client(t, proxy.Addr), RedisConfig{})
	if err != nil {
		t.Fatal(err)
	}
	listener := &extensions{until: make(chan table.Instant, 1000)}
	tracker.Start(listener)
	defer tracker.Close()
	<-listener.until // it is connected
	proxy.Hold(faultproxy.Down)
	for len(listener.until) > 0 {
		<-listener.until
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
	redistest.Eventually(t, "a heartbeat without an answer", waits)
	afterwards := table.Now()
	proxy.Heal()
	until := <-listener.until
	if late := afterwards.Add(tracker.lease); until.Boot > late.Boot || until.Wall.After(late.Wall) {
		t.Errorf("the table is valid until %v after the heartbeat was sent, longer than a lease", until.Boot-afterwards.Boot)
	}
}
