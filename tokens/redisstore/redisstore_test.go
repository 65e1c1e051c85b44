package redisstore

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"gatepost/redisconn"
	"gatepost/tokens"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

// mustOpen opens a store with a timeout for busy machines.
func mustOpen(t testing.TB, url string) *Store {
	t.Helper()
	return mustOpenWith(t, url, time.Minute)
}

// mustOpenAsUsed opens a store with the timeouts of a gateway.
func mustOpenAsUsed(t testing.TB, url string) *Store {
	t.Helper()
	return mustOpenWith(t, url, 0)
}

func mustOpenWith(t testing.TB, url string, timeout time.Duration) *Store {
	t.Helper()
	options, err := redisconn.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	if timeout > 0 {
		options.Timeout = timeout
	}
	store, err := New(Config{Conn: redisconn.Open(options)})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// permissions are those of the package comment. Reading them here tests the comment.
var permissions = func() string {
	source, err := os.ReadFile("redisstore.go")
	if err != nil {
		panic(err)
	}
	_, rest, _ := strings.Cut(string(source), " ~gatepost:* and ")
	list, _, _ := strings.Cut(rest, ", in a Cluster")
	return strings.NewReplacer("//", "", "\n", " ").Replace(list)
}()

func open(t testing.TB, server *redistest.Server) *Store {
	t.Helper()
	s := mustOpen(t, server.URL())
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// rotate exchanges a token without a grace.
func rotate(ctx context.Context, s *Store, old tokens.Hash, next *tokens.Session) error {
	_, err := s.Rotate(ctx, old, storetest.Successor(next), 0)
	return err
}

func TestRedisIsATokenStore(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	storetest.Run(t, func(t *testing.T) tokens.Store {
		server.Do("FLUSHALL")
		return mustOpen(t, server.URL())
	})
}

func TestRedisClusterIsATokenStore(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t, 3)
	storetest.Run(t, func(t *testing.T) tokens.Store {
		for _, node := range nodes {
			node.Do("FLUSHALL")
		}
		return mustOpen(t, "redis://"+nodes[0].Addr+","+nodes[1].Addr+"/?cluster=true")
	})
}
