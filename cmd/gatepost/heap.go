package main

import (
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// The collector lets the heap grow by a share of what is in use. A large heap gets less of it than by Go's default, so
// that many tokens take less memory. A small heap gets as much as by default, or each check would cost more CPU time.
// Therefore the ballast counts as in use: the heap grows by a fifth of both. It is never written, so it takes no
// memory.
const (
	gcPercent   = 20
	ballastSize = 28 << 20
)

// ballast keeps the ballast in use.
var ballast []byte

// limitHeap sets how far the heap grows, unless an operator sets that with a variable of the Go runtime.
func limitHeap() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetGCPercent(gcPercent)
	ballast = make([]byte, ballastSize)
	_ = unix.Madvise(ballast, unix.MADV_DONTNEED) // the runtime clears pages that it has used before
}
