package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/testport"
	"gatepost/tokens"
	"gatepost/tokens/cache/table"
	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"

	"github.com/redis/go-redis/v9"
)

func TestCacheOnRedisIsATokenStore(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	storetest.Run(t, func(t *testing.T) tokens.Store {
		server.Do("FLUSHALL")
		// a busy machine may need longer than the default
		conn := openConn(t, server.URL(), time.Minute)
		g := openStore(t, storeOn(t, conn), conn.Client(), Config{LookupTimeout: time.Minute}, RedisConfig{Lease: 200 * time.Millisecond})
		g.awaitHeld()
		return waitingLogins{g}
	})
}

// waitingLogins is a gateway whose logins wait for the invalidation of the sessions that they
// replace. Logins only send it, but the suite checks at once.
type waitingLogins struct{ *gateway }

func (s waitingLogins) Create(ctx context.Context, session *tokens.Session, limit int) error {
	if err := s.Cache.Create(ctx, session, limit); err != nil || limit == 0 {
		return err
	}
	return s.tracker.WaitInvalidated(ctx)
}

func TestHitsDoNotReachRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	var asked atomic.Int64
	store := countingLookups{plain{client(t, server.Addr)}, &asked}
	g := openStore(t, store, client(t, server.Addr), Config{}, RedisConfig{})
	g.awaitHeld()
	s := g.create("ann")
	g.settle()
	for held := 0; held < 10_000; {
		g.warm(s)
		// A busy machine may lose the lease. If it is held without a gap, the look-up must be a
		// hit.
		epoch, before, holds := g.epoch.Load(), asked.Load(), g.Held() && g.caches(s)
		g.allow(s)
		if !holds || !g.Held() || g.epoch.Load() != epoch {
			continue
		}
		if held++; asked.Load() != before {
			t.Fatal("a look-up reached Redis although the lease was held")
		}
	}
}

// countingLookups counts the look-ups that reach the store.
type countingLookups struct {
	plain
	asked *atomic.Int64
}

func (c countingLookups) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	c.asked.Add(1)
	return c.plain.Lookup(ctx, h)
}

func TestTokenDeletedFromRedisIsRefused(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g := start(t, server.Addr, server.Addr)
	for what, do := range map[string]func(s *tokens.Session){
		"deleted by hand":        func(s *tokens.Session) { server.Do("DEL", key(s.Hash)) },
		"unlinked by hand":       func(s *tokens.Session) { server.Do("UNLINK", key(s.Hash)) },
		"renamed":                func(s *tokens.Session) { server.Do("RENAME", key(s.Hash), "other-key") },
		"expired early":          func(s *tokens.Session) { server.Do("PEXPIRE", key(s.Hash), "20") },
		"flushed":                func(*tokens.Session) { server.Do("FLUSHALL") },
		"flushed asynchronously": func(*tokens.Session) { server.Do("FLUSHDB", "ASYNC") },
		"deleted from a script": func(s *tokens.Session) {
			server.Do("EVAL", "return redis.call('DEL', KEYS[1])", "1", key(s.Hash))
		},
	} {
		s := g.create("ann")
		g.warm(s)
		do(s)
		redistest.Eventually(t, "a refused token that was "+what, func() bool {
			_, err := g.Principal(t.Context(), s.Hash)
			return errors.Is(err, tokens.ErrUnknown)
		})
	}
}

func TestTokenEvictedByRedisIsRefused(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--maxmemory-policy", "allkeys-random")
	g := start(t, server.Addr, server.Addr)
	s := g.create("ann")
	g.warm(s)
	server.Do("CONFIG", "SET", "maxmemory", "1")
	redistest.Eventually(t, "a refusal of the evicted token", func() bool {
		// makes Redis evict keys
		_ = client(t, server.Addr).Set(t.Context(), "other", "value", 0).Err()
		_, err := g.Principal(t.Context(), s.Hash)
		return errors.Is(err, tokens.ErrUnknown)
	})
}

func TestTokenIsKnownRightAfterLogin(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	a, b := start(t, server.Addr, server.Addr), start(t, server.Addr, server.Addr)
	for range 50 {
		s := session("ann")
		a.deny(s)
		b.deny(s)
		if err := a.Create(t.Context(), s, 0); err != nil {
			t.Fatal(err)
		}
		a.allow(s)
		b.allow(s)
	}
}

