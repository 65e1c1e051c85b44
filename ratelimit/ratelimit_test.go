package ratelimit

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"gatepost/codec"
	"gatepost/redisconn"
	"gatepost/tokens/redistest"
)

// kit is a server with a Redis, a log and a clock of its own.
type kit struct {
	*Server
	redis *redistest.Server
	log   bytes.Buffer
	now   atomic.Int64
}

func start(t *testing.T, timeout time.Duration) *kit {
	t.Helper()
	k := &kit{redis: redistest.Start(t)}
	var err error
	k.Server, err = New(Config{
		Client: open(t, k.redis.URL()), Timeout: timeout, Logger: slog.New(slog.NewTextHandler(&k.log, nil)),
		Registerer: prometheus.NewPedanticRegistry(), Now: func() time.Time { return time.Unix(k.now.Load(), 0) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// asks returns the code of the answer to a request, or that of the error.
func (k *kit) asks(t *testing.T, q *Request) string {
	t.Helper()
	r, err := k.Decide(t.Context(), q)
	if err != nil {
		return status.Code(err).String()
	}
	return r.GetOverallCode().String()
}

func TestAnswerHasTheHeadersOfEnvoysOwnLimits(t *testing.T) {
	k := start(t, time.Minute)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(codec.New()))
	k.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-served })
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q := asking("service a", Limit{Requests: 1, Per: 24 * time.Hour, Burst: 2, By: "service", Headers: true})
	for i, want := range []map[string]string{
		{"x-ratelimit-limit": "2", "x-ratelimit-remaining": "1", "x-ratelimit-reset": "0"},
		{"x-ratelimit-limit": "2", "x-ratelimit-remaining": "0"},
		{"x-ratelimit-limit": "2", "x-ratelimit-remaining": "0"},
	} {
		r, err := ratelimitv3.NewRateLimitServiceClient(conn).ShouldRateLimit(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, h := range r.GetResponseHeadersToAdd() {
			got[h.GetKey()] = h.GetValue()
		}
		above := r.GetOverallCode() == ratelimitv3.RateLimitResponse_OVER_LIMIT
		if i > 0 { // the day begins with the first request
			for _, name := range []string{"x-ratelimit-reset", "retry-after"} {
				if (len(got[name]) == len("86400")) != (above || name == "x-ratelimit-reset") {
					t.Errorf("request %d: %s is %q", i, name, got[name])
				}
				delete(got, name)
			}
		}
		if above != (i == 2) || !maps.Equal(got, want) {
			t.Errorf("request %d: %v with %v", i, r.GetOverallCode(), got)
		}
	}
	q = asking("service a", Limit{Requests: 1, Per: 24 * time.Hour, Burst: 2, By: "service"})
	r, err := ratelimitv3.NewRateLimitServiceClient(conn).ShouldRateLimit(t.Context(), q)
	if got := r.GetResponseHeadersToAdd(); err != nil || len(got) != 4 || got[3].GetKey() != "retry-after" {
		t.Errorf("above a limit without headers: %v, %v", r, err)
	}
	q = asking("service b", Limit{Requests: 1, Per: 24 * time.Hour, Burst: 2, By: "service"})
	if r, err := ratelimitv3.NewRateLimitServiceClient(conn).ShouldRateLimit(t.Context(), q); err != nil || len(r.GetResponseHeadersToAdd()) > 0 {
		t.Errorf("within a limit without headers: %v, %v", r, err)
	}
	if r, err := ratelimitv3.NewRateLimitServiceClient(conn).ShouldRateLimit(t.Context(), new(ratelimitv3.RateLimitRequest)); err == nil {
		t.Errorf("a request without descriptors: %v", r)
	}
}

// TestWithoutRedis: the limit says what becomes of a request. Redis is not asked again before a second is over.
func TestWithoutRedis(t *testing.T) {
	k := start(t, time.Minute)
	refusing := ten
	refusing.Refuse = true
	open, closed := read(t, asking("a", ten)), read(t, asking("a", ten), asking("a", refusing, "value", "x"))
	if got := k.asks(t, closed); got != "OK" {
		t.Fatalf("with Redis: %s", got)
	}
	k.redis.Kill()
	for range 3 {
		if got := k.asks(t, open) + " " + k.asks(t, closed); got != "OK Unavailable" {
			t.Errorf("without Redis: %s", got)
		}
	}
	k.redis.Restart()
	if got := k.asks(t, closed); got != "Unavailable" {
		t.Errorf("before a second is over: %s", got)
	}
	k.now.Add(1)
	if got := k.asks(t, closed); got != "OK" {
		t.Errorf("after it: %s", got)
	}
	if log := k.log.String(); strings.Count(log, "level=WARN") != 1 || strings.Count(log, "level=INFO") != 1 {
		t.Errorf("the log must have one line for each change:\n%s", log)
	}
	for decision, want := range map[[2]string]float64{{"allow", "within"}: 2, {"allow", "no_redis"}: 3, {"deny", "no_redis"}: 4, {"deny", "above"}: 0} {
		if got := testutil.ToFloat64(k.decisions.WithLabelValues(decision[:]...)); got != want {
			t.Errorf("%v: %v, want %v", decision, got, want)
		}
	}
}

// TestAClientAboveItsLimitStaysRefusedWithoutRedis until its time is over. Others are allowed, as the limit says.
func TestAClientAboveItsLimitStaysRefusedWithoutRedis(t *testing.T) {
	k := start(t, time.Minute)
	limit := Limit{Requests: 1, Per: 24 * time.Hour, Burst: 2, By: "address"}
	above, other := read(t, asking("a", limit, KeyAddress, "192.0.2.1")), read(t, asking("a", limit, KeyAddress, "192.0.2.2"))
	if got := k.asks(t, above) + " " + k.asks(t, above) + " " + k.asks(t, other); got != "OK OK OK" {
		t.Fatalf("with Redis: %s", got)
	}
	k.redis.Kill()
	if got := k.asks(t, above) + " " + k.asks(t, other) + " " + k.asks(t, above); got != "OVER_LIMIT OK OVER_LIMIT" {
		t.Errorf("without Redis: %s", got)
	}
	k.now.Add(24*60*60 - 1)
	if v, _ := k.full.verdict(above.counters, k.config.Now()); v != (verdict{limit: 2, wait: v.wait}) || v.wait <= 0 || v.wait > time.Second {
		t.Errorf("before the end: %+v", v)
	}
	k.now.Add(1)
	if got := k.asks(t, above); got != "OK" {
		t.Errorf("after it: %s", got)
	}
}

// TestFullCountersAreBounded: as many are known as there is room for, and the newest is one of them.
func TestFullCountersAreBounded(t *testing.T) {
	var f full
	now := time.Unix(0, 0)
	for i := range maxFull + 10 {
		c := counter{ten, strconv.Itoa(i)}
		f.add(c, now.Add(time.Hour))
		f.add(c, now.Add(2*time.Hour))
		if v, known := f.verdict([]counter{{ten, "another"}, c}, now); !known || v.allowed || v.wait != 2*time.Hour {
			t.Fatalf("counter %d: %+v, %v", i, v, known)
		}
	}
	if len(f.until) != maxFull {
		t.Errorf("%d counters, want %d", len(f.until), maxFull)
	}
}

// TestOneLateReplyUncountsOneRequest: the next ones count again. After three in a row Redis is left alone.
func TestOneLateReplyUncountsOneRequest(t *testing.T) {
	k := start(t, time.Minute)
	refusing := ten
	refusing.Refuse = true
	q := read(t, asking("a", refusing))
	frozen := func(n int) {
		k.guard.Timeout = time.Millisecond
		k.redis.Freeze()
		for range n {
			if got := k.asks(t, q); got != "Unavailable" {
				t.Errorf("a frozen Redis: %s", got)
			}
		}
		k.redis.Thaw()
		k.guard.Timeout = time.Minute
	}
	frozen(1)
	if got := k.asks(t, q); got != "OK" {
		t.Errorf("after one late reply: %s", got)
	}
	frozen(3)
	if got := k.asks(t, q); got != "Unavailable" {
		t.Errorf("after three: %s", got)
	}
	k.now.Add(1)
	if got := k.asks(t, q); got != "OK" {
		t.Errorf("a second later: %s", got)
	}
}

// TestARedisThatRefusesToCountIsLeftAlone for a second, as one that is away: it would refuse the next request too.
func TestARedisThatRefusesToCountIsLeftAlone(t *testing.T) {
	refusing := ten
	refusing.Refuse = true
	for _, c := range []struct {
		name       string
		fail, heal func(*kit, *testing.T)
	}{
		{"OOM", func(k *kit, _ *testing.T) { k.redis.Do("CONFIG", "SET", "maxmemory", "1") },
			func(k *kit, _ *testing.T) { k.redis.Do("CONFIG", "SET", "maxmemory", "0") }},
		{"BUSY", startSlowScript, func(k *kit, t *testing.T) {
			k.redis.Do("SCRIPT", "KILL")
			redistest.Eventually(t, "the end of the script", func() bool { return set(t, k) == nil })
		}},
		{"LOADING", func(k *kit, _ *testing.T) {
			for i := range 8 { // Redis answers once for each KiB that it has loaded
				var value strings.Builder
				for value.Len() < 1<<10 {
					value.WriteString(rand.Text())
				}
				k.redis.Do("SET", strconv.Itoa(i), value.String())
			}
			k.redis.Do("SAVE")
			k.redis.RestartLoading()
		}, func(k *kit, _ *testing.T) { k.redis.Restart() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := start(t, time.Minute)
			q := read(t, asking("a", refusing))
			c.fail(k, t)
			if got := k.asks(t, q); got != "Unavailable" || !strings.Contains(k.log.String(), c.name) {
				t.Errorf("%s, and the log is\n%s", got, &k.log)
			}
			c.heal(k, t)
			if got := k.asks(t, q); got != "Unavailable" {
				t.Errorf("before a second is over: %s", got)
			}
			k.now.Add(1)
			if got := k.asks(t, q); got != "OK" {
				t.Errorf("after it: %s", got)
			}
		})
	}
}

// startSlowScript has a script of somebody else run until it is killed, and waits until Redis replies BUSY.
func startSlowScript(k *kit, t *testing.T) {
	k.redis.Do("CONFIG", "SET", "lua-time-limit", "1")
	client := redis.NewClient(&redis.Options{Addr: k.redis.Addr, ReadTimeout: -1})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = client.Eval(context.Background(), "while true do end", nil).Err() // it is killed
	}()
	t.Cleanup(func() { <-ended; client.Close() })
	redistest.Eventually(t, "a slow script", func() bool {
		err := set(t, k)
		return err != nil && strings.HasPrefix(err.Error(), "BUSY")
	})
}

func set(t *testing.T, k *kit) error {
	return k.config.Client.(redis.UniversalClient).Set(t.Context(), "a", "b", 0).Err()
}

// TestAHungRedisIsLeftAlone: it accepts connections and replies nothing. The waits of the requests overlap.
func TestAHungRedisIsLeftAlone(t *testing.T) {
	k := start(t, time.Minute)
	q := read(t, asking("a", ten))
	k.guard.Timeout = 5 * time.Millisecond
	k.redis.Freeze()
	defer k.redis.Thaw()
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			time.Sleep(time.Duration(i) * time.Millisecond)
			redistest.Eventually(t, "a request that does not wait", func() bool {
				made := false
				err := k.guard.Call(t.Context(), func(ctx context.Context) error {
					made = true
					_, err := count(ctx, k.config.Client, q.counters)
					return err
				})
				return errors.Is(err, redisconn.ErrPaused) && !made
			})
		})
	}
	all.Wait()
}

func TestNewWithoutRedisIsAnError(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no error")
	}
	registry := prometheus.NewRegistry()
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	for i := range 2 {
		if _, err := New(Config{Client: client, Registerer: registry}); (err != nil) != (i == 1) {
			t.Errorf("server %d: %v", i, err)
		}
	}
}
