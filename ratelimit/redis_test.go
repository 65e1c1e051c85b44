package ratelimit

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"gatepost/redisconn"
	"gatepost/tokens/redistest"
)

func open(t testing.TB, url string) redis.UniversalClient {
	t.Helper()
	options, err := redisconn.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	conn := redisconn.Open(options)
	t.Cleanup(func() { _ = conn.Close() })
	return conn.Client()
}

// model is GCRA as its definition has it: by the theoretical arrival time of the next request, in exact numbers.
// :: counter → that time, in microseconds
type model map[string]*big.Rat

// allows counts a request at a time, in microseconds, which is that of a tick of each limit.
func (m model) allows(counters []counter, now int64) bool {
	next := make([]*big.Rat, len(counters))
	for i, c := range counters {
		seconds := int64(c.limit.Per / time.Second)
		tick := big.NewRat(now/seconds*seconds, 1)
		interval := big.NewRat(c.limit.Per.Microseconds(), int64(c.limit.Requests))
		arrival := tick
		if known := m[c.key]; known != nil && known.Cmp(tick) > 0 {
			arrival = known
		}
		next[i] = new(big.Rat).Add(arrival, interval)
		latest := new(big.Rat).Mul(interval, big.NewRat(int64(c.limit.Burst), 1))
		if next[i].Cmp(latest.Add(latest, tick)) > 0 {
			return false
		}
	}
	for i, c := range counters {
		m[c.key] = next[i]
	}
	return true
}

// TestScriptIsGCRA compares the script with the model, at chosen times: Redis' clock is replaced by an argument. The
// intervals are so long that no key expires meanwhile, by the clock of Redis.
func TestScriptIsGCRA(t *testing.T) {
	const clock = "redis.call('TIME')"
	if strings.Count(source, clock) != 1 {
		t.Fatal("the script does not read the clock once")
	}
	timed := strings.Replace(source, clock, "{ARGV[#ARGV - 1], ARGV[#ARGV]}", 1)
	client := open(t, redistest.Start(t).URL())
	random := rand.New(rand.NewPCG(1, 2))
	allowed := 0
	for round := range 40 {
		var counters []counter
		for i := range 1 + random.IntN(3) {
			seconds := 3600 * (1 + random.IntN(24))
			requests := 1 + random.IntN(seconds/600)
			counters = append(counters, counter{
				Limit{Requests: requests, Per: time.Duration(seconds) * time.Second, Burst: 1 + random.IntN(8)}, fmt.Sprintf("gatepost:lim:{t}:%d-%d", round, i),
			})
		}
		known, now := model{}, time.Now().UnixMicro()
		for step := range 60 {
			now += random.Int64N(counters[0].limit.Per.Microseconds() / int64(counters[0].limit.Requests))
			of := counters[:1+random.IntN(len(counters))]
			var keys []string
			var args []any
			for _, c := range of {
				keys = append(keys, c.key)
				args = append(args, c.limit.Requests, int(c.limit.Per/time.Second), c.limit.Burst)
			}
			reply, err := client.Eval(t.Context(), timed, keys, append(args, now/1e6, now%1e6)...).Int64Slice()
			if err != nil {
				t.Fatal(err)
			}
			want := known.allows(of, now)
			if got := reply[0] == 1; got != want {
				t.Fatalf("round %d, step %d: %v, want %v for %+v", round, step, got, want, of)
			}
			if want {
				allowed++
			}
		}
	}
	if allowed < 400 || allowed > 2000 {
		t.Errorf("%d of 2400 requests were allowed, which compares little", allowed)
	}
}

func limitedTo(burst int) []counter {
	return []counter{{Limit{Requests: 1, Per: 24 * time.Hour, Burst: burst}, "gatepost:lim:{x}:" + strconv.Itoa(burst)}}
}

