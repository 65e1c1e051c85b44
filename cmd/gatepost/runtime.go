package main

import (
	"context"
	"io"
	"log"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// How far the heap may grow beyond what is live before it is collected. Where a few megabytes are live, which is
// how a gateway mostly is, the runtime's own measure would collect after each few megabytes more: to let it grow to
// five times that is a tenth of the CPU of a check. Where much is live, it grows by what is allocated in a while: no more memory than
// is worth a collection, and no collection after the other under load.
const (
	mostPercent = 400
	anyway      = 32 << 20               // to which the heap may grow in any case, less what is live once more
	interval    = 100 * time.Millisecond // what is allocated in that time
	liveAtOnce  = 32 << 20               // with twice as much live a collection takes twice as long, and so does the interval
	leastGrowth = 4 << 20
	leastOfLive = 8 // an eighth: else a heap of which much is live would do nothing but collect
	mostGrowth  = 24 << 20
	mostOfLive  = 2
)

// gcPercent is GOGC where so many bytes are live and so many are allocated in a second.
func gcPercent(live, perSecond uint64) int {
	most := max(mostGrowth, live/mostOfLive)
	growth := min(perSecond/uint64(time.Second/interval), most)
	growth = growth * max(live>>20, liveAtOnce>>20) / (liveAtOnce >> 20)
	growth = max(growth, leastGrowth, live/leastOfLive, anyway-min(2*live, anyway))
	return int(min(min(growth, most)*100/max(live, 1), mostPercent))
}

// tuneRuntime sets what the runtime cannot know; GOGC says otherwise where it is set. GOMEMLIMIT is the runtime's own,
// and holds beside this.
func tuneRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(mostPercent)
		set, before, then := mostPercent, uint64(0), time.Now()
		afterEachCollection(func() {
			use, now := readHeap(), time.Now()
			perSecond := float64(use.allocated-before) / max(now.Sub(then), time.Millisecond).Seconds()
			before, then = use.allocated, now
			// A change stops the world for a moment, so a small one is not worth it.
			if percent := gcPercent(use.live, uint64(perSecond)); percent < set*9/10 || percent > set*11/10 {
				debug.SetGCPercent(percent)
				set = percent
			}
		})
	}
	// net/http tells the standard logger of a peer that breaks the protocol, and quotes what it sent: that may
	// be anything, and is not ours to keep.
	log.SetOutput(io.Discard)
}

// afterEachCollection calls f some time after each collection of garbage from now on, never twice at once.
func afterEachCollection(f func()) {
	garbage := new([64]byte) // found to be garbage by the next collection
	runtime.AddCleanup(garbage, func(f func()) {
		f()
		afterEachCollection(f)
	}, f)
}

// heapUse is what the last collection has found to be in use, and what was ever allocated, in bytes.
type heapUse struct{ live, allocated uint64 }

func readHeap() heapUse {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(samples)
	var use heapUse
	for i, to := range []*uint64{&use.live, &use.allocated} {
		if samples[i].Value.Kind() == metrics.KindUint64 {
			*to = samples[i].Value.Uint64()
		}
	}
	return use
}

// giveBack gives the system all the memory that is not needed now. It takes some milliseconds, and what is needed again
// is a moment slower then.
func giveBack() {
	runtime.GC() // a pool keeps what it has over one collection
	debug.FreeOSMemory()
}

// lull says when there is nothing to do and memory to be given back: after definitions were read, after a wave of requests.
type lull struct{ allocated, given uint64 }

const (
	lullLength = 250 * time.Millisecond
	// idleBytes are what some hundred requests in a second allocate in that time. Giving back costs such a gateway some
	// hundredths of a CPU at the most: 17 ms where 10 MiB are live, 200 where 400 are, and the more are live the rarer.
	idleBytes = 512 << 10
	// worthGiving is how much must have been allocated since memory was given back last; a quarter of what is live, where that is more.
	worthGiving = 8 << 20
)

// now is told each lullLength of what was ever allocated.
func (l *lull) now(use heapUse) bool {
	idle := use.allocated-l.allocated < idleBytes
	l.allocated = use.allocated
	if !idle || use.allocated-l.given < max(worthGiving, use.live/4) {
		return false
	}
	l.given = use.allocated
	return true
}

// giveBackInLulls gives memory back whenever there is a lull, until ctx ends, and once, when the start is over, the program's pages:
// under load too, of which a gateway that starts again may have hours without a lull. Where GOGC is set, it decides alone.
func giveBackInLulls(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	var l lull
	startIsOver := sync.OnceFunc(releaseProgram)
	lulls := time.NewTicker(lullLength)
	defer lulls.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-lulls.C:
			startIsOver()
			if l.now(readHeap()) {
				giveBack()
			}
		}
	}
}
