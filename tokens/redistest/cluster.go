package redistest

import (
	"fmt"
	"net"
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
