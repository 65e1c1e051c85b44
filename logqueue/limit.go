package logqueue

import (
	"cmp"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const linesPerSecond = 10

// LinesAtOnce is how many lines a [Limit] admits at once.
const LinesAtOnce = 100

// Limit limits log lines of one kind. A client can cause any number of them, and must not fill a disk. The zero Limit
// is ready to use, and safe for concurrent use.
type Limit struct {
	// PerSecond is how many lines there may be in a second, on average. Zero: 10.
	PerSecond rate.Limit

	mu      sync.Mutex
	limiter *rate.Limiter
	leftOut int
}

// Admit reports whether a line may be logged now, and returns the attribute of how many may not since the last one, if
// there are any.
func (l *Limit) Admit(now time.Time) (leftOut []slog.Attr, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limiter == nil {
		l.limiter = rate.NewLimiter(cmp.Or(l.PerSecond, linesPerSecond), LinesAtOnce)
	}
	if !l.limiter.AllowN(now, 1) {
		l.leftOut++
		return nil, false
	}
	if l.leftOut > 0 {
		leftOut = []slog.Attr{slog.Int("lines_left_out", l.leftOut)}
	}
	l.leftOut = 0
	return leftOut, true
}
