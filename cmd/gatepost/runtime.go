package main

import (
	"io"
	"log"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// How far the heap may grow beyond what is live before it is collected. Where a few megabytes are live, which is
// how a gateway mostly is, the runtime's own measure would collect after each few megabytes more: to let it grow to
// five times that is a tenth of the CPU of a check. Where much is live, five times is much memory for nothing:
// headroom is enough there, as long as it is not so little that the gateway does nothing but collect.
const (
	mostPercent  = 400
	leastPercent = 50
	headroom     = 24 << 20
)

// gcPercent is GOGC where so many bytes are live.
func gcPercent(live uint64) int {
	return int(min(max(headroom*100/max(live, 1), leastPercent), mostPercent))
}

// tuneRuntime sets what the runtime cannot know; GOGC says otherwise where it is set. GOMEMLIMIT is the runtime's own,
// and holds beside this.
func tuneRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(mostPercent)
		set := mostPercent
		afterEachCollection(func() {
			// A change stops the world for a moment, so a small one is not worth it.
			if percent := gcPercent(liveBytes()); percent < set*9/10 || percent > set*11/10 {
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

// liveBytes is what the last collection has found to be in use.
func liveBytes() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
