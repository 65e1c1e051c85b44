package cache

import (
	"testing"

	"gatepost/tokens"
	"gatepost/tokens/redistest"
)

func BenchmarkLookupHit(b *testing.B) {
	c := newCache(b, &fullStore{}, Config{})
	h := randomHash()
	redistest.Eventually(b, "a cached token", func() bool {
		_, err := c.Principal(b.Context(), h)
		return err == nil && c.Stats().Entries == 1
	})
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Principal(ctx, h); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLookupHitRedis measures a hit under a lease from Redis.
func BenchmarkLookupHitRedis(b *testing.B) {
	addr := redistest.Start(b).Addr
	g := start(b, addr, addr)
	s := g.create("ann")
	g.warm(s)
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := g.Principal(ctx, s.Hash); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookupHitParallel(b *testing.B) {
	c := newCache(b, &fullStore{}, Config{})
	hashes := make([]tokens.Hash, 1024)
	for i := range hashes {
		hashes[i] = randomHash()
		_, _ = c.Principal(b.Context(), hashes[i])
	}
	ctx := b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := c.Principal(ctx, hashes[i%len(hashes)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkLookupMiss measures the cost of a miss without the store.
func BenchmarkLookupMiss(b *testing.B) {
	c := newCache(b, &fullStore{}, Config{})
	h := randomHash()
	ctx := b.Context()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		h[1], h[2], h[3], h[4] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		if _, err := c.Principal(ctx, h); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookupMissRedis(b *testing.B) {
	addr := redistest.Start(b).Addr
	g := start(b, addr, addr)
	s := g.create("ann")
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		g.Invalidate(s.Hash)
		if _, err := g.Principal(ctx, s.Hash); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNaiveGet measures a look-up that reads Redis each time, as with --cache=off.
func BenchmarkNaiveGet(b *testing.B) {
	store := plain{client(b, redistest.Start(b).Addr)}
	s := session("ann")
	if err := store.Create(b.Context(), s, 0); err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := store.Lookup(ctx, s.Hash); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRevoke measures a strict revoke with two connected gateways.
func BenchmarkRevoke(b *testing.B) {
	addr := redistest.Start(b).Addr
	a, other := start(b, addr, addr), start(b, addr, addr)
	awaitPeers(b, a, other)
	for b.Loop() {
		b.StopTimer()
		s := a.create("ann")
		other.warm(s)
		b.StartTimer()
		if err := a.Revoke(b.Context(), s.Hash); err != nil {
			b.Fatal(err)
		}
	}
	if n := a.tracker.waitedOut.Load(); n > 0 {
		b.Logf("%d of %d waited for the lease to expire", n, b.N)
	}
}
