package revisions

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"gatepost/tokens/redistest"
)

// open returns the store in a Redis, whose client ends with the test.
func open(t *testing.T, options *redis.UniversalOptions) *Store {
	t.Helper()
	client := redis.NewUniversalClient(options)
	t.Cleanup(func() { _ = client.Close() })
	store, err := New(Config{Client: client, Address: "redis://" + options.Addrs[0] + "/0"})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// start returns the store in a Redis of its own.
func start(t *testing.T) (*Store, *redistest.Server) {
	t.Helper()
	server := redistest.Start(t)
	return open(t, &redis.UniversalOptions{Addrs: []string{server.Addr}}), server
}

// file is a definitions file that has one service of this name.
func file(service string) []byte {
	return fmt.Appendf(nil, "services:\n  - {name: %s, path: /%s, upstreams: [\"http://127.0.0.1:8081\"]}\n", service, service)
}

func add(t *testing.T, s *Store, base int64, text []byte) Revision {
	t.Helper()
	r, err := s.Add(t.Context(), base, text, Note{Who: "ann@desk", Message: "why", Change: "what"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestARevisionIsWhatWasAdded(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	if _, err := s.Newest(t.Context()); !errors.Is(err, ErrNone) {
		t.Fatalf("an empty Redis: %v, want ErrNone", err)
	}
	first := add(t, s, 0, file("orders"))
	if first.Number != 1 || first.Stored.IsZero() || first.Note != (Note{"ann@desk", "why", "what"}) {
		t.Errorf("the first revision is %+v", first)
	}
	second := add(t, s, 1, file("items"))
	if second.Number != 2 || !second.Stored.After(first.Stored) {
		t.Errorf("the second revision is %+v, after %+v", second, first)
	}
	newest, err := s.Newest(t.Context())
	if err != nil || newest != second {
		t.Errorf("the newest is %+v, %v; want %+v", newest, err, second)
	}
	d, err := s.Load(t.Context(), first)
	if err != nil || d.Name != "redis:1" || string(d.Text) != string(file("orders")) {
		t.Errorf("the first revision has %v, %v", d, err)
	}
	all, err := s.History(t.Context())
	if err != nil || len(all) != 2 || all[0] != second || all[1] != first {
		t.Errorf("the history is %+v, %v", all, err)
	}
	if _, err := s.About(t.Context(), 3); !errors.Is(err, ErrNone) {
		t.Errorf("a revision that never was: %v, want ErrNone", err)
	}
}

func TestARevisionBasedOnAnotherThanTheNewestIsRefused(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	add(t, s, 0, file("orders"))
	add(t, s, 1, file("items"))
	for _, base := range []int64{0, 1, 3} {
		_, err := s.Add(t.Context(), base, file("news"), Note{})
		var conflict *Conflict
		if !errors.Is(err, errConflict) || !errors.As(err, &conflict) || conflict.Newest.Number != 2 {
			t.Errorf("based on %d: %v, want a conflict with revision 2", base, err)
		}
	}
	if all, _ := s.History(t.Context()); len(all) != 2 {
		t.Errorf("there are %d revisions, want 2", len(all))
	}
}

// Of many that apply at once on the same base one is stored, whole.
func TestOneOfManyAtOnceIsStored(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	const rounds, many = 5, 8
	for base := range int64(rounds) {
		var all sync.WaitGroup
		stored := make(chan Revision, many)
		for i := range many {
			all.Go(func() {
				r, err := s.Add(context.Background(), base, file(fmt.Sprintf("s%d", i)), Note{Who: fmt.Sprint(i)})
				if err == nil {
					stored <- r
				} else if !errors.Is(err, errConflict) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		close(stored)
		if len(stored) != 1 {
			t.Fatalf("%d were stored on revision %d, want 1", len(stored), base)
		}
		won := <-stored
		if text, err := s.Text(t.Context(), won); err != nil || string(text) != string(file("s"+won.Who)) {
			t.Errorf("revision %d has %q, %v", won.Number, text, err)
		}
	}
}

func TestTheOldestAreForgotten(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	for base := range int64(Kept + 3) {
		add(t, s, base, file(fmt.Sprintf("s%d", base)))
	}
	all, err := s.History(t.Context())
	if err != nil || len(all) != Kept || all[0].Number != Kept+3 || all[Kept-1].Number != 4 {
		t.Errorf("%d revisions are kept, %v", len(all), err)
	}
	if got := server.Do("HLEN", textsKey); got != fmt.Sprint(Kept) {
		t.Errorf("%s files are kept, want %d", got, Kept)
	}
}

// Where Redis has lost which is the newest, no number is used again: a gateway would take the new revision for the old.
func TestNumbersGoOnWhereTheNewestIsLost(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	add(t, s, 0, file("orders"))
	last := add(t, s, 1, file("items"))
	server.Do("DEL", newestKey)
	if r := add(t, s, 0, file("news")); r.Number != 3 || !r.Stored.After(last.Stored) {
		t.Errorf("the next is %+v, want revision 3", r)
	}
}

func TestWhatIsDamagedIsNoRevision(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string][]string{
		"the newest is no number":           {"SET", newestKey, "garbage"},
		"the newest is written otherwise":   {"SET", newestKey, "01"},
		"the newest is less than one":       {"SET", newestKey, "0"},
		"the newest is not there":           {"SET", newestKey, "7"},
		"the newest is of another type":     {"EVAL", "redis.call('DEL', KEYS[1]); return redis.call('RPUSH', KEYS[1], 'x')", "1", newestKey},
		"what is known of it is garbage":    {"HSET", aboutKey, "1", "garbage"},
		"what is known of it has no sum":    {"HSET", aboutKey, "1", "1700000000000 {}"},
		"its file is not there":             {"HDEL", textsKey, "1"},
		"its file is another":               {"HSET", textsKey, "1", "services: []"},
		"the revisions are of another type": {"EVAL", "redis.call('DEL', KEYS[1]); return redis.call('SET', KEYS[1], 'x')", "1", aboutKey},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := start(t)
			add(t, s, 0, file("orders"))
			server.Do(damage...)
			r, err := s.Newest(t.Context())
			if err == nil {
				_, err = s.Load(t.Context(), r)
			}
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v, want ErrDamaged", err)
			}
		})
	}
}

func TestRedisAwayIsNotAnEmptyOne(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	add(t, s, 0, file("orders"))
	server.Kill()
	_, newest := s.Newest(t.Context())
	_, history := s.History(t.Context())
	_, added := s.Add(t.Context(), 1, file("items"), Note{})
	_, gateways := s.Gateways(t.Context())
	for name, err := range map[string]error{
		"Newest": newest, "History": history, "Add": added, "Gateways": gateways,
		"Report": s.Report(t.Context(), Report{ID: "a"}), "Leave": s.Leave(t.Context(), "a"),
	} {
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNone) {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		} else if !strings.Contains(err.Error(), " in "+server.URL()+": ") {
			t.Errorf("%s: %v, without the address", name, err)
		}
	}
}

// All keys lie in one slot, and a notification reaches the clients of the other servers.
func TestInACluster(t *testing.T) {
	t.Parallel()
	servers := redistest.StartCluster(t, 3)
	var addrs []string
	for _, one := range servers {
		addrs = append(addrs, one.Addr)
	}
	s := open(t, &redis.UniversalOptions{Addrs: addrs, IsClusterMode: true})
	f := follow(t, FollowerConfig{Store: s})
	add(t, s, 0, file("orders"))
	f.wants(t, "revision 1")
	if err := s.Report(t.Context(), Report{ID: "a", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Gateways(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("the gateways are %v, %v", all, err)
	}
	if err := s.Leave(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if all, err := s.History(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("the history is %v, %v", all, err)
	}
}

// The rights that the package comment names are enough.
func TestWithTheRightsThatAreNeeded(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	rights := "~gatepost:* &gatepost:* +@connection +get +set +hget +hset +hdel +hgetall +hkeys +zadd +zrem +zrange " +
		"+zrangebyscore +eval +evalsha +time +publish +subscribe +unsubscribe"
	server.Do(append([]string{"ACL", "SETUSER", "gateway", "on", ">secret"}, strings.Fields(rights)...)...)
	s := open(t, &redis.UniversalOptions{Addrs: []string{server.Addr}, Username: "gateway", Password: "secret"})
	first := add(t, s, 0, file("orders"))
	h := follow(t, FollowerConfig{Store: s, Poll: often, Current: &first})
	add(t, s, 1, file("items"))
	h.wants(t, "revision 2")
	report(t, s, Report{ID: "a", Name: "a"})
	if got := gateways(t, s); got != "a/a" {
		t.Errorf("the gateways are %s", got)
	}
	if err := s.Leave(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if all, err := s.History(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("the history is %v, %v", all, err)
	}
	if got := server.Do("ACL", "LOG"); got != "" {
		t.Errorf("Redis refused something: %s", got)
	}
}

func TestNames(t *testing.T) {
	if number, ok := Number(Name(12)); number != 12 || !ok {
		t.Errorf("revision 12 is called %q, and that is %d, %v", Name(12), number, ok)
	}
	for _, name := range []string{"", "redis", "redis:", "redis:0", "redis:-1", "redis:+1", "redis:1.yaml", "gatepost.yaml"} {
		if number, ok := Number(name); ok {
			t.Errorf("%q is taken for revision %d", name, number)
		}
	}
}

func TestAConflictNamesWhoWasFirst(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	add(t, s, 0, file("orders"))
	_, err := s.Add(t.Context(), 0, file("items"), Note{})
	for _, text := range []string{"the newest is 1", "ann@desk", "nothing is stored"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v: does not say %q", err, text)
		}
	}
}
