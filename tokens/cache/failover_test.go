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

// A replica of a Cluster is promoted. Until the masters know that from each other, a gateway may still track the former
// master; what another gateway revokes at the new one must be refused there all the same.
func TestARevokeAtANewMasterOfAClusterIsRefusedEverywhere(t *testing.T) {
	masters, replicas := redistest.StartReplicatedCluster(t, 3)
	gateways := twoGateways(t, "redis://"+masters[0].Addr+"?cluster=true")
	a, b := gateways[0], gateways[1]
	for i := range masters {
		awaitAcquainted(t, a, b)
		var all []*tokens.Session
		for range 2 {
			all = append(all, a.createOn(masters[i]))
		}
		for _, s := range all {
			a.warm(s)
			b.warm(s)
		}
		// The former master cannot replicate from the new one for a while, so it sends no invalidation of its own.
		masters[i].Do("CONFIG", "SET", "masterauth", "wrong")
		redistest.FailOver(t, replicas[i], redistest.Agreed)
		for _, s := range all {
			redistest.Eventually(t, "a revoke", func() bool { // a busy machine may take a node for down
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

// Each master of a Cluster is replaced, by agreement and because it died, while tokens are minted, used and revoked. A
// master that dies has replicated all before: what it acknowledged and did not replicate is lost with it, as documented.
func TestThePromiseWhileAClusterFailsOver(t *testing.T) {
	masters, replicas := redistest.StartReplicatedCluster(t, 3)
	gateways := twoGateways(t, "redis://"+masters[0].Addr+","+masters[1].Addr+"?cluster=true")
	h := &history{start: time.Now()}
	over, end := context.WithCancel(t.Context())
	defer end()
	wait := h.traffic(t, over, gateways)
	for round := range 2 * len(masters) {
		i := round % len(masters)
		h.await(t, "uses that are accepted", &h.accepted)
		h.await(t, "uses that are refused", &h.refused)
		dies := round%2 == 0
		if dies {
			masters[i].Do("CLIENT", "PAUSE", "60000", "WRITE")
			redistest.AwaitInStep(t, masters[i], replicas[i])
			masters[i].Kill()
			redistest.FailOver(t, replicas[i], redistest.Forced)
		} else {
			h.apart.Store(true)
			redistest.FailOver(t, replicas[i], redistest.Agreed)
		}
		redistest.Eventually(t, "gateways that track the new master", func() bool {
			return gateways[0].tracks(replicas[i]) && gateways[1].tracks(replicas[i])
		})
		h.apart.Store(false)
		if dies {
			masters[i].Restart()
		}
		redistest.AwaitReplica(t, masters[i], replicas[i])
		masters[i], replicas[i] = replicas[i], masters[i]
	}
	h.await(t, "uses that are accepted in the end", &h.accepted)
	h.await(t, "uses that are refused in the end", &h.refused)
	end()
	wait()
	h.showsSomething(t)
}

// await waits until some more are counted.
func (h *history) await(t *testing.T, what string, count *atomic.Int64) {
	t.Helper()
	before := count.Load()
	redistest.Eventually(t, what, func() bool { return count.Load() > before+20 })
}

// tracks reports whether the gateway holds a lease for which it tracks the node.
func (g *gateway) tracks(node *redistest.Server) bool {
	g.tracker.mu.Lock()
	defer g.tracker.mu.Unlock()
	return g.Held() && slices.ContainsFunc(g.tracker.conns, func(c *conn) bool { return c.master.name == node.Addr })
}

// createOn creates a session whose token is kept on the node.
func (g *gateway) createOn(node *redistest.Server) (s *tokens.Session) {
	g.t.Helper()
	redistest.Eventually(g.t, "a token on "+node.Addr, func() bool {
		s = g.create("ann")
		return node.Holds(key(s.Hash))
	})
	return s
}
