package table

import "time"

// Instant is one moment by the two clocks that end a decision. Boot counts from the start of the machine, also while it is
// suspended, and cannot be set (CLOCK_BOOTTIME); Wall can be set, and goes on while a virtual machine is held.
type Instant struct {
	Boot time.Duration
	Wall time.Time
}

// Now reads both clocks.
func Now() Instant { return Instant{boottime(), time.Now()} }

// Add returns the instant d later by both clocks.
func (i Instant) Add(d time.Duration) Instant { return Instant{i.Boot + d, i.Wall.Add(d)} }
