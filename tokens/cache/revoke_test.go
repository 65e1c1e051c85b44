package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redistest"
)

// No use that begins after the revoke has returned is accepted, in a thousand trials (200 with -short).
func TestNoGatewayAcceptsAfterRevoke(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := start(t, server.Addr, server.Addr), start(t, server.Addr, server.Addr)
	awaitPeers(t, a, b)
	workers, trials := 10, 100
	if testing.Short() {
		trials = 20
	}
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for range trials {
				s := session(fmt.Sprint("user", w))
				if err := a.Create(t.Context(), s, 0); err != nil {
					t.Errorf("creating: %v", err)
					return
				}
				var over atomic.Bool
				var user sync.WaitGroup
				user.Go(func() { // uses the token at the other gateway all the time
					for !over.Load() {
						if got, err := b.Principal(t.Context(), s.Hash); err == nil && !got.Has(s.Hash) {
							t.Error("got the session of another token")
						}
						time.Sleep(50 * time.Microsecond)
					}
				})
				_, _ = b.Principal(t.Context(), s.Hash)
				if err := a.Revoke(t.Context(), s.Hash); err != nil {
					t.Errorf("revoking: %v", err)
				}
				for range 3 {
					if _, err := b.Principal(t.Context(), s.Hash); err == nil {
						t.Error("accepted after the revoke returned")
					}
				}
				over.Store(true)
				user.Wait()
			}
		})
	}
	all.Wait()
	if a.tracker.acknowledged.Load() == 0 {
		t.Error("no revoke was acknowledged: all waited for the lease to expire")
	}
}

// A token in memory is revoked without a look-up of its session. One that is not, or that was exchanged, needs one.
func TestRevokeOfAKnownTokenIsOneCommandOfTheStore(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g := openReal(t, server.URL())
	g.awaitHeld()
	exchanged := g.create("ann")
	next := tokens.Successor{Session: session("ann")}
	next.Session.ID, next.Session.Ends = exchanged.ID, exchanged.Ends
	for _, c := range []struct {
		name    string
		session *tokens.Session
		before  func(s *tokens.Session)
		gets    int
	}{
		{"known", g.create("bob"), func(s *tokens.Session) { g.warm(s) }, 0},
		{"not known", g.create("eve"), func(*tokens.Session) {}, 1},
		{"exchanged", exchanged, func(s *tokens.Session) {
			if _, err := g.Rotate(t.Context(), s.Hash, next, time.Minute); err != nil {
				t.Fatal(err)
			}
			g.warm(s) // in its grace
		}, 1},
	} {
		c.before(c.session)
		before := server.CommandStats()["get"]
		if err := g.Revoke(t.Context(), c.session.Hash); err != nil {
			t.Fatal(err)
		}
		if got := server.CommandStats()["get"] - before; got < c.gets || c.gets == 0 && got > 0 {
			t.Errorf("a revoke of a token that is %s: %d look-ups, want %d", c.name, got, c.gets)
		}
		g.deny(c.session)
	}
	g.deny(next.Session)
}

func TestEveryRevokeIsStrict(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := start(t, server.Addr, server.Addr), start(t, server.Addr, server.Addr)
	awaitPeers(t, a, b)
	for what, end := range map[string]func(s *tokens.Session) error{
		"revoked": func(s *tokens.Session) error { return a.Revoke(t.Context(), s.Hash) },
		"refreshed": func(s *tokens.Session) error {
			_, err := a.Rotate(t.Context(), s.Hash, tokens.Successor{Session: session(s.User)}, 0)
			return err
		},
		"revoked by id":   func(s *tokens.Session) error { return a.RevokeSession(t.Context(), s.User, s.ID) },
		"logged out":      func(s *tokens.Session) error { _, err := a.RevokeUser(t.Context(), s.User); return err },
		"already deleted": func(s *tokens.Session) error { server.Do("DEL", key(s.Hash)); return a.Revoke(t.Context(), s.Hash) },
	} {
		for range 20 {
			s := a.create("ann")
			a.warm(s)
			b.warm(s)
			if err := end(s); err != nil {
				t.Fatalf("a session %s: %v", what, err)
			}
			b.deny(s)
			a.deny(s)
		}
	}
}

// disconnects maps each way to disconnect a gateway's tracking to its fault.
var disconnects = map[string]func(*faultproxy.Proxy){
	"no incoming data":             func(p *faultproxy.Proxy) { p.Hold(faultproxy.Down) },
	"no outgoing data":             func(p *faultproxy.Proxy) { p.Hold(faultproxy.Up) },
	"partitioned":                  func(p *faultproxy.Proxy) { p.Hold(faultproxy.Up, faultproxy.Down) },
	"half open":                    func(p *faultproxy.Proxy) { p.Swallow(faultproxy.Down) },
	"delayed by more than a lease": func(p *faultproxy.Proxy) { p.Delay(faultproxy.Down, 1500*time.Millisecond) },
	"delayed by less than a lease": func(p *faultproxy.Proxy) { p.Delay(faultproxy.Down, 300*time.Millisecond) },
}

