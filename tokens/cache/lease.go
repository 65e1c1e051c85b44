package cache

import (
	"sync/atomic"
	"time"
)

// lease says until when what Redis has not called back may be believed. It is read on every check and has one writer.
type lease struct{ term atomic.Pointer[term] }

// term ends when either clock says so. The monotonic clock cannot be set; but it may stand still while the
// machine is suspended, and then the wall clock has gone on.
type term struct {
	end  time.Time // with a monotonic reading
	wall int64     // Unix nanoseconds
}

// held says whether the lease runs at the time now, as time.Now gave it.
func (l *lease) held(now time.Time) bool {
	t := l.term.Load()
	return t != nil && now.Before(t.end) && now.UnixNano() < t.wall
}

// extend has the lease run for length from the time from.
func (l *lease) extend(from time.Time, length time.Duration) {
	end := from.Add(length)
	l.term.Store(&term{end: end, wall: end.UnixNano()})
}

func (l *lease) end() { l.term.Store(nil) }

// withMargin is how long another process must be given for a lease of the length d to have run out by its clock.
// Two clocks that are disciplined by NTP differ in rate by less than a thousandth; a hundredth and ten milliseconds are allowed.
func withMargin(d time.Duration) time.Duration { return d + d/100 + 10*time.Millisecond }
