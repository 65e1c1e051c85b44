package shield

import (
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"gatepost/tokens/redistest"
)

// newRedis starts a real Redis for the test.
func newRedis(t *testing.T) Redis {
	t.Helper()
	server := redistest.Start(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr, ContextTimeoutEnabled: true, MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	return Redis{client}
}

func TestGatewaysShareFailures(t *testing.T) {
	r := newRedis(t)
	one, two := newTestShield(t, r), newTestShield(t, r)
	// by Redis' clock, which the test does not control
	one.set.User.Base, two.set.User.Base = time.Minute, time.Minute
	for range 3 {
		one.admits(home, "ann", Refused)
		two.admits(home, "Ann ", Refused)
	}
	one.pass(2 * freshness)
	two.pass(2 * freshness)
	// The sixth failure costs a minute.
	for _, g := range []*testShield{one, two} {
		var refusal *Refusal
		err := g.try(home, "ann", Unjudged)
		if e, ok := err.(*Refusal); ok {
			refusal = e
		}
		if refusal == nil || refusal.Reason != Throttled || refusal.RetryAfter > time.Minute {
			t.Fatalf("got %v, want throttled for at most a minute", err)
		}
	}
	// A success on one gateway clears the user on the other.
	// as if it had expired
	if err := r.Client.Del(t.Context(), waitKey(UserKey("ann"))).Err(); err != nil {
		t.Fatal(err)
	}
	one.pass(2 * freshness)
	two.pass(2 * freshness)
	one.admits(home, "ann", Opened)
	two.pass(2 * freshness)
	for range 5 {
		two.admits(home, "ann", Refused)
	}
}

func TestRedisCountsLikeMemory(t *testing.T) {
	r := newRedis(t)
	limit := Limit{Failures: 2, Forgive: time.Hour, Base: 10 * time.Second, Cap: time.Minute}
	key := UserKey("ann")
	for i, wait := range []time.Duration{0, 0, 10, 20, 40, 60, 60} {
		n, err := r.Fail(t.Context(), key, limit)
		if err != nil {
			t.Fatal(err)
		}
		if got := limit.failures(n.Left); got != i+1 {
			t.Errorf("failure %d counts as %d", i+1, got)
		}
		if want := wait * time.Second; n.Wait > want || n.Wait < want-5*time.Second {
			t.Errorf("failure %d waits %s, want %s", i+1, n.Wait, want)
		}
		if mine := limit.wait(time.Duration(i+1) * limit.Forgive); mine != wait*time.Second {
			t.Errorf("in memory failure %d waits %s", i+1, mine)
		}
	}
	counts, err := r.Load(t.Context(), []Key{UserKey("bob"), key})
	if err != nil {
		t.Fatal(err)
	}
	if counts[0] != (Count{}) || limit.failures(counts[1].Left) != 7 || counts[1].Wait <= 0 {
		t.Errorf("loaded %+v", counts)
	}
	keys, err := r.Client.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 2 {
		t.Fatalf("keys %q, %v", keys, err)
	}
	for _, k := range keys {
		if !strings.HasPrefix(k, "gatepost:shl:{") || strings.Contains(k, "ann") {
			t.Errorf("key %q", k)
		}
		if ttl := r.Client.PTTL(t.Context(), k).Val(); ttl <= 0 {
			t.Errorf("key %q does not expire", k)
		}
	}
	if err := r.Forget(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if n := r.Client.DBSize(t.Context()).Val(); n != 0 {
		t.Errorf("%d keys remain", n)
	}
}

func TestCleanLoginsQueryRedisOncePerSecond(t *testing.T) {
	r := newRedis(t)
	g := newTestShield(t, r)
	o := &outage{Shared: r}
	g.config.Shared = o
	for range 100 {
		g.admits(home, "ann", Opened)
	}
	if o.calls != 1 {
		t.Errorf("%d calls of Redis for 100 logins, want 1", o.calls)
	}
}