func TestDisconnectedGatewayRefusesAfterRevoke(t *testing.T) {
	t.Parallel()
	for what, cut := range disconnects {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			tracking := faultproxy.Start(t, server.Addr)
			a, b := start(t, server.Addr, server.Addr), start(t, server.Addr, tracking.Addr)
			awaitPeers(t, a, b)
			for range 2 {
				s := a.create("ann")
				b.warm(s)
				cut(tracking)
				a.revoke(s)
				b.deny(s)
				tracking.Heal()
				b.awaitHeld()
				b.deny(s)
			}
		})
	}
}

// A lease counts from the time a heartbeat was sent, even if its reply was delayed.
func TestDelayedReplyDoesNotExtendLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	a, b := start(t, server.Addr, server.Addr), start(t, server.Addr, tracking.Addr)
	awaitPeers(t, a, b)
	s := a.create("ann")
	tracking.Delay(faultproxy.Down, 500*time.Millisecond)
	time.Sleep(600 * time.Millisecond) // from now on, replies are that old
	b.warm(s)
	deleted := server.CommandStats()["del"]
	var revoke sync.WaitGroup
	revoke.Go(func() { a.revoke(s) })
	redistest.Eventually(t, "the deletion in Redis", func() bool { return server.CommandStats()["del"] > deleted })
	time.Sleep(350 * time.Millisecond) // earlier replies arrive, the invalidation does not
	tracking.Hold(faultproxy.Down)
	revoke.Wait()
	b.deny(s)
}

// A new gateway does not know the others yet.
func TestNewGatewayWaitsForUnknownGateways(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	b := start(t, server.Addr, tracking.Addr)
	s := b.create("ann")
	a := open(t, server.Addr, server.Addr, Config{})
	a.awaitHeld()
	b.warm(s)
	tracking.Hold(faultproxy.Up, faultproxy.Down)
	a.revoke(s)
	b.deny(s)
}

// A gateway without tracking does not know which gateways hold a lease.
func TestRevokeWithoutTrackingWaitsForLeases(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	mine, others := faultproxy.Start(t, server.Addr), faultproxy.Start(t, server.Addr)
	a, b := start(t, server.Addr, mine.Addr), start(t, server.Addr, others.Addr)
	awaitPeers(t, a, b)
	s := a.create("ann")
	b.warm(s)
	mine.Refuse()
	mine.Cut()
	others.Hold(faultproxy.Down)
	a.revoke(s)
	b.deny(s)
	if a.tracker.waitedOut.Load() == 0 {
		t.Fatal("the revoke did not wait for the leases")
	}
}

func TestEarlierLookupIsNotSharedAfterRevoke(t *testing.T) {
	t.Parallel()
	for _, trackingToo := range []bool{false, true} {
		server := redistest.Start(t)
		data, tracking := faultproxy.Start(t, server.Addr), faultproxy.Start(t, server.Addr)
		a := start(t, server.Addr, server.Addr)
		b := openWith(t, client(t, data.Addr), client(t, tracking.Addr), Config{LookupTimeout: time.Minute}, RedisConfig{})
		awaitPeers(t, a, b)
		s := a.create("ann")
		b.Principal(t.Context(), randomHash()) // opens a connection
		asked := server.CommandStats()["get"]
		data.Delay(faultproxy.Down, 900*time.Millisecond)
		var before sync.WaitGroup
		before.Go(func() { _, _ = b.Principal(t.Context(), s.Hash) })
		redistest.Eventually(t, "a look-up at Redis", func() bool { return server.CommandStats()["get"] > asked })
		if trackingToo {
			tracking.Hold(faultproxy.Up, faultproxy.Down)
		}
		a.revoke(s)
		if _, err := b.Principal(t.Context(), s.Hash); err == nil {
			t.Errorf("an earlier answer was used after the revoke returned (tracking held: %v)", trackingToo)
		}
		before.Wait()
	}
}

func TestPromptRevokeDoesNotWait(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := start(t, server.Addr, server.Addr), start(t, server.Addr, server.Addr)
	a.SetRevocation(Prompt)
	s := a.create("ann")
	b.warm(s)
	a.revoke(s)
	a.deny(s)
	redistest.Eventually(t, "a refused token", func() bool {
		_, err := b.Principal(t.Context(), s.Hash)
		return errors.Is(err, tokens.ErrUnknown)
	})
	if a.tracker.acknowledged.Load()+a.tracker.waitedOut.Load() != 0 {
		t.Fatal("a prompt revoke waited for the other gateways")
	}
}

func TestCanceledRevokeFails(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	a, b := start(t, server.Addr, server.Addr), start(t, server.Addr, tracking.Addr)
	awaitPeers(t, a, b)
	s := a.create("ann")
	b.warm(s)
	tracking.Hold(faultproxy.Down)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.Revoke(ctx, s.Hash); !errors.Is(err, tokens.ErrUnavailable) {
		t.Fatalf("a revoke with a canceled wait: %v", err)
	}
	a.revoke(s) // again, with enough time
	b.deny(s)
}
