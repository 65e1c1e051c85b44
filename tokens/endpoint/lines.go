package endpoint

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// The rate of log lines about logins that the user service was not asked about, and about failed calls. A client can
// send any number of them, and must not fill a disk. The shield limits the other logins.
const (
	linesPerSecond = 10
	linesAtOnce    = 100
)

// lines limits log lines.
type lines struct {
	mu      sync.Mutex
	limiter *rate.Limiter
	leftOut int
}

func newLines() lines { return lines{limiter: rate.NewLimiter(linesPerSecond, linesAtOnce)} }

// admit reports whether a line may be logged. It adds to its attributes how many may not since the last one.
func (l *lines) admit(now time.Time, attributes []slog.Attr) ([]slog.Attr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.limiter.AllowN(now, 1) {
		l.leftOut++
		return attributes, false
	}
	if l.leftOut > 0 {
		attributes = append(attributes, slog.Int("lines_left_out", l.leftOut))
	}
	l.leftOut = 0
	return attributes, true
}
