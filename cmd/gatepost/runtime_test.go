package main

import (
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestTheHeapMayGrowByAsMuchAsIsWorthIt(t *testing.T) {
	for _, c := range []struct {
		live, perSecond uint64
		want            int
	}{
		{0, 0, mostPercent},
		{4 << 20, 0, mostPercent},
		{4 << 20, 1 << 30, mostPercent},
		{5 << 20, 0, mostPercent}, // few live bytes: as much under no load as under any
		{8 << 20, 0, 200},
		{12 << 20, 0, 66},
		{12 << 20, 1 << 30, 200},
		{20 << 20, 0, 20},
		{32 << 20, 80 << 20, 25}, // 8 MiB in a tenth of a second
		{64 << 20, 80 << 20, 25}, // and 16 in the two that this much live is given
		{40 << 20, 0, 12},
		{48 << 20, 1 << 30, 50},
		{4 << 30, 0, 12}, // else it would do nothing but collect
		{4 << 30, 1 << 30, 50},
		{64 << 30, 1 << 60, 50},
	} {
		if got := gcPercent(c.live, c.perSecond); got != c.want {
			t.Errorf("%d MiB live, %d MiB/s: %d, want %d", c.live>>20, c.perSecond>>20, got, c.want)
		}
	}
	runtime.GC()
	if use := readHeap(); use.live < 100<<10 || use.live > 1<<30 || use.allocated < use.live {
		t.Errorf("%d bytes are said to be live, of %d", use.live, use.allocated)
	}
}

func TestMemoryIsGivenBackOnceInEachLullAfterWork(t *testing.T) {
	var l lull
	allocated := uint64(50 << 20) // the start
	for _, step := range []struct {
		allocates uint64
		want      bool
	}{
		{1 << 20, false}, // still busy
		{0, true},
		{1000, false}, // given back already
		{20 << 20, false},
		{idleBytes, false},
		{idleBytes - 1, true},
		{idleBytes - 1, false},
		{1 << 20, false},
		{0, false}, // too little to be worth it
	} {
		allocated += step.allocates
		if got := l.now(heapUse{live: 1 << 20, allocated: allocated}); got != step.want {
			t.Errorf("after %d more bytes: %v", step.allocates, got)
		}
	}
	much := heapUse{live: 400 << 20, allocated: allocated + 20<<20}
	l.now(much)
	if l.now(much) {
		t.Error("a collection of 400 MiB for 20")
	}
}

// TestNothingIsLostWhenMemoryIsGivenBack goes through code and constants afterwards.
func TestNothingIsLostWhenMemoryIsGivenBack(t *testing.T) {
	for range 3 {
		giveBack()
		releaseProgram()
		if text := strings.ToUpper("still there"); text != "STILL THERE" || gcPercent(0, 0) != mostPercent {
			t.Fatal(text)
		}
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
