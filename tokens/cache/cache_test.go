package cache

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/redistest"

	"github.com/prometheus/client_golang/prometheus"
)

func newCache(t testing.TB, store tokens.Store, config Config) *Cache {
	t.Helper()
	c, err := New(store, &alwaysHeld{}, config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConcurrentMissesShareOneLookup(t *testing.T) {
	release := make(chan struct{})
	store := &fullStore{lookups: map[tokens.Hash]int{}, before: func(context.Context, tokens.Hash) error { <-release; return nil }}
	c := newCache(t, store, Config{})
	h := randomHash()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if s, err := c.Principal(t.Context(), h); err != nil || !s.Has(h) {
				t.Errorf("looking up: %v, %v", s, err)
			}
		})
	}
	redistest.Eventually(t, "50 callers", func() bool { return c.Stats().Misses == 50 })
	close(release)
	all.Wait()
	if n := store.lookups[h]; n != 1 {
		t.Fatalf("%d look-ups reached the store", n)
	}
}

func TestCancelOfFirstCallerKeepsSharedLookup(t *testing.T) {
	release := make(chan struct{})
	c := newCache(t, &fullStore{before: func(ctx context.Context, _ tokens.Hash) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}, Config{LookupTimeout: time.Minute})
	h := randomHash()
	first, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := c.Principal(first, h); !errors.Is(err, tokens.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("the caller that left: %v", err)
		}
	})
	redistest.Eventually(t, "the first caller", func() bool { return c.Stats().Misses == 1 })
	all.Go(func() {
		if _, err := c.Principal(t.Context(), h); err != nil {
			t.Errorf("the caller that stayed: %v", err)
		}
	})
	redistest.Eventually(t, "the second caller", func() bool { return c.Stats().Misses == 2 })
	leave()
	close(release)
	all.Wait()
}

func TestLookupsNeverMixTokens(t *testing.T) {
	c := newCache(t, &fullStore{before: func(ctx context.Context, _ tokens.Hash) error {
		time.Sleep(rand.N(300 * time.Microsecond))
		return ctx.Err()
	}}, Config{LookupTimeout: 200 * time.Microsecond, MaxEntries: 300, MaxLookups: 16})
	hashes := make([]tokens.Hash, 500)
	for i := range hashes {
		hashes[i] = randomHash()
		hashes[i][0] = byte(i % 3) // in few shards
	}
	lookups := 2000
	if testing.Short() {
		lookups = 400
	}
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range lookups {
				h := hashes[rand.N(len(hashes))]
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(500*time.Microsecond))
				s, err := c.Principal(ctx, h)
				cancel()
				if err == nil && s.User() != h.Hex() {
					t.Errorf("the session of another token")
				} else if err != nil && !errors.Is(err, tokens.ErrUnavailable) {
					t.Errorf("looking up: %v", err)
				}
			}
		})
	}
	all.Wait()
}

type swapped struct{ fullStore }

func (s *swapped) Lookup(context.Context, tokens.Hash) (*tokens.Session, error) {
	return &tokens.Session{Hash: randomHash(), Expires: time.Now().Add(time.Hour)}, nil
}

func TestSessionOfAnotherTokenIsRejected(t *testing.T) {
	c := newCache(t, &swapped{}, Config{})
	if s, err := c.Principal(t.Context(), randomHash()); !errors.Is(err, tokens.ErrUnavailable) {
		t.Fatalf("the session of another token was accepted: %v, %v", s, err)
	}
}

func TestErrorsAndUnknownTokensAreNotCached(t *testing.T) {
	for _, answer := range []error{tokens.ErrUnknown, tokens.ErrUnavailable, errors.New("a driver's error")} {
		fail := true
		c := newCache(t, &fullStore{before: func(context.Context, tokens.Hash) error {
			if fail {
				return answer
			}
			return nil
		}}, Config{})
		h := randomHash()
		_, err := c.Principal(t.Context(), h)
		if errors.Is(answer, tokens.ErrUnknown) != errors.Is(err, tokens.ErrUnknown) ||
			errors.Is(err, tokens.ErrUnknown) == errors.Is(err, tokens.ErrUnavailable) {
			t.Fatalf("the store returned %v, the cache %v", answer, err)
		}
		fail = false
		if _, err := c.Principal(t.Context(), h); err != nil {
			t.Fatalf("after %v, a live token: %v", answer, err)
		}
	}
}

func TestExpiredSessionIsRefusedAndDropped(t *testing.T) {
	c := newCache(t, &fullStore{before: func(context.Context, tokens.Hash) error { return tokens.ErrUnknown }}, Config{})
	h := randomHash()
	s := c.shard(h)
	s.put((&tokens.Session{Hash: h, Expires: time.Now().Add(-time.Millisecond)}).Principal(), c.epoch.Load(), 10, 1<<20)
	if _, err := c.Principal(t.Context(), h); !errors.Is(err, tokens.ErrUnknown) {
		t.Fatalf("an expired session: %v", err)
	}
	if entries, bytes := s.sizes(); entries != 0 || bytes != 0 {
		t.Fatalf("an expired session is still cached: %d entries, %d bytes", entries, bytes)
	}
}

