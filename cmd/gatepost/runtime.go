package main

import (
	"io"
	"log"
	"os"
	"runtime/debug"
)

// gcPercent lets the heap grow to five times what is live before it is collected. What is live is a few megabytes,
// and a check makes little garbage, so this is a tenth of the CPU of a check for some ten megabytes.
const gcPercent = 400

// tuneRuntime sets what the runtime cannot know; GOGC says otherwise where it is set.
func tuneRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	// net/http tells the standard logger of a peer that breaks the protocol, and quotes what it sent: that may
	// be anything, and is not ours to keep.
	log.SetOutput(io.Discard)
}
