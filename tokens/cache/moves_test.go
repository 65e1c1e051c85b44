package cache

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatepost/tokens/redistest"
)

// twoGateways starts two gateways as users run them, and waits until each holds its lease.
func twoGateways(t *testing.T, url string) []*gateway {
	t.Helper()
	var gateways []*gateway
	for range 2 {
		store := realStore(t, url)
		gateways = append(gateways, openStore(t, store, store.Client(), Config{}, RedisConfig{}))
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
	over, end := context.WithTimeout(t.Context(), *chaos)
	defer end()
	wait := h.traffic(t, over, gateways)
	moved := 0
	for over.Err() == nil {
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
	wait()
	t.Logf("%d slots moved", moved)
	if moved < 20 {
		t.Errorf("%d slots have moved: too few to show anything", moved)
	}
	h.showsSomething(t)
	for _, g := range gateways {
		g.awaitHeld()
	}
}

// Sentinel makes the replica the master, twice, while tokens are minted, used and revoked. Replication is
// asynchronous, and what a master acknowledged and did not hand on is lost with it; that is documented (WAIT,
// min-replicas-to-write). So the master here dies when it has handed on all: as at an operator's fail-over.
func TestThePromiseWhileSentinelFailsOver(t *testing.T) {
	if testing.Short() {
		t.Skip("Sentinel takes its time: run without -short")
	}
	master := redistest.Start(t, "--appendonly", "yes")
	replica := redistest.Start(t, "--appendonly", "yes", "--replicaof", "127.0.0.1 "+master.Port())
	sentinel := redistest.StartSentinel(t, master)
	redistest.Eventually(t, "a replica in step that Sentinel knows", func() bool {
		return strings.Contains(replication(t, replica), "master_link_status:up") &&
			strings.Contains(sentinel.Do("SENTINEL", "REPLICAS", "mymaster"), replica.Port())
	})
	gateways := twoGateways(t, "redis://"+sentinel.Addr+"?sentinel=mymaster")
	h := &history{start: time.Now()}
	over, end := context.WithCancel(t.Context())
	defer end()
	wait := h.traffic(t, over, gateways)
	for round := range 2 {
		await := func(what string, count func() int64) {
			before := count()
			redistest.Eventually(t, what, func() bool { return count() > before+20 })
		}
		await("uses that are accepted", h.accepted.Load)
		await("uses that are refused", h.refused.Load)
		master.Do("CLIENT", "PAUSE", "60000", "WRITE")
		redistest.Eventually(t, "a replica that has it all", func() bool {
			sent := offset(t, master, "master_repl_offset:")
			return sent != "" && sent == offset(t, replica, "slave_repl_offset:")
		})
		master.Kill()
		redistest.Eventually(t, "Sentinel to name the other", func() bool {
			return strings.HasSuffix(sentinel.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"), replica.Port())
		})
		for _, g := range gateways {
			g.awaitHeld()
		}
		await("uses that are accepted by the new master", h.accepted.Load)
		if round == 1 {
			break
		}
		master.Restart()
		redistest.Eventually(t, "the old master to follow the new one", func() bool {
			info := replication(t, master)
			return strings.Contains(info, "role:slave") && strings.Contains(info, "master_link_status:up")
		})
		master, replica = replica, master
	}
	end()
	wait()
	h.showsSomething(t)
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
