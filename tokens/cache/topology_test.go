package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/redistest"
)

// twoGateways starts two gateways as the product does and waits until each holds the lease.
func twoGateways(t *testing.T, url string) []*gateway {
	t.Helper()
	var gateways []*gateway
	for range 2 {
		gateways = append(gateways, openReal(t, url))
	}
	for _, g := range gateways {
		g.awaitHeld()
	}
	return gateways
}

// Slots of a Cluster move while tokens in them are minted, used and revoked.
func TestRevokesHoldWhileSlotsMove(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t, 3)
	gateways := twoGateways(t, "redis://"+nodes[0].Addr+"?cluster=true")
	h := &history{start: time.Now()}
	over, end := context.WithCancel(t.Context())
	defer end()
	wait := h.traffic(t, over, gateways)
	moved := 0
	for h.goesOn(t, func() bool { return moved >= 20 && h.covered() }) {
		// Choose the slot of a key in use: a token, a user's index, a session's id.
		name := nodes[rand.N(len(nodes))].Do("RANDOMKEY")
		if name == "" {
			_ = sleep(over, 10*time.Millisecond)
			continue
		}
		slot, err := strconv.Atoi(nodes[0].Do("CLUSTER", "KEYSLOT", name))
		if err != nil {
			t.Fatal(err)
		}
		if redistest.MoveSlot(t, nodes, slot, rand.N(len(nodes)), func() { time.Sleep(rand.N(20 * time.Millisecond)) }) {
			moved++
		}
	}
	end()
	wait()
	t.Logf("%d slots moved", moved)
	h.log(t)
	for _, g := range gateways {
		g.awaitHeld()
	}
}

// Sentinel promotes the replica twice while tokens are minted, used and revoked: first because the
// master died, then because an operator requested it, so the old master acts as one for some
// seconds. Replication is asynchronous, and unreplicated writes are lost, as documented (WAIT,
// min-replicas-to-write). So here the masters replicate fullStore first, and the surviving old
// master accepts no writes without a replica. For the same reason only the test triggers
// fail-overs: if Sentinel did so on a busy machine, it could choose a server that has just
// restarted.
func TestRevokesHoldDuringSentinelFailover(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("fail-overs take seconds: run without -short")
	}
	master, replica, sentinels := redistest.StartBehindSentinels(t, 1)
	gateways := twoGateways(t, "redis://"+sentinels[0].Addr+"?sentinel=mymaster")
	h := &history{start: time.Now()}
	over, end := context.WithCancel(t.Context())
	defer end()
	wait := h.traffic(t, over, gateways)
	for round, dies := range []bool{true, false} {
		h.await(t, "accepted uses", &h.accepted)
		h.await(t, "refused uses", &h.refused)
		if !dies {
			master.Do("CONFIG", "SET", "min-replicas-to-write", "1")
		}
		master.Do("CLIENT", "PAUSE", "60000", "WRITE")
		redistest.AwaitInStep(t, master, replica)
		if dies {
			master.Kill()
		} else {
			h.diverged.Store(true)
		}
		redistest.FailOverBySentinel(t, sentinels[0], replica)
		if !dies {
			master.Do("CLIENT", "UNPAUSE")
		}
		redistest.Eventually(t, "both gateways to track the new master", func() bool {
			return gateways[0].isTrackedAt(replica.Addr) && gateways[1].isTrackedAt(replica.Addr)
		})
		h.diverged.Store(false)
		h.await(t, "accepted uses at the new master", &h.accepted)
		if dies {
			master.Restart()
		}
		redistest.AwaitReplica(t, master, replica)
		if epoch := redistest.FailOvers(sentinels[0]); epoch != round+1 {
			t.Fatalf("Sentinel failed over %d times, the test requested %d: writes may be lost", epoch, round+1)
		}
		h.await(t, "accepted uses at the end", &h.accepted)
		h.await(t, "refused uses at the end", &h.refused)
		master, replica = replica, master
	}
	redistest.Eventually(t, "revokes", h.covered)
	end()
	wait()
	h.log(t)
}

// An operator requests a fail-over, and the old master acts as a master for some seconds. A gateway
// that still tracked it would miss revokes at the new master.
func TestReplacedMasterIsNotTracked(t *testing.T) {
	t.Parallel()
	master, replica, sentinels := redistest.StartBehindSentinels(t, 1)
	gateways := twoGateways(t, "redis://"+sentinels[0].Addr+"?sentinel=mymaster")
	a, b := gateways[0], gateways[1]
	awaitPeers(t, a, b)
	var all []*tokens.Session
	for range 10 {
		s := a.create("ann")
		b.warm(s)
		all = append(all, s)
	}
	redistest.Eventually(t, "a complete replica", func() bool { return master.Do("WAIT", "1", "100") == "1" })
	redistest.FailOverBySentinel(t, sentinels[0], replica)
	redistest.Eventually(t, "a gateway that writes to the new master and holds its lease", func() bool {
		s := session("bob")
		return a.Create(t.Context(), s, 0) == nil && replica.Do("EXISTS", key(s.Hash)) == "1" && a.Held()
	})
	for _, s := range all {
		a.revoke(s)
		b.deny(s)
	}
}

