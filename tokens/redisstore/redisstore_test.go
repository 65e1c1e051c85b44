package redisstore

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

func mustOpen(t testing.TB, url string) *Store {
	t.Helper()
	options, err := ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	return Open(options)
}

// permissions are those of the package comment, which is read here, so that it is true.
var permissions = func() string {
	source, err := os.ReadFile("redisstore.go")
	if err != nil {
		panic(err)
	}
	_, rest, _ := strings.Cut(string(source), "// ~gatepost:* and ")
	list, _, _ := strings.Cut(rest, ", in a Cluster")
	return strings.NewReplacer("//", "", "\n", " ").Replace(list)
}()

func open(t testing.TB, server *redistest.Server) *Store {
	t.Helper()
	s := mustOpen(t, server.URL())
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestRedisIsATokenStore(t *testing.T) {
	server := redistest.Start(t)
	storetest.Run(t, func(t *testing.T) tokens.Store {
		server.Do("FLUSHALL")
		return mustOpen(t, server.URL())
	})
}

func TestRedisClusterIsATokenStore(t *testing.T) {
	nodes := redistest.StartCluster(t, 3)
	storetest.Run(t, func(t *testing.T) tokens.Store {
		for _, node := range nodes {
			node.Do("FLUSHALL")
		}
		return mustOpen(t, "redis://"+nodes[0].Addr+","+nodes[1].Addr+"/?cluster=true")
	})
}

// A call has no more time than its own, and no more than the caller's.
func TestACallIsBoundedByTheEarlierDeadline(t *testing.T) {
	for _, left := range []time.Duration{0, callTimeout / 2, 2 * callTimeout, -1} {
		caller, cancel := t.Context(), context.CancelFunc(func() {})
		if left >= 0 {
			caller, cancel = context.WithTimeout(caller, left)
		}
		before := time.Now()
		call, done := bounded(caller)
		end, bound := call.Deadline()
		if !bound || end.After(time.Now().Add(callTimeout)) {
			t.Errorf("with %v left a call may take until %v, from %v", left, end, before)
		}
		if theirs, ok := caller.Deadline(); ok && (end.After(theirs) || left < callTimeout && call != caller) {
			t.Errorf("with %v left a call may take until %v, its caller until %v", left, end, theirs)
		}
		done()
		cancel()
	}
}