// An answer "live" is overtaken by the token's invalidation.
func TestAnswerOvertakenByInvalidationIsNotCached(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	data := faultproxy.Start(t, server.Addr)
	g := start(t, data.Addr, server.Addr)
	s := g.create("ann")
	shard := g.shard(s.Hash)
	generation := func() uint64 {
		shard.mu.RLock()
		defer shard.mu.RUnlock()
		return shard.generation
	}
	redistest.Eventually(t, "the invalidation of the login", func() bool { return generation() > 1 })
	_ = g.Ping(t.Context()) // opens a connection
	sent, before := server.CommandStats()["get"], generation()

	data.Hold(faultproxy.Down)
	var late sync.WaitGroup
	late.Go(func() {
		// it begins before the end, so either answer is correct
		_, _ = g.Principal(t.Context(), s.Hash)
	})
	redistest.Eventually(t, "a look-up at Redis", func() bool { return server.CommandStats()["get"] > sent })
	server.Do("DEL", key(s.Hash))
	redistest.Eventually(t, "the invalidation", func() bool { return generation() > before })
	data.Heal()
	g.deny(s)
	late.Wait()
	g.deny(s)
	if g.caches(s) {
		t.Fatal("the late answer is cached")
	}
}

func TestFrozenRedisIsUnavailableAfterLease(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g := start(t, server.Addr, server.Addr)
	s := g.create("ann")
	g.warm(s)
	server.Freeze()
	redistest.Eventually(t, "an unavailable store", func() bool {
		_, err := g.Principal(t.Context(), s.Hash)
		if errors.Is(err, tokens.ErrUnknown) {
			t.Fatal("a live token is unknown while Redis is frozen")
		}
		return errors.Is(err, tokens.ErrUnavailable)
	})
	if g.Held() {
		t.Fatal("the lease is held although Redis does not answer")
	}
	server.Thaw()
	redistest.Eventually(t, "an answer after Redis resumes", func() bool {
		_, err := g.Principal(t.Context(), s.Hash)
		return err == nil
	})
	g.awaitHeld()
}

func TestKilledRedisIsUnavailableUntilRestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	g := start(t, server.Addr, server.Addr)
	s, ended := g.create("ann"), g.create("ben")
	g.warm(s)
	g.warm(ended)
	server.Kill()
	redistest.Eventually(t, "an unavailable store", func() bool {
		_, err := g.Principal(t.Context(), s.Hash)
		return errors.Is(err, tokens.ErrUnavailable)
	})
	server.Restart()
	server.Do("DEL", key(ended.Hash)) // before the tracking starts again
	redistest.Eventually(t, "the lease", g.Held)
	g.deny(ended)
	redistest.Eventually(t, "a live token", func() bool {
		_, err := g.Principal(t.Context(), s.Hash)
		return err == nil
	})
}

func TestTrackingConnectionCut(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	g := start(t, server.Addr, tracking.Addr)
	for range 20 {
		s := g.create("ann")
		g.warm(s)
		tracking.Refuse()
		tracking.Cut()
		redistest.Eventually(t, "the end of the lease", func() bool { return !g.Held() })
		server.Do("DEL", key(s.Hash)) // without an invalidation
		g.deny(s)
		tracking.Heal()
		g.awaitHeld()
		g.deny(s)
	}
}

func TestTrackingConnectionKilledByRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g := start(t, server.Addr, server.Addr)
	for range 20 {
		s := g.create("ann")
		g.warm(s)
		drops := g.Stats().EpochDrops
		server.Do("CLIENT", "KILL", "TYPE", "pubsub")
		redistest.Eventually(t, "a new lease", func() bool { return g.Stats().EpochDrops > drops && g.Held() })
		server.Do("DEL", key(s.Hash))
		redistest.Eventually(t, "a refused token", func() bool {
			_, err := g.Principal(t.Context(), s.Hash)
			return errors.Is(err, tokens.ErrUnknown)
		})
	}
}