// TestConcurrentRequestsAreCountedExactly: each by one of two clients, as of two gateways.
func TestConcurrentRequestsAreCountedExactly(t *testing.T) {
	server := redistest.Start(t)
	clients := []redis.UniversalClient{open(t, server.URL()), open(t, server.URL())}
	var mu sync.Mutex
	allowed := 0
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for range 20 {
				v, err := count(t.Context(), clients[i%2], limitedTo(150))
				if err != nil {
					t.Error(err)
				}
				if v.allowed {
					mu.Lock()
					allowed++
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if allowed != 150 {
		t.Errorf("%d requests were allowed, want 150", allowed)
	}
}

// TestAFullCounterCountsInNone: a request that one limit refuses costs nothing in the others.
func TestAFullCounterCountsInNone(t *testing.T) {
	client := open(t, redistest.Start(t).URL())
	both := append(limitedTo(1), limitedTo(3)...)
	for i, want := range []verdict{
		{allowed: true, limit: 1, wait: 24 * time.Hour}, {limit: 1, wait: 24 * time.Hour}, {limit: 1, wait: 24 * time.Hour},
	} {
		got, err := count(t.Context(), client, both)
		got.wait = got.wait.Round(time.Hour)
		if err != nil || got != want {
			t.Errorf("request %d: %+v, %v, want %+v", i, got, err, want)
		}
	}
	if got, err := count(t.Context(), client, both[1:]); err != nil || !got.allowed || got.remaining != 1 {
		t.Errorf("the other limit alone: %+v, %v", got, err)
	}
}

// TestLargestNumbersAreExact also shows when a key expires, and that another text under a key is as good as none.
func TestLargestNumbersAreExact(t *testing.T) {
	server := redistest.Start(t)
	client := open(t, server.URL())
	c := counter{Limit{Requests: 1, Per: 24 * time.Hour, Burst: largest}, "gatepost:lim:{y}:1"}
	tick := time.Now().UnixMicro() / 86400
	server.Do("SET", c.key, fmt.Sprintf("%d %d", tick, int64(largest-1)*unit))
	for i, allowed := range []bool{true, false} {
		v, err := count(t.Context(), client, []counter{c})
		if err != nil || v.allowed != allowed || v.remaining != 0 {
			t.Errorf("request %d: %+v, %v", i, v, err)
		}
	}
	server.Do("SET", c.key, "no counter")
	if v, err := count(t.Context(), client, []counter{c}); err != nil || v.remaining != largest-1 {
		t.Errorf("%+v, %v", v, err)
	}
	left, err := client.PTTL(t.Context(), c.key).Result()
	if err != nil || left > 24*time.Hour+time.Second || left < 23*time.Hour {
		t.Errorf("the key expires in %v, %v", left, err)
	}
}

func TestAClockThatIsSetBackStopsNobodyForLonger(t *testing.T) {
	server := redistest.Start(t)
	c := limitedTo(2)[0]
	server.Do("SET", c.key, fmt.Sprintf("%d %d", time.Now().Add(1000*time.Hour).UnixMicro()/86400, unit))
	v, err := count(t.Context(), open(t, server.URL()), []counter{c})
	if err != nil || !v.allowed {
		t.Fatalf("%+v, %v", v, err)
	}
	if kept, _, _ := strings.Cut(server.Do("GET", c.key), " "); len(kept) > 0 {
		if at, err := strconv.ParseInt(kept, 10, 64); err != nil || at > time.Now().UnixMicro()/86400 {
			t.Errorf("the counter is of the time %d, %v", at, err)
		}
	}
}

func TestRedisCluster(t *testing.T) {
	nodes := redistest.StartCluster(t, 3)
	client := open(t, "redis://"+nodes[0].Addr+"/?cluster=true")
	for i := range 20 {
		domain := fmt.Sprintf("service %d", i)
		q := read(t, asking(domain, ten), asking(domain, ten, KeyAddress, "192.0.2.1"))
		if v, err := count(t.Context(), client, q.counters); err != nil || !v.allowed {
			t.Errorf("%s: %+v, %v", domain, v, err)
		}
	}
}
