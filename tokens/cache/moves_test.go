package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/redisstore"
	"gatepost/tokens/redistest"
)

// twoGateways starts two gateways as users run them, and waits until each holds its lease.
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

// A Redis Cluster whose slots change hands while tokens that lie in them are minted, used and revoked.
func TestThePromiseWhileSlotsMove(t *testing.T) {
	nodes := redistest.StartCluster(t, 3)
	gateways := twoGateways(t, "redis://"+nodes[0].Addr+"?cluster=true")
	h := &history{start: time.Now()}
	over, end := context.WithCancel(t.Context())
	defer end()
	wait := h.traffic(t, over, gateways)
	moved := 0
	for time.Since(h.start) < *chaos || moved < 20 { // fewer would show nothing, and a busy machine needs longer for them
		// The slot of anything that is in use: a token, a user's index, a session's id.
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
	h.showsSomething(t)
	for _, g := range gateways {
		g.awaitHeld()
	}
}

// Sentinel makes the replica the master, twice, while tokens are minted, used and revoked: at first because the master
// died, then because an operator wants it so and the old master lives on, for seconds as a master. Replication is
// asynchronous, and what a master acknowledged and did not hand on is lost with it; that is documented (WAIT,
// min-replicas-to-write). So the masters here have handed on all before, and the one that lives on takes no writes without a
// replica. For the same reason it is the test alone that has Sentinel fail over: one that does so unasked, because the machine
// was busy, may choose a server that has just come back and knows nothing of what happened since.
func TestThePromiseWhileSentinelFailsOver(t *testing.T) {
	if testing.Short() {
		t.Skip("Sentinel takes its time: run without -short")
	}
	master, replica, sentinel := startReplicated(t)
	gateways := twoGateways(t, "redis://"+sentinel.Addr+"?sentinel=mymaster")
	h := &history{start: time.Now()}
	over, end := context.WithCancel(t.Context())
	defer end()
	wait := h.traffic(t, over, gateways)
	for round, dies := range []bool{true, false} {
		h.await(t, "uses that are accepted", &h.accepted)
		h.await(t, "uses that are refused", &h.refused)
		if !dies {
			master.Do("CONFIG", "SET", "min-replicas-to-write", "1")
		}
		master.Do("CLIENT", "PAUSE", "60000", "WRITE")
		redistest.Eventually(t, "a replica that has it all", func() bool {
			sent := offset(t, master, "master_repl_offset:")
			return sent != "" && sent == offset(t, replica, "slave_repl_offset:")
		})
		if dies {
			master.Kill()
		} else {
			h.apart.Store(true)
		}
		failOver(t, sentinel, replica)
		if !dies {
			master.Do("CLIENT", "UNPAUSE")
		}
		redistest.Eventually(t, "gateways that are at the new master", func() bool {
			return gateways[0].isTrackedAt(replica.Addr) && gateways[1].isTrackedAt(replica.Addr)
		})
		h.apart.Store(false)
		h.await(t, "uses that are accepted by the new master", &h.accepted)
		if dies {
			master.Restart()
		}
		redistest.Eventually(t, "the old master to follow the new one", func() bool {
			info := replication(t, master)
			return strings.Contains(info, "role:slave") && strings.Contains(info, "master_link_status:up")
		})
		if epoch := failovers(t, sentinel); epoch != round+1 {
			t.Fatalf("Sentinel has failed over %d times, the test %d times: what was lost meanwhile is not known", epoch, round+1)
		}
		h.await(t, "uses that are accepted in the end", &h.accepted)
		h.await(t, "uses that are refused in the end", &h.refused)
		master, replica = replica, master
	}
	end()
	wait()
	h.showsSomething(t)
}

// An operator has Sentinel fail over, and the old master lives on, for seconds as a master. Who still listened to it
// would not hear what is revoked at the new one.
func TestNobodyListensToAMasterThatWasReplaced(t *testing.T) {
	master, replica, sentinel := startReplicated(t)
	gateways := twoGateways(t, "redis://"+sentinel.Addr+"?sentinel=mymaster")
	a, b := gateways[0], gateways[1]
	awaitAcquainted(t, a, b)
	var all []*tokens.Session
	for range 10 {
		s := a.create("ann")
		b.warm(s)
		all = append(all, s)
	}
	redistest.Eventually(t, "a replica that has it all", func() bool { return master.Do("WAIT", "1", "100") == "1" })
	failOver(t, sentinel, replica)
	redistest.Eventually(t, "a gateway that writes to the new master and is tracked", func() bool {
		s := session("bob")
		return a.Create(t.Context(), s, 0) == nil && replica.Do("EXISTS", key(s.Hash)) == "1" && a.Held()
	})
	for _, s := range all {
		a.revoke(s)
		b.deny(s)
	}
}

// What some Sentinel says may be old. Until all that answer say the same, or where none does, look-ups ask the store.
func TestThereIsNoLeaseWhileTheSentinelsDoNotNameOneMaster(t *testing.T) {
	master, _, sentinel := startReplicated(t)
	conn := realConn(t, "redis://"+sentinel.Addr+"?sentinel=mymaster")
	sentinels := &sentinelsThatSay{Sentinels: conn}
	g := openStore(t, redisstore.New(conn), conn.Client(), Config{}, RedisConfig{Sentinels: sentinels})
	g.awaitHeld()
	s := g.create("ann")
	for _, said := range [][]string{{master.Addr, "127.0.0.1:1"}, {"127.0.0.1:1"}, {}} {
		sentinels.say(said)
		redistest.Eventually(t, fmt.Sprint("no lease where they say ", said), func() bool { return !g.Held() })
		g.allow(s)
		sentinels.say(nil)
		g.awaitHeld()
		g.warm(s)
	}
}

// sentinelsThatSay say what they are told to, nil: what is true, and empty: nothing.
type sentinelsThatSay struct {
	Sentinels
	mu   sync.Mutex
	said []string
}

func (s *sentinelsThatSay) say(said []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = said
}

func (s *sentinelsThatSay) NamedMasters(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	said := s.said
	s.mu.Unlock()
	switch {
	case said == nil:
		return s.Sentinels.NamedMasters(ctx)
	case len(said) == 0:
		return nil, tokens.ErrUnavailable
	}
	return said, nil
}

// A tracking whose look-ups could go to another server is none, and a look-up that could go to another than the tracked one ends it.
func TestLookupsGoWhereTheTrackingGoes(t *testing.T) {
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
		t.Fatalf("asked %s", got)
	}
	moved := 0
	to = other.Addr
	l.pin(other.Addr, func() { moved++ })
	redistest.Eventually(t, "look-ups that go where the tracking is", func() bool { return ping() == other.Port() })
	if moved != 0 {
		t.Error("a look-up that went to the tracked server ended the tracking")
	}
	to = one.Addr
	l.pin(one.Addr, func() { moved++ })
	to = other.Addr
	redistest.Eventually(t, "look-ups that go elsewhere", func() bool { return ping() == other.Port() })
	if moved != 1 {
		t.Errorf("look-ups elsewhere ended the tracking %d times", moved)
	}
	l.pin(other.Addr, func() { moved++ })
	to = one.Addr
	l.unpin(true)
	redistest.Eventually(t, "look-ups that leave a replaced server", func() bool { return ping() == one.Port() })
	if moved != 1 {
		t.Error("without a tracking there is none to end")
	}
}

