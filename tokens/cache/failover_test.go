package cache

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/redistest"
)

// A replica of a Cluster is promoted. Until the masters have reported it to each other, a gateway
// may still track the former master. It must refuse what another gateway revokes at the new master.
func TestRevokeAtNewClusterMasterHoldsEverywhere(t *testing.T) {
	t.Parallel()
	masters, replicas := redistest.StartReplicatedCluster(t, 3)
	gateways := twoGateways(t, "redis://"+masters[0].Addr+"?cluster=true")
	a, b := gateways[0], gateways[1]
	for i := range masters {
		awaitPeers(t, a, b)
		var all []*tokens.Session
		for range 2 {
			all = append(all, a.createOn(masters[i]))
		}
		for _, s := range all {
			a.warm(s)
			b.warm(s)
		}
		// The former master cannot replicate from the new one for a while, so it sends no
		// invalidation of its own.
		masters[i].Do("CONFIG", "SET", "masterauth", "wrong")
		redistest.FailOver(t, replicas[i], redistest.Agreed)
		for _, s := range all {
			// a busy machine may take a node for down
			redistest.Eventually(t, "a revoke", func() bool {
				err := a.Revoke(t.Context(), s.Hash)
				if err != nil && !errors.Is(err, tokens.ErrUnavailable) {
					t.Fatalf("revoking: %v", err)
				}
				return err == nil
			})
			b.deny(s)
		}
		masters[i].Do("CONFIG", "SET", "masterauth", "")
		redistest.AwaitReplica(t, masters[i], replicas[i])
	}
}

// Each master of a Cluster is replaced, by a planned fail-over and after a crash, under load.
// Before it dies, a master replicates fullStore: unreplicated writes are lost, as documented.
func TestRevokesHoldDuringClusterFailover(t *testing.T) {
	t.Parallel()
	masters, replicas := redistest.StartReplicatedCluster(t, 3)
	gateways := twoGateways(t, "redis://"+masters[0].Addr+","+masters[1].Addr+"?cluster=true")
	h := &history{start: time.Now()}
	over, end := context.WithCancel(t.Context())
	defer end()
	wait := h.traffic(t, over, gateways)
	for round := range 2 * len(masters) {
		i := round % len(masters)
		h.await(t, "accepted uses", &h.accepted)
		h.await(t, "refused uses", &h.refused)
		dies := round%2 == 0
		if dies {
			masters[i].Do("CLIENT", "PAUSE", "60000", "WRITE")
			redistest.AwaitInStep(t, masters[i], replicas[i])
			masters[i].Kill()
			redistest.FailOver(t, replicas[i], redistest.Forced)
		} else {
			h.diverged.Store(true)
			redistest.FailOver(t, replicas[i], redistest.Agreed)
		}
		redistest.Eventually(t, "both gateways to track the new master", func() bool {
			return gateways[0].tracks(replicas[i]) && gateways[1].tracks(replicas[i])
		})
		h.diverged.Store(false)
		if dies {
			masters[i].Restart()
		}
		redistest.AwaitReplica(t, masters[i], replicas[i])
		masters[i], replicas[i] = replicas[i], masters[i]
	}
	h.await(t, "accepted uses at the end", &h.accepted)
	h.await(t, "refused uses at the end", &h.refused)
	redistest.Eventually(t, "revokes", h.covered)
	end()
	wait()
	h.log(t)
}

// await waits until count has grown.
func (h *history) await(t *testing.T, what string, count *atomic.Int64) {
	t.Helper()
	before := count.Load()
	redistest.Eventually(t, what, func() bool { return count.Load() > before+20 })
}

// tracks reports whether the gateway holds a lease and tracks the node.
func (g *gateway) tracks(node *redistest.Server) bool {
	g.tracker.mu.Lock()
	defer g.tracker.mu.Unlock()
	return g.Held() && slices.ContainsFunc(g.tracker.conns, func(c *conn) bool { return c.master.name == node.Addr })
}

// createOn creates a session whose token is stored on the node.
func (g *gateway) createOn(node *redistest.Server) (s *tokens.Session) {
	g.t.Helper()
	redistest.Eventually(g.t, "a token on "+node.Addr, func() bool {
		s = g.create("ann")
		return node.Holds(key(s.Hash))
	})
	return s
}
