package revisions

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/definitions"
	"gatepost/tokens/redistest"
)

// calls are the calls of a follower.
type calls struct {
	mu       sync.Mutex
	all      []string
	follower *Follower
	newest   atomic.Pointer[definitions.Definitions]
}

func (h *calls) add(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, text)
}

func (h *calls) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.all...)
}

// wants waits for calls that contain these texts, in this order, and fails if there are others.
func (h *calls) wants(t *testing.T, want ...string) {
	t.Helper()
	redistest.Eventually(t, strings.Join(want, ", "), func() bool { return len(h.list()) >= len(want) })
	got := h.list()
	if len(got) != len(want) {
		t.Fatalf("the calls are %q; want %q", got, want)
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Fatalf("the calls are %q; want %q", got, want)
		}
	}
}

// follow runs a follower until the test ends. By default it polls once an hour, so that each call follows from a
// notification.
func follow(t *testing.T, config FollowerConfig) *calls {
	t.Helper()
	h := &calls{}
	config.OnChange = func(_ context.Context, r Revision, d *definitions.Definitions) {
		if name := Name(r.Number); d.Name != name {
			t.Errorf("revision %d comes with the definitions of %s", r.Number, d.Name)
		}
		h.newest.Store(d)
		h.add(Mark{r.Number, r.Sum}.String())
	}
	config.OnError = func(r Revision, err error) { h.add("error " + r.Mark().String() + ": " + err.Error()) }
	if config.Poll == 0 {
		config.Poll = time.Hour
	}
	if config.Missing == 0 {
		config.Missing = time.Hour
	}
	var err error
	if h.follower, err = NewFollower(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.follower.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	subscribed := func() bool {
		counts, err := config.Store.client.PubSubNumSub(ctx, newsChannel).Result()
		return err == nil && counts[newsChannel] > 0
	}
	if config.Poll == time.Hour {
		redistest.Eventually(t, "the follower to listen", subscribed)
	}
	return h
}

const often = 10 * time.Millisecond

func TestANewRevisionIsNotified(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	h := follow(t, FollowerConfig{Store: s})
	add(t, s, 0, file("orders"))
	h.wants(t, "revision 1")
	add(t, s, 1, file("items"))
	h.wants(t, "revision 1", "revision 2")
}

func TestAnUnchangedServiceKeepsItsPointer(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	h := follow(t, FollowerConfig{Store: s})
	text := string(file("orders"))
	add(t, s, 0, []byte(text))
	h.wants(t, "revision 1")
	before := h.newest.Load().Gateway.Services[0]
	add(t, s, 1, []byte(text+"  - {name: items, path: /items, upstreams: [\"http://items\"]}\n"))
	h.wants(t, "revision 1", "revision 2")
	if now := h.newest.Load().Gateway.Services; len(now) != 2 || now[0] != before {
		t.Errorf("%d services, and the first has another pointer", len(now))
	}
}

func TestALostNotificationIsMadeUpForByThePoll(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	first := add(t, s, 0, file("orders"))
	h := follow(t, FollowerConfig{Store: s, Poll: often, Current: &first})
	server.Do("CLIENT", "KILL", "TYPE", "pubsub")
	add(t, s, 1, file("items"))
	h.wants(t, "revision 2")
}

// A revision that cannot be served is reported once, and the next good one too.
func TestADamagedRevisionIsToldOnce(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	first := add(t, s, 0, file("orders"))
	h := follow(t, FollowerConfig{Store: s, Poll: often, Current: &first})
	server.Do("SET", newestKey, "garbage")
	h.wants(t, "error no revision")
	server.Do("SET", newestKey, "1")
	h.wants(t, "error no revision", "revision 1")
	server.Do("HSET", textsKey, "2", "services: []")
	server.Do("HSET", aboutKey, "2", "99999999999999 {\"sha256\":\"00\"}")
	server.Do("SET", newestKey, "2")
	h.wants(t, "error no revision", "revision 1", "error revision 2")
}

func TestARevisionThatIsNotValidHereIsTold(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	first := add(t, s, 0, file("orders"))
	h := follow(t, FollowerConfig{Store: s, Poll: often, Current: &first})
	add(t, s, 1, []byte("services: []\nfrom_a_later_version: true\n"))
	h.wants(t, "reading revision 2, which `gatepost show 2` prints:\nredis:2:2:1: from_a_later_version: unknown field")
	h.follower.Reload(t.Context())
	h.wants(t, "unknown field", "unknown field")
	add(t, s, 2, file("items"))
	h.wants(t, "unknown field", "unknown field", "revision 3")
}

func TestAnEmptyRedisIsTold(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	first := add(t, s, 0, file("orders"))
	h := follow(t, FollowerConfig{Store: s, Poll: often, Missing: often, Current: &first})
	server.Do("FLUSHALL")
	h.wants(t, "error no revision: reading the newest revision in "+server.URL()+": there is no such revision in Redis")
	add(t, s, 0, file("items")) // with a number that was served before
	h.wants(t, "error", "revision 1")
}

func TestARedisThatIsAwayIsToldOnce(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	first := add(t, s, 0, file("orders"))
	h := follow(t, FollowerConfig{Store: s, Poll: often, Missing: often, Current: &first})
	server.Kill()
	h.wants(t, "the Redis of the definitions cannot be asked")
	server.Restart() // with nothing
	redistest.Eventually(t, "a report that there are no definitions", func() bool { return len(h.list()) > 1 })
	add(t, s, 0, file("items"))
	h.wants(t, "the Redis of the definitions cannot be asked", "no such revision", "revision 1")
}

// A Redis that was restored from an old copy holds what was served before what is served now: that stays.
func TestARedisThatHasGoneBackIsNotFollowed(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	add(t, s, 0, file("orders"))
	second := add(t, s, 1, file("items"))
	h := follow(t, FollowerConfig{Store: s, Poll: often, Current: &second})
	server.Do("SET", newestKey, "1")
	h.wants(t, "Redis has gone back from revision 2")
	server.Do("HDEL", aboutKey, "2")
	add(t, s, 1, file("news"))
	h.wants(t, "gone back", "revision 2")
}