// After the epoch has changed, no older entry is used, even before the shards are emptied.
func TestEntryOfEarlierEpochIsNotUsed(t *testing.T) {
	store := &fullStore{lookups: map[tokens.Hash]int{}}
	c := newCache(t, store, Config{})
	h := randomHash()
	for range 2 {
		if _, err := c.Principal(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		c.epoch.Add(1)
	}
	if n := store.lookups[h]; n != 2 {
		t.Fatalf("%d look-ups reached the store", n)
	}
}

func TestManyTokensStayWithinBounds(t *testing.T) {
	if testing.Short() {
		t.Skip("400,000 tokens take seconds: run without -short")
	}
	const maxEntries, maxBytes = 100_000, 32 << 20
	c := newCache(t, &fullStore{}, Config{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 100_000 {
				if _, err := c.Principal(t.Context(), randomHash()); err != nil {
					t.Errorf("looking up: %v", err)
					return
				}
				if i%10_000 == 0 {
					if got := c.Stats(); got.Entries > maxEntries || got.Bytes > maxBytes {
						t.Errorf("%d entries of %d bytes", got.Entries, got.Bytes)
					}
				}
			}
		})
	}
	all.Wait()
	got := c.Stats()
	if got.Entries > maxEntries || got.Bytes > maxBytes || got.Entries < maxEntries*9/10 && got.Bytes < maxBytes*9/10 {
		t.Fatalf("%d entries of %d bytes", got.Entries, got.Bytes)
	}
	var heap runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&heap)
	if heap.HeapAlloc > 2*maxBytes {
		t.Fatalf("%d bytes on the heap for an estimated %d", heap.HeapAlloc, got.Bytes)
	}
	runtime.KeepAlive(c)
}

// What the bound in bytes goes by is the memory that is really taken.
func TestEstimateMatchesMemory(t *testing.T) {
	for _, user := range []string{"user-4711", strings.Repeat("u", 500)} {
		heap := func() int {
			runtime.GC()
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			return int(stats.HeapAlloc)
		}
		before, estimate := heap(), 0
		kept := make([]*shard, 16)
		for i := range kept {
			kept[i] = newShard()
			for range 400 {
				kept[i].put(principal(randomHash(), user), 0, 400, 1<<20)
			}
			estimate += kept[i].bytes
		}
		if taken := heap() - before; taken > estimate*5/4 || taken < estimate*3/4 {
			t.Errorf("estimated %d bytes, measured %d, %d per token", estimate, taken, taken/len(kept)/400)
		} else {
			t.Logf("%d bytes per token, estimated %d", taken/len(kept)/400, estimate/len(kept)/400)
		}
		runtime.KeepAlive(kept)
	}
}

func TestBytesAreBounded(t *testing.T) {
	s := newShard()
	long := make([]byte, 1000)
	for range 100 {
		s.put(principal(randomHash(), string(long)), 0, 1000, 10_000)
		if s.bytes > 10_000 {
			t.Fatalf("%d bytes", s.bytes)
		}
	}
	if len(s.ring) == 0 || len(s.ring) != s.slots.n {
		t.Fatalf("%d in the ring, %d in the index", len(s.ring), s.slots.n)
	}
	s.put(principal(randomHash(), string(make([]byte, 20_000))), 0, 1000, 10_000)
	if s.bytes > 10_000 || len(s.ring) == 0 {
		t.Fatalf("a session larger than the shard: %d bytes, %d entries", s.bytes, len(s.ring))
	}
}

func TestUsedEntriesOutliveUnused(t *testing.T) {
	s := newShard()
	hot := randomHash()
	s.put(principal(hot, "ann"), 0, 10, 1<<20)
	for range 1000 {
		if got, _ := s.get(hot); got.IsZero() {
			t.Fatal("a used token was evicted before unused ones")
		}
		s.put(principal(randomHash(), "bob"), 0, 10, 1<<20)
	}
}

func TestConcurrentLookupsAreBounded(t *testing.T) {
	release := make(chan struct{})
	c := newCache(t, &fullStore{before: func(context.Context, tokens.Hash) error { <-release; return nil }}, Config{MaxLookups: 5})
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() { _, _ = c.Principal(t.Context(), randomHash()) })
	}
	redistest.Eventually(t, "five look-ups", func() bool { return len(c.slots) == 5 })
	before := runtime.NumGoroutine()
	for range 1000 {
		if _, err := c.Principal(t.Context(), randomHash()); !errors.Is(err, tokens.ErrUnavailable) {
			t.Fatalf("a look-up beyond the bound: %v", err)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines became %d", before, after)
	}
	close(release)
	all.Wait()
}