func TestDataConnectionCut(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	data := faultproxy.Start(t, server.Addr)
	g := start(t, data.Addr, server.Addr)
	s, cold := g.create("ann"), g.create("ben")
	g.warm(s)
	data.Refuse()
	data.Cut()
	epoch, holds := g.epoch.Load(), g.Held() && g.caches(s)
	if _, err := g.Principal(t.Context(), s.Hash); err != nil && holds && g.Held() && g.epoch.Load() == epoch {
		t.Errorf("a cached token under a lease: %v", err)
	}
	if _, err := g.Principal(t.Context(), cold.Hash); !errors.Is(err, tokens.ErrUnavailable) {
		t.Errorf("a token that is not cached: %v", err)
	}
	if err := g.Revoke(t.Context(), s.Hash); !errors.Is(err, tokens.ErrUnavailable) {
		t.Errorf("a revoke that did not reach the store: %v", err)
	}
	data.Heal()
	redistest.Eventually(t, "a live token", func() bool {
		_, err := g.Principal(t.Context(), cold.Hash)
		return err == nil
	})
}

func TestHalfOpenTrackingLosesLease(t *testing.T) {
	t.Parallel()
	for _, d := range []faultproxy.Direction{faultproxy.Up, faultproxy.Down} {
		server := redistest.Start(t)
		tracking := faultproxy.Start(t, server.Addr)
		g := start(t, server.Addr, tracking.Addr)
		s := g.create("ann")
		g.warm(s)
		tracking.Swallow(d)
		server.Do("DEL", key(s.Hash))
		redistest.Eventually(t, "a refused token", func() bool {
			_, err := g.Principal(t.Context(), s.Hash)
			return errors.Is(err, tokens.ErrUnknown)
		})
		tracking.Heal()
		g.awaitHeld()
		g.deny(s)
	}
}

// connections returns the current tracking connections.
func (g *gateway) connections() []*conn {
	g.tracker.mu.Lock()
	defer g.tracker.mu.Unlock()
	return g.tracker.conns
}

// An expired lease is a gap even if the connection lives, so late replies to heartbeats must not
// revive cached answers.
func TestLateHeartbeatEmptiesCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &conn{}
		listener := &counting{}
		r := &Redis{lease: time.Second, listener: listener, conns: []*conn{c}}
		start := table.Instant{Boot: time.Hour, Wall: time.Now()}
		r.confirm(c, start)
		time.Sleep(900 * time.Millisecond)
		r.confirm(c, start.Add(500*time.Millisecond))
		if !r.Held(time.Now()) || listener.all != 1 {
			t.Fatalf("in time: held %v, emptied %d times", r.Held(time.Now()), listener.all)
		}
		time.Sleep(600 * time.Millisecond) // the lease ends at 1.5 s
		if r.Held(time.Now()) {
			t.Fatal("the lease has not ended")
		}
		r.confirm(c, start.Add(600*time.Millisecond))
		if !r.Held(time.Now()) || listener.all != 2 {
			t.Fatalf("late: held %v, emptied %d times", r.Held(time.Now()), listener.all)
		}
		time.Sleep(time.Second)
		r.confirm(c, start.Add(700*time.Millisecond))
		if r.Held(time.Now()) {
			t.Fatal("held by a heartbeat that is older than a lease")
		}
		if until := start.Add(1600 * time.Millisecond); listener.until != until {
			t.Fatalf("the table is valid until %v, want a lease after the last heartbeat: %v", listener.until, until)
		}
	})
}

// counting is a listener that counts the calls of InvalidateAll and records the last Extend.
type counting struct {
	all   int
	until table.Instant
}

func (*counting) Invalidate(tokens.Hash)       {}
func (c *counting) InvalidateAll()             { c.all++ }
func (c *counting) Extend(until table.Instant) { c.until = until }

func TestAnswersWithoutTrackingAreNotCached(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	tracking := faultproxy.Start(t, server.Addr)
	g := start(t, server.Addr, tracking.Addr)
	for range 5 {
		s := g.create("ann")
		tracking.Refuse()
		tracking.Cut()
		redistest.Eventually(t, "the end of the tracking", func() bool { return len(g.connections()) == 0 })
		for range 3 {
			g.allow(s)
		}
		server.Do("DEL", key(s.Hash)) // without an invalidation
		tracking.Heal()
		redistest.Eventually(t, "a new tracking", func() bool { return len(g.connections()) == 1 && g.Held() })
		g.deny(s)
	}
}

