package redisconn

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

const (
	// lateInARow is how many late calls in a row open a Guard. One late reply is usual: Redis writes a snapshot, or the
	// machine is busy for a moment.
	lateInARow = 3
	// guardPause is how long an open Guard makes no call.
	guardPause = time.Second
)

// ErrPaused is the error of a call that an open Guard has not made.
var ErrPaused = errors.New("no call of Redis for a second after failures")

// Guard is a circuit breaker for calls whose callers can do without Redis, so that an outage does not delay all of
// them. A call that fails opens it at once; of calls without a reply in time, the third in a row does. Late calls that
// overlap count as one, because one delay makes all of them late. An open Guard makes no call for a second. Then it
// makes one: a failure of any kind opens the Guard again, and a success closes it. Its methods are safe for concurrent
// use.
type Guard struct {
	// Timeout limits each call.
	Timeout time.Duration
	// Logger gets the text Lost if the Guard opens, and Back if it closes. Nil: nothing is logged.
	Logger     *slog.Logger
	Lost, Back string
	// Now is the clock of the pause. Nil: [time.Now].
	Now func() time.Time

	mu sync.Mutex
	// late is the number of late calls in a row, and lastLate the end of the last one.
	late     int
	lastLate time.Time
	// until is the end of the pause; zero if the Guard is closed.
	until time.Time
	// probing is whether a call is made that closes the Guard or opens it again. The others do not wait for Redis
	// meanwhile: if it does not answer, they would all wait for the whole Timeout.
	probing bool
}

// Call makes a call, or returns ErrPaused. The call goes on if the caller goes away: that is no failure of Redis.
func (g *Guard) Call(ctx context.Context, call func(context.Context) error) error {
	start := g.now()
	probe, paused := g.begin(start)
	if paused {
		return ErrPaused
	}
	if probe {
		defer g.endProbe()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.Timeout)
	defer cancel()
	err := call(ctx)
	switch opened, closed := g.record(start, err, ctx.Err() != nil); {
	case g.Logger == nil:
	case opened:
		g.Logger.LogAttrs(ctx, slog.LevelWarn, g.Lost, slog.Any("error", err))
	case closed:
		g.Logger.LogAttrs(ctx, slog.LevelInfo, g.Back)
	}
	return err
}

// begin reports whether a call is the one that an open Guard makes after its pause, or whether it is not made.
func (g *Guard) begin(start time.Time) (probe, paused bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.probing || start.Before(g.until) {
		return false, true
	}
	g.probing = !g.until.IsZero()
	return g.probing, false
}

func (g *Guard) endProbe() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.probing = false
}

func (g *Guard) now() time.Time {
	if g.Now == nil {
		return time.Now()
	}
	return g.Now()
}

// record records the outcome of a call, and reports whether that has opened or closed the Guard.
func (g *Guard) record(start time.Time, err error, late bool) (opened, closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	isOpen := !g.until.IsZero()
	switch {
	case start.Before(g.until): // begun before another call has opened the Guard
	case err == nil:
		g.late, g.until = 0, time.Time{}
		return false, isOpen
	case late && !isOpen && g.isEarly(start):
	default:
		g.late, g.until = 0, g.now().Add(guardPause)
		return !isOpen, false
	}
	return false, false
}

// isEarly counts a late call, and reports whether there are too few in a row.
func (g *Guard) isEarly(start time.Time) bool {
	if !start.Before(g.lastLate) {
		g.late++
		g.lastLate = g.now()
	}
	return g.late < lateInARow
}
