package e2e

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"gatepost/tokens/redistest"
)

// A Redis Cluster keeps the same promise while its masters are replaced, by failover or after a
// crash, and while slots move.
func TestRevokedMeansRefusedInACluster(t *testing.T) {
	t.Parallel()
	lasts, seed := soak(t)/2, seed(t)
	masters, replicas := redistest.StartReplicatedCluster(t, 3, "--appendonly", "yes")
	url := fmt.Sprintf("redis://%s,%s,%s/?cluster=true", masters[0].Addr, masters[1].Addr, masters[2].Addr)
	check(t, campaign{
		lasts: lasts, seed: seed, shards: &shards{masters, replicas},
		setups: []setup{{Redis: url, Args: []string{"--log-level", "debug"}}, {Redis: url}},
	})
}

// shards are the nodes of a Redis Cluster; replicas[i] follows masters[i].
type shards struct{ masters, replicas []*redistest.Server }

func (s *shards) all() []*redistest.Server {
	if s == nil {
		return nil
	}
	return append(append([]*redistest.Server{}, s.masters...), s.replicas...)
}

// promote makes the replica of a shard its master.
func (s *shards) promote(t *testing.T, i int, how redistest.Promotion) {
	redistest.FailOver(t, s.replicas[i], how)
	s.masters[i], s.replicas[i] = s.replicas[i], s.masters[i]
}

func (n *nemesis) ofShards() []fault {
	s := n.shards
	all := []fault{{name: "moves slots", inflict: n.moveSlots, heal: nothing}}
	for i := range s.masters {
		follows := func() {
			redistest.AwaitReplica(n.t, s.replicas[i], s.masters[i])
			redistest.AwaitAgreement(n.t, s.all())
		}
		handOver := func() {
			if !s.replicas[i].CanFailOver() {
				return
			}
			from := n.history.now()
			s.promote(n.t, i, redistest.Agreed)
			follows()
			n.history.wasApart(n.history.since(from))
		}
		// The master that dies has replicated everything it acknowledged. Otherwise acknowledged
		// data is lost, as documented.
		died := false
		die := func() {
			if died = s.replicas[i].CanFailOver(); !died {
				return
			}
			s.masters[i].Do("CLIENT", "PAUSE", "60000", "WRITE")
			redistest.AwaitInStep(n.t, s.masters[i], s.replicas[i])
			s.masters[i].Kill()
			s.promote(n.t, i, redistest.Forced)
		}
		revive := func() {
			if died {
				s.replicas[i].Restart()
				follows()
			}
		}
		all = append(all,
			fault{name: fmt.Sprintf("hands shard %d over", i), inflict: handOver, heal: nothing},
			fault{name: fmt.Sprintf("loses the master of shard %d", i), inflict: die, heal: revive, most: 2 * time.Second})
	}
	for i := range all {
		all[i].place = "the cluster"
	}
	return all
}

// moveSlots moves some non-empty slots to another master.
func (n *nemesis) moveSlots() {
	for range 5 {
		masters := n.shards.masters
		key := masters[n.random.IntN(len(masters))].Do("RANDOMKEY")
		slot, err := strconv.Atoi(masters[0].Do("CLUSTER", "KEYSLOT", key))
		if err != nil {
			n.t.Fatal(err)
		}
		pause := time.Duration(n.random.Int64N(int64(10 * time.Millisecond)))
		redistest.MoveSlot(n.t, masters, slot, n.random.IntN(len(masters)), func() { time.Sleep(pause) })
	}
	redistest.AwaitAgreement(n.t, n.shards.all())
}
