package table

import "time"

// Instant is one moment on the two clocks that end a decision. Boot is CLOCK_BOOTTIME: it counts
// from the start of the machine, also during suspend, and cannot be set. Wall can be set, but it
// also advances while a virtual machine is paused.
type Instant struct {
	Boot time.Duration
	Wall time.Time
}

// Now reads both clocks.
func Now() Instant { return Instant{boottime(), time.Now()} }

// Add returns the instant d later by both clocks.
func (i Instant) Add(d time.Duration) Instant { return Instant{i.Boot + d, i.Wall.Add(d)} }
