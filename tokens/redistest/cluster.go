package redistest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatepost/testport"
)

// slots is the number of hash slots of a Redis Cluster.
const slots = 16384

// nodeTimeout is long, so that a busy machine makes no node fail.
const nodeTimeout = 5 * time.Second

// StartCluster starts a Redis Cluster of n masters without replicas, the slots shared out among them in order.
// With -short the test is skipped.
func StartCluster(t testing.TB, n int, args ...string) []*Server {
	t.Helper()
	if testing.Short() {
		t.Skip("a Redis Cluster takes seconds: run without -short")
	}
	nodes := make([]*Server, n)
	for i := range nodes {
		nodes[i] = startNode(t, args...)
		nodes[i].Do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		nodes[i].Do("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(slots*i/n), strconv.Itoa(slots*(i+1)/n-1))
		if i > 0 {
			nodes[0].Do("CLUSTER", "MEET", "127.0.0.1", nodes[i].Port(), nodes[i].busPort)
		}
	}
	Eventually(t, "cluster nodes that know each other", func() bool {
		for _, node := range nodes {
			info := node.Do("CLUSTER", "INFO")
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d\r", n)) {
				return false
			}
		}
		return true
	})
	return nodes
}

// startNode starts one server that can join a cluster.
func startNode(t testing.TB, args ...string) *Server {
	t.Helper()
	_, bus, _ := net.SplitHostPort(testport.Addr(t))
	node := Start(t, append([]string{"--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", strconv.Itoa(int(nodeTimeout.Milliseconds()))}, args...)...)
	node.busPort = bus
	return node
}

// StartSentinel starts a Sentinel that watches master under the name "mymaster" and considers it
// down after three seconds. A much shorter time fails: Sentinel sends its first PING to a new
// master after up to a second, but counts from before it. With half a second, it considered each
// new master down and returned to the old one, which had missed writes. With -short the test is skipped.
func StartSentinel(t testing.TB, master *Server) *Server {
	t.Helper()
	if testing.Short() {
		t.Skip("fail-overs by a Sentinel take seconds: run without -short")
	}
	s := &Server{Dir: t.TempDir(), t: t, program: binary(t)}
	t.Cleanup(s.Kill)
	s.Addr = testport.Addr(t)
	config := filepath.Join(s.Dir, "sentinel.conf")
	text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nlogfile %s\nprotected-mode no\n"+
		"sentinel monitor mymaster 127.0.0.1 %s 1\nsentinel down-after-milliseconds mymaster 3000\n"+
		"sentinel failover-timeout mymaster 6000\n", s.Port(), s.Dir, filepath.Join(s.Dir, "redis.log"), master.Port())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.args = []string{config, "--sentinel"}
	if err := s.launch(s.answers); err != nil {
		t.Fatalf("starting a sentinel: %v\n%s", err, s.log())
	}
	return s
}
