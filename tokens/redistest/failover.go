package redistest

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// StartReplicatedCluster starts a Redis Cluster of n masters with one replica each: replicas[i] is
// in sync with masters[i]. Only [FailOver] promotes a replica, so a busy machine causes no
// unexpected fail-over. With -short the test is skipped, because a fail-over takes seconds.
func StartReplicatedCluster(t testing.TB, n int, args ...string) (masters, replicas []*Server) {
	t.Helper()
	if testing.Short() {
		t.Skip("a fail-over of a Redis Cluster takes seconds: run without -short")
	}
	args = append([]string{"--cluster-replica-no-failover", "yes", "--repl-diskless-sync-delay", "0"}, args...)
	masters = StartCluster(t, n, args...)
	for _, master := range masters {
		replica := startNode(t, args...)
		masters[0].Do("CLUSTER", "MEET", "127.0.0.1", replica.Port(), replica.busPort)
		id := master.Do("CLUSTER", "MYID")
		Eventually(t, "a replica that knows its master", func() bool {
			return strings.Contains(replica.Do("CLUSTER", "NODES"), id) && reply(replica, "CLUSTER REPLICATE "+id) == "+OK"
		})
		replicas = append(replicas, replica)
	}
	for i := range masters {
		AwaitInStep(t, masters[i], replicas[i])
	}
	AwaitAgreement(t, append(masters, replicas...))
	return masters, replicas
}

// A Promotion is a way to make a replica of a Cluster the master.
type Promotion string

const (
	// Agreed is CLUSTER FAILOVER: the master takes part, and no writes are lost.
	Agreed Promotion = ""
	// Forced is CLUSTER FAILOVER FORCE: the other masters elect the replica, as if its master had
	// failed.
	Forced Promotion = " FORCE"
)

// electionMemory is how long a node of a Cluster remembers an election that it won: four times the
// node timeout. If it is to be promoted again in that time, Redis 7.0 takes the votes of that
// election for those of a new one. The node is a master without a higher epoch, takes writes, and
// steps back a moment later: acknowledged writes are lost.
const electionMemory = 4*nodeTimeout + time.Second

// CanFailOver reports whether [FailOver] can promote the replica now without waiting.
func (s *Server) CanFailOver() bool { return time.Since(s.elected) > electionMemory }

// FailOver promotes the replica, and returns as soon as the replica is a master. Other nodes may
// not know it yet. If the replica was promoted a short time ago, FailOver waits until Redis can
// promote it again.
func FailOver(t testing.TB, replica *Server, how Promotion) {
	t.Helper()
	for !replica.CanFailOver() {
		time.Sleep(100 * time.Millisecond)
	}
	defer func() { replica.elected = time.Now() }()
	for end := time.Now().Add(deadline); !isMaster(replica); {
		// An attempt expires after some seconds, for instance after a lost election. Then retry.
		_ = reply(replica, "CLUSTER FAILOVER"+string(how))
		for retry := time.Now().Add(6 * time.Second); !isMaster(replica) && time.Now().Before(retry); {
			time.Sleep(time.Millisecond)
		}
		if time.Now().After(end) {
			t.Fatalf("%s was not promoted\n%s", replica.Addr, replica.log())
		}
	}
}

// AwaitInStep waits until the replica has all writes of its master. If the master still accepts
// writes, it may fall behind again.
func AwaitInStep(t testing.TB, master, replica *Server) {
	t.Helper()
	Eventually(t, "a replica in step with its master", func() bool {
		info := replication(replica)
		return info["master_link_status"] == "up" && info["master_port"] == master.Port() &&
			info["slave_repl_offset"] == replication(master)["master_repl_offset"]
	})
}

// AwaitReplica waits until a former master replicates from the other.
func AwaitReplica(t testing.TB, replica, master *Server) {
	t.Helper()
	eventually(t, []*Server{master, replica}, "a former master that follows the new one", func() bool {
		info := replication(replica)
		return info["role"] == "slave" && info["master_link_status"] == "up" && info["master_port"] == master.Port()
	})
}

// AwaitAgreement waits until all nodes of a Cluster agree on masters, replicas, slots and every
// epoch, and no two masters have the same epoch. A move of a slot raises a master's epoch without a
// vote, and a collision raises it again. A replica that is promoted before it knows that epoch may
// win with the same one. Then both are masters, and the wrong one may step down.
func AwaitAgreement(t testing.TB, nodes []*Server) {
	t.Helper()
	eventually(t, nodes, "a cluster whose nodes agree", func() bool {
		views := map[string]bool{}
		for _, node := range nodes {
			view, stable := viewOf(node)
			if !stable {
				return false
			}
			views[strings.Join(view, "\n")] = len(view) == len(nodes)+1
		}
		return len(views) == 1 && !slices.Contains(slices.Collect(maps.Values(views)), false)
	})
}

// eventually is Eventually that, on failure, logs each node's view of the cluster and the end of
// its log.
func eventually(t testing.TB, nodes []*Server, what string, ok func() bool) {
	t.Helper()
	succeeded := false
	defer func() {
		for _, node := range nodes {
			if !succeeded {
				view, err := node.try("CLUSTER", "NODES")
				log := node.log()
				t.Logf("%s: %v\n%s\n%s", node.Addr, err, view, log[max(0, len(log)-2000):])
			}
		}
	}()
	Eventually(t, what, ok)
	succeeded = true
}

// viewOf returns a node's view of the Cluster: a line for each node and the current epoch. It is
// stable if the node serves all slots, no handshake is in progress, and no two masters have the
// same epoch.
func viewOf(node *Server) (view []string, stable bool) {
	info := node.Do("CLUSTER", "INFO")
	_, epoch, _ := strings.Cut(info, "cluster_current_epoch:")
	epoch, _, _ = strings.Cut(epoch, "\r\n")
	stable = strings.Contains(info, "cluster_state:ok")
	epochs := map[string]bool{}
	for line := range strings.Lines(node.Do("CLUSTER", "NODES")) {
		// id address flags master ping-sent pong-received config-epoch link-state slot...
		fields := strings.Fields(line)
		if len(fields) < 8 {
			continue
		}
		flags := strings.TrimPrefix(fields[2], "myself,")
		master := strings.HasPrefix(flags, "master")
		if strings.Contains(flags, "handshake") || (master && epochs[fields[6]]) {
			stable = false
		}
		if master {
			epochs[fields[6]] = true
		}
		view = append(view, strings.Join(append([]string{fields[0], flags, fields[3], fields[6]}, fields[8:]...), " "))
	}
	slices.Sort(view)
	return append(view, epoch), stable
}

func isMaster(s *Server) bool { return replication(s)["role"] == "master" }

// replication returns a server's INFO replication, empty if it does not answer.
func replication(s *Server) map[string]string {
	fields := map[string]string{}
	info, err := s.try("INFO", "replication")
	if err != nil {
		return fields
	}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

// reply returns the first line of a server's reply to a command, errors included.
func reply(s *Server, command string) string {
	line, err := s.raw(command)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}