func TestMillisecondTimeoutsNeverMixTokens(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	data := faultproxy.Start(t, server.Addr)
	c := redis.NewClient(&redis.Options{Addr: data.Addr, ReadTimeout: 2 * time.Millisecond, ContextTimeoutEnabled: true, MaxRetries: -1, PoolSize: 8})
	t.Cleanup(func() { _ = c.Close() })
	g := openWith(t, c, client(t, server.Addr), Config{LookupTimeout: 3 * time.Millisecond, MaxEntries: 256}, RedisConfig{})
	whole := plain{client(t, server.Addr)}
	all := make([]*tokens.Session, 1000)
	for i := range all {
		all[i] = session(fmt.Sprint("user", i))
		if err := whole.Create(t.Context(), all[i], 0); err != nil {
			t.Fatal(err)
		}
	}
	data.Delay(faultproxy.Down, 2*time.Millisecond)
	var workers sync.WaitGroup
	for w := range 16 {
		workers.Go(func() {
			for i := range 400 {
				s := all[(i*31+w*7)%len(all)]
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+i%4)*time.Millisecond)
				got, err := g.Principal(ctx, s.Hash)
				cancel()
				if err == nil && got.User() != s.User {
					t.Errorf("got the session of %s, want %s", s.User, got.User())
				}
				if errors.Is(err, tokens.ErrUnknown) {
					t.Errorf("a live token is unknown")
				}
			}
		})
	}
	workers.Wait()
}

