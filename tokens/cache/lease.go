package cache

import (
	"sync/atomic"
	"time"
)

// lease is the time until which cached answers are valid. Every check reads it; there is one
// writer.
type lease struct{ term atomic.Pointer[term] }

// term ends when either clock has passed its end. The monotonic clock cannot be set, but it may
// stop while the machine is suspended; the wall clock does not stop.
type term struct {
	end  time.Time // with a monotonic reading
	wall int64     // Unix nanoseconds
}

// held reports whether the lease runs at the time now, as read by time.Now.
func (l *lease) held(now time.Time) bool {
	t := l.term.Load()
	return t != nil && now.Before(t.end) && now.UnixNano() < t.wall
}

// extend makes the lease run for length after the time from.
func (l *lease) extend(from time.Time, length time.Duration) {
	end := from.Add(length)
	l.term.Store(&term{end: end, wall: end.UnixNano()})
}

func (l *lease) end() { l.term.Store(nil) }

// withMargin returns how long to wait until a lease of length d has expired by another process's
// clock. Clocks disciplined by NTP differ in rate by less than 0.1 %; the margin is 1 % and 10 ms.
func withMargin(d time.Duration) time.Duration { return d + d/100 + 10*time.Millisecond }