func TestWithoutLeaseNothingIsSharedOrCached(t *testing.T) {
	store := &fullStore{lookups: map[tokens.Hash]int{}}
	c, err := New(store, OfflineTracker{}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	h := randomHash()
	for range 3 {
		if _, err := c.Principal(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	if n := store.lookups[h]; n != 3 || c.Stats().Entries != 0 {
		t.Fatalf("%d look-ups reached the store, %d cached", n, c.Stats().Entries)
	}
}

func TestTokenIsRefusedDuringItsRevoke(t *testing.T) {
	var c *Cache
	h := randomHash()
	inRevoke := make(chan struct{})
	store := &slowRevoke{entered: inRevoke, release: make(chan struct{})}
	c = newCache(t, store, Config{})
	if _, err := c.Principal(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		if err := c.Revoke(t.Context(), h); err == nil {
			t.Error("the revoke succeeded although the store failed")
		}
	})
	<-inRevoke
	if _, err := c.Principal(t.Context(), h); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("a token that is being revoked: %v", err)
	}
	close(store.release)
	all.Wait()
	if _, err := c.Principal(t.Context(), h); err != nil {
		t.Errorf("a live token after a failed revoke: %v", err)
	}
}

// slowRevoke is a store whose Revoke fails after it is released.
type slowRevoke struct {
	fullStore
	entered, release chan struct{}
}

func (s *slowRevoke) Revoke(context.Context, tokens.Hash) error {
	close(s.entered)
	<-s.release
	return tokens.ErrUnavailable
}

// A refresh that hangs and then fails has revoked nothing, so the token must stay valid meanwhile.
func TestTokenLivesDuringRefreshUntilStoreRotates(t *testing.T) {
	for name, failure := range map[string]error{"the store fails": tokens.ErrUnavailable, "the store retires it": nil} {
		t.Run(name, func(t *testing.T) {
			h := randomHash()
			var dead atomic.Bool
			store := &slowRotate{entered: make(chan struct{}), release: make(chan struct{}), err: failure}
			store.before = func(context.Context, tokens.Hash) error {
				if dead.Load() {
					return tokens.ErrUnknown
				}
				return nil
			}
			c := newCache(t, store, Config{})
			use := func() error { _, err := c.Principal(t.Context(), h); return err }
			if err := use(); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			all.Go(func() {
				if _, err := c.Rotate(t.Context(), h, tokens.Successor{Session: session("ann")}, 0); !errors.Is(err, failure) {
					t.Errorf("the refresh: %v", err)
				}
			})
			<-store.entered
			if err := use(); err != nil {
				t.Errorf("a token that is being refreshed: %v", err)
			}
			dead.Store(failure == nil)
			close(store.release)
			all.Wait()
			if err := use(); failure != nil && err != nil || failure == nil && !errors.Is(err, tokens.ErrUnknown) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// slowRotate is a store whose Rotate returns after it is released.
type slowRotate struct {
	fullStore
	entered, release chan struct{}
	err              error
}

func (s *slowRotate) Rotate(context.Context, tokens.Hash, tokens.Successor, time.Duration) (tokens.Successor, error) {
	close(s.entered)
	<-s.release
	return tokens.Successor{}, s.err
}

func TestAnswerBeforeRevokeIsNeitherCachedNorShared(t *testing.T) {
	release, h := make(chan struct{}), randomHash()
	var dead sync.Map
	c := newCache(t, &fullStore{before: func(_ context.Context, h tokens.Hash) error {
		_, revoked := dead.Load(h)
		if revoked {
			return tokens.ErrUnknown
		}
		<-release // the store has read "live" but not returned yet
		return nil
	}}, Config{LookupTimeout: time.Minute})
	var all sync.WaitGroup
	// it begins before the revoke, so either answer is correct
	all.Go(func() { _, _ = c.Principal(t.Context(), h) })
	redistest.Eventually(t, "a look-up in progress", func() bool { return len(c.slots) == 1 })
	dead.Store(h, true)
	if err := c.Revoke(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Principal(t.Context(), h); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("after the revoke, before the late answer: %v", err)
	}
	close(release)
	all.Wait()
	if _, err := c.Principal(t.Context(), h); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("after the revoke and the late answer: %v", err)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	c := newCache(t, &fullStore{}, Config{Registerer: registry})
	h := randomHash()
	for range 3 {
		if _, err := c.Principal(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	for name, want := range map[string]float64{
		"gatepost_cache_hits_total": 2, "gatepost_cache_misses_total": 1, "gatepost_cache_entries": 1,
		"gatepost_cache_lease_held": 1, "gatepost_cache_evictions_total": 0,
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s is %v (%v), want %v", name, value, ok, want)
		}
	}
}