func TestPasswordAndTLS(t *testing.T) {
	t.Parallel()
	t.Run("password", func(t *testing.T) {
		server := redistest.StartWithPassword(t, "s3cret")
		c := redis.NewClient(&redis.Options{Addr: server.Addr, Password: "s3cret"})
		t.Cleanup(func() { _ = c.Close() })
		openWith(t, c, c, Config{}, RedisConfig{}).awaitHeld()
	})
	t.Run("wrong password", func(t *testing.T) {
		server := redistest.StartWithPassword(t, "s3cret")
		c := redis.NewClient(&redis.Options{Addr: server.Addr, Password: "wrong"})
		t.Cleanup(func() { _ = c.Close() })
		tracker, err := Track(c, RedisConfig{Lease: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		tracker.listener = &discard{}
		if _, err := tracker.connectAll(t.Context()); err == nil || strings.Contains(err.Error(), "wrong ") || !strings.Contains(err.Error(), "WRONGPASS") {
			t.Fatalf("connecting with a wrong password: %v", err)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		server, certificates := redistest.StartTLS(t)
		c := redis.NewClient(&redis.Options{Addr: server.Addr, TLSConfig: clientTLS(t, certificates)})
		t.Cleanup(func() { _ = c.Close() })
		g := openWith(t, c, c, Config{}, RedisConfig{})
		s := g.create("ann")
		g.warm(s)
		g.revoke(s)
		g.deny(s)
	})
}

type discard struct{}

func (discard) Invalidate(tokens.Hash) {}
func (discard) InvalidateAll()         {}
func (discard) Extend(table.Instant)   {}

// Without permission to publish, a gateway must not hold a lease, because others do not know it.
func TestNoLeaseWithoutPublishPermission(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do("ACL", "SETUSER", "mute", "on", ">pw", "allkeys", "allcommands", "resetchannels")
	server.Do("ACL", "SETUSER", "least", "on", ">pw", "~gatepost:*", "+@read", "+@write", "+hello", "+ping", "+client", "+publish", "+subscribe", "&gatepost:*")
	as := func(user string) *gateway {
		c := redis.NewClient(&redis.Options{Addr: server.Addr, Username: user, Password: "pw", MaxRetries: -1})
		t.Cleanup(func() { _ = c.Close() })
		return openWith(t, c, c, Config{}, RedisConfig{})
	}
	mute, least := as("mute"), as("least")
	least.awaitHeld() // uses PING, because ROLE is denied
	if _, err := mute.tracker.connectAll(t.Context()); err == nil || !strings.Contains(err.Error(), "SUBSCRIBE") {
		t.Fatalf("connecting without permission for the channels: %v", err)
	}
	s := mute.create("ann")
	mute.allow(s)
	least.allow(s)
	least.revoke(s)
	mute.deny(s)
	if mute.Held() || mute.Stats().Entries > 0 {
		t.Fatal("a gateway that cannot publish holds a lease")
	}
}

func TestReplicaIsNotTracked(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	host, port, _ := net.SplitHostPort(server.Addr)
	replica := redistest.Start(t, "--replicaof", host, port)
	g := open(t, server.Addr, replica.Addr, Config{})
	if _, err := g.tracker.connectAll(t.Context()); !errors.Is(err, errReplica) {
		t.Fatalf("tracking a replica: %v", err)
	}
	// The tracking of a master ends if it becomes a replica.
	g = start(t, replica.Addr, server.Addr)
	server.Do("REPLICAOF", "127.0.0.1", "1")
	redistest.Eventually(t, "the end of the lease", func() bool { return !g.Held() })
	server.Do("REPLICAOF", "NO", "ONE")
	g.awaitHeld()
}

func TestSentinelFailoverMovesTracking(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	host, port, _ := net.SplitHostPort(server.Addr)
	replica := redistest.Start(t, "--replicaof", host, port)
	sentinel := redistest.StartSentinel(t, server)
	redistest.Eventually(t, "Sentinel to know the replica", func() bool {
		return strings.Contains(sentinel.Do("SENTINEL", "REPLICAS", "mymaster"), replica.Port())
	})
	g := openReal(t, "redis://"+sentinel.Addr+"?sentinel=mymaster")
	g.awaitHeld()
	s := g.create("ann")
	g.warm(s)
	redistest.Eventually(t, "a complete replica", func() bool { return server.Do("WAIT", "1", "100") == "1" })
	server.Kill()
	redistest.Eventually(t, "a lease at the new master", func() bool {
		role, err := client(t, replica.Addr).Do(t.Context(), "ROLE").Slice()
		return err == nil && role[0] == "master" && g.Held()
	})
	redistest.Eventually(t, "a cached token", func() bool {
		_, _ = g.Principal(t.Context(), s.Hash)
		return g.caches(s)
	})
	g.revoke(s)
	g.deny(s)
}

func TestEveryClusterMasterIsTracked(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t, 3)
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{nodes[0].Addr}, DialTimeout: time.Second, ReadTimeout: time.Second})
	t.Cleanup(func() { _ = c.Close() })
	a, b := openWith(t, c, c, Config{}, RedisConfig{}), openWith(t, c, c, Config{}, RedisConfig{})
	awaitPeers(t, a, b)
	var all []*tokens.Session
	for range 60 { // enough for all masters
		s := a.create("ann")
		b.warm(s)
		all = append(all, s)
	}
	for i, s := range all {
		if i%2 == 0 {
			a.revoke(s)
			b.deny(s)
			continue
		}
		if err := c.Del(t.Context(), key(s.Hash)).Err(); err != nil {
			t.Fatal(err)
		}
		redistest.Eventually(t, "a refused token that was deleted by hand", func() bool {
			_, err := b.Principal(t.Context(), s.Hash)
			return errors.Is(err, tokens.ErrUnknown)
		})
	}
	if a.tracker.acknowledged.Load() == 0 {
		t.Error("no revoke was acknowledged")
	}

	// A new master without slots is tracked too.
	_, bus, _ := net.SplitHostPort(testport.Addr(t))
	fourth := redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "5000")
	fourth.Do("CLUSTER", "MEET", "127.0.0.1", nodes[0].Port(), clusterBus(t, nodes[0]))
	redistest.Eventually(t, "a lease at four masters", func() bool {
		a.tracker.mu.Lock()
		n := len(a.tracker.conns)
		a.tracker.mu.Unlock()
		return n == 4 && a.Held()
	})

	// If it freezes, there is no lease, and look-ups at the other masters still work.
	fourth.Freeze()
	redistest.Eventually(t, "the end of the lease", func() bool { return !a.Held() })
	s := a.create("ben")
	a.allow(s)
	fourth.Thaw()
	a.awaitHeld()
}

func clusterBus(t *testing.T, node *redistest.Server) string {
	t.Helper()
	for line := range strings.Lines(node.Do("CLUSTER", "NODES")) {
		if strings.Contains(line, "myself") {
			_, bus, _ := strings.Cut(strings.Fields(line)[1], "@")
			return bus
		}
	}
	t.Fatal("the node does not name itself")
	return ""
}

func TestCloseEndsTracking(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	g := start(t, server.Addr, server.Addr)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if g.Held() {
		t.Fatal("a closed cache holds a lease")
	}
	redistest.Eventually(t, "the end of the connection", func() bool {
		return !strings.Contains(server.Do("CLIENT", "LIST"), "gatepost-tracking")
	})
}