// A Sentinel's answer may be outdated. Unless all answers agree, look-ups read the store.
func TestNoLeaseUnlessSentinelsNameOneMaster(t *testing.T) {
	t.Parallel()
	master, _, servers := redistest.StartBehindSentinels(t, 1)
	conn := realConn(t, "redis://"+servers[0].Addr+"?sentinel=mymaster")
	sentinels := &fakeSentinels{Sentinels: conn}
	g := openStore(t, storeOn(t, conn), conn.Client(), Config{}, RedisConfig{Sentinels: sentinels})
	g.awaitHeld()
	s := g.create("ann")
	for _, names := range [][]string{{master.Addr, "127.0.0.1:1"}, {"127.0.0.1:1"}, {}} {
		sentinels.set(names)
		redistest.Eventually(t, fmt.Sprint("no lease with the masters ", names), func() bool { return !g.Held() })
		g.allow(s)
		sentinels.set(nil)
		g.awaitHeld()
		g.warm(s)
	}
}

// Until the last Sentinel knows of a fail-over, a gateway may look tokens up at the former master. A revoke waits for
// that, and then for a lease.
func TestRevokeWaitsUntilSentinelsNameOneMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sentinels := &fakeSentinels{names: []string{"new:6379", "old:6379"}}
		r := &Redis{lease: time.Second, sentinels: sentinels}
		minute := func() context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			t.Cleanup(cancel)
			return ctx
		}
		if err := r.WaitInvalidated(minute()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while the Sentinels disagree: %v", err)
		}
		for _, names := range [][]string{{"new:6379"}, {}, nil} { // if none answers, only the clock is left
			sentinels.Sentinels = noSentinels{}
			sentinels.set(names)
			start := time.Now()
			if err := r.WaitInvalidated(minute()); err != nil || time.Since(start) != withMargin(r.lease) {
				t.Errorf("with %v: after %v, %v", names, time.Since(start), err)
			}
		}
	})
}

// noSentinels is a Redis that is not behind Sentinel.
type noSentinels struct{ Sentinels }

func (noSentinels) NamedMasters(context.Context) ([]string, error) { return nil, nil }

// fakeSentinels returns fixed names. nil: the real ones; empty: an error.
type fakeSentinels struct {
	Sentinels
	mu    sync.Mutex
	names []string
}

func (s *fakeSentinels) set(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = names
}

func (s *fakeSentinels) NamedMasters(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	names := s.names
	s.mu.Unlock()
	switch {
	case names == nil:
		return s.Sentinels.NamedMasters(ctx)
	case len(names) == 0:
		return nil, tokens.ErrUnavailable
	}
	return names, nil
}

// While a server is tracked, look-ups must use it. A connection to another server ends the
// tracking.
func TestLookupsUseTrackedServer(t *testing.T) {
	t.Parallel()
	one, other := redistest.Start(t), redistest.Start(t)
	to := one.Addr
	c := client(t, "")
	c.Options().Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
	l := follow(c)
	ping := func() string {
		port, err := c.ConfigGet(t.Context(), "port").Result()
		if err != nil {
			return err.Error()
		}
		return port["port"]
	}
	if got := ping(); got != one.Port() {
		t.Fatalf("the look-up used %s", got)
	}
	moved := 0
	to = other.Addr
	l.pin(other.Addr, func() { moved++ })
	redistest.Eventually(t, "look-ups at the tracked server", func() bool { return ping() == other.Port() })
	if moved != 0 {
		t.Error("a look-up at the tracked server ended the tracking")
	}
	to = one.Addr
	l.pin(one.Addr, func() { moved++ })
	to = other.Addr
	redistest.Eventually(t, "look-ups at another server", func() bool { return ping() == other.Port() })
	if moved != 1 {
		t.Errorf("look-ups at another server ended the tracking %d times, want 1", moved)
	}
	l.pin(other.Addr, func() { moved++ })
	to = one.Addr
	l.unpin(true)
	redistest.Eventually(t, "look-ups to leave the replaced server", func() bool { return ping() == one.Port() })
	if moved != 1 {
		t.Error("a look-up after unpin ended a tracking")
	}
}

// isTrackedAt reports whether the gateway holds the lease at the server.
func (g *gateway) isTrackedAt(addr string) bool {
	g.tracker.mu.Lock()
	defer g.tracker.mu.Unlock()
	return g.Held() && len(g.tracker.conns) == 1 && g.tracker.conns[0].master.name == addr
}