// startReplicated starts a master, a replica in step with it, and a Sentinel that knows both and fails over only when it is
// told to.
func startReplicated(t *testing.T) (master, replica, sentinel *redistest.Server) {
	t.Helper()
	master = redistest.Start(t, "--appendonly", "yes", "--repl-diskless-sync-delay", "0")
	replica = redistest.Start(t, "--appendonly", "yes", "--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 "+master.Port())
	sentinel = redistest.StartSentinel(t, master)
	sentinel.Do("SENTINEL", "SET", "mymaster", "down-after-milliseconds", "3600000", "failover-timeout", "60000")
	redistest.Eventually(t, "a replica in step that Sentinel knows", func() bool {
		return strings.Contains(replication(t, replica), "master_link_status:up") &&
			strings.Contains(sentinel.Do("SENTINEL", "REPLICAS", "mymaster"), replica.Port())
	})
	return master, replica, sentinel
}

// isTrackedAt says whether the gateway holds its lease at the server, so that its look-ups go there too.
func (g *gateway) isTrackedAt(addr string) bool {
	g.tracker.mu.Lock()
	defer g.tracker.mu.Unlock()
	return g.Held() && len(g.tracker.conns) == 1 && g.tracker.conns[0].master.name == addr
}

// failOver has Sentinel make the replica the master, and waits until it names it. Until Sentinel has asked a replica how it
// is, it does not take it for a suitable one.
func failOver(t *testing.T, sentinel, replica *redistest.Server) {
	t.Helper()
	c := client(t, sentinel.Addr)
	defer c.Close()
	redistest.Eventually(t, "Sentinel to fail over", func() bool {
		err := c.Do(t.Context(), "SENTINEL", "FAILOVER", "mymaster").Err()
		if err != nil && !strings.HasPrefix(err.Error(), "NOGOODSLAVE") {
			t.Fatalf("asking for a fail-over: %v", err)
		}
		return err == nil
	})
	redistest.Eventually(t, "Sentinel to name the other", func() bool { return namedBy(sentinel) == replica.Addr })
}

// namedBy is the address of the master that a Sentinel names.
func namedBy(sentinel *redistest.Server) string {
	return strings.ReplaceAll(sentinel.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"), "\n", ":")
}

// failovers is how often a Sentinel has failed over: it counts its epochs.
func failovers(t *testing.T, sentinel *redistest.Server) int {
	t.Helper()
	_, rest, _ := strings.Cut(sentinel.Do("SENTINEL", "MASTER", "mymaster"), "config-epoch\n")
	epoch, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(epoch)
	if err != nil {
		t.Fatalf("reading Sentinel's epoch: %v", err)
	}
	return n
}

// replication is what a server says of its part in it, or nothing: one that is made a replica drops its clients.
func replication(t *testing.T, s *redistest.Server) string {
	c := client(t, s.Addr)
	defer c.Close()
	info, _ := c.Info(t.Context(), "replication").Result()
	return info
}

func offset(t *testing.T, s *redistest.Server, field string) string {
	_, rest, _ := strings.Cut(replication(t, s), field)
	value, _, _ := strings.Cut(rest, "\r")
	return value
}
