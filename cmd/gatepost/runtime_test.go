package main

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

func TestTheHeapMayGrowByAsMuchAsIsWorthIt(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, mostPercent},
		{4 << 20, mostPercent},
		{12 << 20, 200},
		{24 << 20, 100},
		{48 << 20, leastPercent},
		{4 << 30, leastPercent}, // else it would do nothing but collect
	} {
		if got := gcPercent(c.live); got != c.want {
			t.Errorf("%d MiB live: %d, want %d", c.live>>20, got, c.want)
		}
	}
	runtime.GC()
	if live := liveBytes(); live < 100<<10 || live > 1<<30 {
		t.Errorf("%d bytes are said to be live", live)
	}
}

func TestEachCollectionIsHeardOf(t *testing.T) {
	var heard atomic.Int64
	var over atomic.Bool
	afterEachCollection(func() {
		if !over.Load() {
			heard.Add(1)
		}
	})
	defer over.Store(true)
	for want := range int64(3) {
		for end := time.Now().Add(30 * time.Second); heard.Load() <= want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("heard of %d collections", heard.Load())
			}
			runtime.GC()
		}
	}
}
