package redistest

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// StartReplicatedCluster starts a Redis Cluster of n masters with one replica each: replicas[i] is in step with
// masters[i]. A replica is promoted only by [FailOver], so a busy machine causes no fail-over that the test does not
// know of.
func StartReplicatedCluster(t testing.TB, n int, args ...string) (masters, replicas []*Server) {
	t.Helper()
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
	// Agreed is CLUSTER FAILOVER: the master hands over, and loses nothing.
	Agreed Promotion = ""
	// Forced is CLUSTER FAILOVER FORCE: the other masters elect the replica without the master, as if it had failed.
	Forced Promotion = " FORCE"
)

// FailOver promotes the replica, and returns as soon as the replica is a master. Other nodes may not know it yet.
func FailOver(t testing.TB, replica *Server, how Promotion) {
	t.Helper()
	for end := time.Now().Add(deadline); !isMaster(replica); {
		// An attempt expires after some seconds, for instance if the election was lost: then the next one is made.
		_ = reply(replica, "CLUSTER FAILOVER"+string(how))
		for retry := time.Now().Add(6 * time.Second); !isMaster(replica) && time.Now().Before(retry); {
			time.Sleep(time.Millisecond)
		}
		if time.Now().After(end) {
			t.Fatalf("%s was not promoted\n%s", replica.Addr, replica.log())
		}
	}
}

// AwaitInStep waits until the replica has all that its master has written. If the master still takes writes it may
// fall behind again.
func AwaitInStep(t testing.TB, master, replica *Server) {
	t.Helper()
	Eventually(t, "a replica in step with its master", func() bool {
		info := replication(replica)
		return info["master_link_status"] == "up" && info["master_port"] == master.Port() &&
			info["slave_repl_offset"] == replication(master)["master_repl_offset"]
	})
}

// AwaitReplica waits until a node that was a master follows the other.
func AwaitReplica(t testing.TB, replica, master *Server) {
	t.Helper()
	eventually(t, []*Server{master, replica}, "a former master that follows the new one", func() bool {
		info := replication(replica)
		return info["role"] == "slave" && info["master_link_status"] == "up" && info["master_port"] == master.Port()
	})
}

// AwaitAgreement waits until the nodes of a Cluster agree on who is a master, who a replica, who has which slots, and on
// every epoch, and until no two masters have the same epoch. A move of a slot raises the epoch of a master without asking
// the others, and a collision raises it again. A replica that is promoted before it knows that epoch may win with the same
// one: then both are masters, and the wrong one may step back.
func AwaitAgreement(t testing.TB, nodes []*Server) {
	t.Helper()
	eventually(t, nodes, "a cluster whose nodes agree", func() bool {
		views := map[string]bool{}
		for _, node := range nodes {
			view, settled := viewOf(node)
			if !settled {
				return false
			}
			views[strings.Join(view, "\n")] = len(view) == len(nodes)+1
		}
		return len(views) == 1 && !slices.Contains(slices.Collect(maps.Values(views)), false)
	})
}

// eventually is Eventually that logs, if it fails, what each node knows of the others and the end of its log.
func eventually(t testing.TB, nodes []*Server, what string, ok func() bool) {
	t.Helper()
	came := false
	defer func() {
		for _, node := range nodes {
			if !came {
				view, err := node.try("CLUSTER", "NODES")
				log := node.log()
				t.Logf("%s: %v\n%s\n%s", node.Addr, err, view, log[max(0, len(log)-2000):])
			}
		}
	}()
	Eventually(t, what, ok)
	came = true
}

// viewOf is what a node of a Cluster knows: the current epoch, and a line for each node. It is settled if the node serves
// all slots, no handshake is under way and no two masters have the same epoch.
func viewOf(node *Server) (view []string, settled bool) {
	info := node.Do("CLUSTER", "INFO")
	_, epoch, _ := strings.Cut(info, "cluster_current_epoch:")
	epoch, _, _ = strings.Cut(epoch, "\r\n")
	settled = strings.Contains(info, "cluster_state:ok")
	epochs := map[string]bool{}
	for line := range strings.Lines(node.Do("CLUSTER", "NODES")) {
		fields := strings.Fields(line) // id address flags master ping-sent pong-received config-epoch link-state slot...
		if len(fields) < 8 {
			continue
		}
		flags := strings.TrimPrefix(fields[2], "myself,")
		master := strings.HasPrefix(flags, "master")
		if strings.Contains(flags, "handshake") || (master && epochs[fields[6]]) {
			settled = false
		}
		if master {
			epochs[fields[6]] = true
		}
		view = append(view, strings.Join(append([]string{fields[0], flags, fields[3], fields[6]}, fields[8:]...), " "))
	}
	slices.Sort(view)
	return append(view, epoch), settled
}

func isMaster(s *Server) bool { return replication(s)["role"] == "master" }

// replication is what a server reports of its part in the replication, or nothing if it does not answer.
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

// reply is the first line of what a server replies to a command, errors included.
func reply(s *Server, command string) string {
	line, err := s.raw(command)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}
