package e2e

import (
	"testing"
	"time"

	"gatepost/tokens/redistest"
)

// Behind Sentinel the promise holds while the master is replaced, by an operator or after a crash.
func TestRevokedMeansRefusedBehindSentinel(t *testing.T) {
	t.Parallel()
	lasts, seed := soak(t)/3, seed(t)
	master, replica, sentinels := redistest.StartBehindSentinels(t, 3)
	url := "redis://" + sentinels[0].Addr + "," + sentinels[1].Addr + "," + sentinels[2].Addr + "/?sentinel=mymaster"
	check(t, campaign{
		lasts: lasts, seed: seed, watched: &watched{master, replica, sentinels},
		setups: []setup{{Redis: url, Args: []string{"--log-level", "debug"}}, {Redis: url}},
	})
}

// watched are a master and its replica, and the Sentinels that watch them.
type watched struct {
	master, replica *redistest.Server
	sentinels       []*redistest.Server
}

func (w *watched) servers() []*redistest.Server {
	if w == nil {
		return nil
	}
	return []*redistest.Server{w.master, w.replica}
}

// ofWatched returns the fail-overs by a Sentinel. As in a Cluster, the replica has received all
// that the master acknowledged, and the replaced master takes no writes (min-replicas-to-write).
// Otherwise acknowledged data is lost, as documented.
func (n *nemesis) ofWatched() []fault {
	w := n.watched
	var from time.Duration
	promote := func(former func()) {
		w.master.Do("CONFIG", "SET", "min-replicas-to-write", "1")
		w.master.Do("CLIENT", "PAUSE", "60000", "WRITE")
		redistest.AwaitInStep(n.t, w.master, w.replica)
		from = n.history.now()
		former()
		redistest.FailOverBySentinel(n.t, w.sentinels[n.random.IntN(len(w.sentinels))], w.replica)
		w.master, w.replica = w.replica, w.master
	}
	// Sentinel demotes a former master after eight seconds, by these commands. This is sooner. If
	// the former master has died, it starts as a master, when no Sentinel names it any more.
	follow := func(start func()) {
		redistest.AwaitNamed(n.t, w.master, w.sentinels...)
		start()
		w.replica.Do("REPLICAOF", "127.0.0.1", w.master.Port())
		w.replica.Do("CLIENT", "KILL", "TYPE", "normal")
		w.replica.Do("CLIENT", "KILL", "TYPE", "pubsub")
		redistest.AwaitReplica(n.t, w.replica, w.master)
		w.replica.Do("CONFIG", "SET", "min-replicas-to-write", "0")
		n.history.wasApart(n.history.since(from))
	}
	all := []fault{
		{name: "hands over", most: 3 * time.Second, heal: func() { follow(nothing) }, inflict: func() {
			promote(nothing)
			w.replica.Do("CLIENT", "UNPAUSE")
		}},
		{name: "loses its master", most: 2 * time.Second, heal: func() { follow(w.replica.Restart) }, inflict: func() { promote(w.master.Kill) }},
	}
	for i := range all {
		all[i].place = "redis behind Sentinel"
	}
	return all
}
