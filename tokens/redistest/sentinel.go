package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"gatepost/testport"
)

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

// StartBehindSentinels starts a master, a replica in sync with it, and n Sentinels that know all.
// Only [FailOverBySentinel] promotes the replica, so a busy machine causes no unexpected fail-over.
func StartBehindSentinels(t testing.TB, n int, args ...string) (master, replica *Server, sentinels []*Server) {
	t.Helper()
	args = append([]string{"--appendonly", "yes", "--repl-diskless-sync-delay", "0"}, args...)
	master = Start(t, args...)
	replica = Start(t, append(args, "--replicaof", "127.0.0.1 "+master.Port())...)
	for range n {
		s := StartSentinel(t, master)
		s.Do("SENTINEL", "SET", "mymaster", "down-after-milliseconds", "3600000", "failover-timeout", "60000")
		sentinels = append(sentinels, s)
	}
	AwaitReplica(t, replica, master)
	eventually(t, sentinels, "Sentinels that know the replica and each other", func() bool {
		for _, s := range sentinels {
			if !strings.Contains(s.Do("SENTINEL", "REPLICAS", "mymaster"), replica.Port()) || field(s, "num-other-sentinels") != n-1 {
				return false
			}
		}
		return true
	})
	return master, replica, sentinels
}

// FailOverBySentinel makes a Sentinel promote the replica, and returns when it names it as the
// master. Sentinel refuses while it has not queried the replica. A former master that runs does not
// know it yet.
func FailOverBySentinel(t testing.TB, sentinel, replica *Server) {
	t.Helper()
	Eventually(t, "Sentinel to fail over", func() bool {
		_, err := sentinel.try("SENTINEL", "FAILOVER", "mymaster")
		if err != nil && !strings.HasPrefix(err.Error(), "NOGOODSLAVE") {
			t.Fatalf("requesting a fail-over: %v", err)
		}
		return err == nil
	})
	AwaitNamed(t, replica, sentinel)
}

// AwaitNamed waits until all Sentinels name a server as the master.
func AwaitNamed(t testing.TB, master *Server, sentinels ...*Server) {
	t.Helper()
	for _, s := range sentinels {
		eventually(t, []*Server{s}, "a Sentinel that names the new master", func() bool {
			return strings.ReplaceAll(s.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"), "\n", ":") == master.Addr
		})
	}
}

// FailOvers returns how often a Sentinel has failed over, from its config epoch.
func FailOvers(sentinel *Server) int { return field(sentinel, "config-epoch") }

// field returns a number that a Sentinel reports about the master, or -1.
func field(sentinel *Server, name string) int {
	_, rest, _ := strings.Cut(sentinel.Do("SENTINEL", "MASTER", "mymaster"), name+"\n")
	text, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(text)
	if err != nil {
		return -1
	}
	return n
}
