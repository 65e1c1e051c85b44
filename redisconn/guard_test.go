package redisconn

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// guarded is a Guard with a clock and a log of its own.
type guarded struct {
	*Guard
	t   *testing.T
	now time.Time
	log strings.Builder
}

func newGuarded(t *testing.T) *guarded {
	g := &guarded{t: t, now: time.Unix(1, 0)}
	g.Guard = &Guard{
		Logger: slog.New(slog.NewTextHandler(&g.log, nil)), Lost: "lost", Back: "back",
		Now: func() time.Time { return g.now },
	}
	return g
}

var errRefused = errors.New("connection refused")

// call is a call of Redis, with its timeout.
type call struct {
	timeout time.Duration
	do      func(context.Context) error
}

func ending(err error) call {
	return call{time.Hour, func(context.Context) error { return err }}
}

var (
	answered = ending(nil)
	failing  = ending(errRefused)
	late     = call{time.Nanosecond, awaitTimeout}
)

func awaitTimeout(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// calls makes calls in turn, and checks whether each is made.
func (g *guarded) calls(made bool, all ...call) {
	g.t.Helper()
	for i, c := range all {
		g.Timeout = c.timeout
		if err := g.Call(g.t.Context(), c.do); errors.Is(err, ErrPaused) == made {
			g.t.Errorf("call %d: %v, want one that is made: %v", i, err, made)
		}
	}
}

func (g *guarded) logged(want string) {
	g.t.Helper()
	var got []string
	for line := range strings.Lines(g.log.String()) {
		_, message, _ := strings.Cut(line, "msg=")
		message, _, _ = strings.Cut(strings.TrimSpace(message), " ")
		got = append(got, message)
	}
	if got := strings.Join(got, " "); got != want {
		g.t.Errorf("the log is %q, want %q", got, want)
	}
}

func TestAGuardOpensAfterOneFailure(t *testing.T) {
	g := newGuarded(t)
	g.calls(true, answered, failing)
	g.calls(false, answered)
	g.now = g.now.Add(guardPause - 1)
	g.calls(false, answered)
	g.now = g.now.Add(1)
	g.calls(true, answered, answered)
	g.logged("lost back")
}

func TestAGuardOpensAfterThreeLateCallsInARow(t *testing.T) {
	g := newGuarded(t)
	g.calls(true, late, late, answered, late, late, answered, late, late, late)
	g.calls(false, answered)
	g.logged("lost")
}

func TestAnOpenGuardStaysOpenAfterOneLateCall(t *testing.T) {
	g := newGuarded(t)
	g.calls(true, failing)
	for range 3 {
		g.now = g.now.Add(guardPause)
		g.calls(true, late)
		g.calls(false, answered)
	}
	g.now = g.now.Add(guardPause)
	g.calls(true, answered, late, late, answered)
	g.logged("lost back")
}

// TestLateCallsThatOverlapCountAsOne: each call begins before the one around it has ended.
func TestLateCallsThatOverlapCountAsOne(t *testing.T) {
	g := newGuarded(t)
	var nested func(depth int) call
	nested = func(depth int) call {
		return call{time.Nanosecond, func(ctx context.Context) error {
			if depth > 0 {
				g.calls(true, nested(depth-1))
			}
			g.now = g.now.Add(time.Millisecond)
			return awaitTimeout(ctx)
		}}
	}
	g.calls(true, nested(5), late, answered)
	g.logged("")
}

// TestAnOpenGuardMakesOneCallAtATime: the others do not wait for a Redis that may not answer.
func TestAnOpenGuardMakesOneCallAtATime(t *testing.T) {
	for _, outcome := range []error{nil, errRefused} {
		g := newGuarded(t)
		g.calls(true, failing)
		g.now = g.now.Add(guardPause)
		g.calls(true, call{time.Hour, func(context.Context) error {
			g.now = g.now.Add(guardPause)
			g.calls(false, answered)
			return outcome
		}})
		g.calls(outcome == nil, answered)
		g.now = g.now.Add(guardPause)
		g.calls(true, answered, answered)
	}
}

func TestAPanicOfTheOneCallLeavesTheGuardUsable(t *testing.T) {
	g := newGuarded(t)
	g.calls(true, failing)
	g.now = g.now.Add(guardPause)
	func() {
		defer func() { _ = recover() }()
		g.calls(true, call{time.Hour, func(context.Context) error { panic("a mistake") }})
	}()
	g.calls(true, answered, answered)
}

// TestACallFromBeforeTheGuardOpened neither closes it nor makes the pause longer.
func TestACallFromBeforeTheGuardOpened(t *testing.T) {
	for _, outcome := range []error{nil, errRefused} {
		g := newGuarded(t)
		g.calls(true, call{time.Hour, func(context.Context) error {
			g.calls(true, failing)
			g.now = g.now.Add(guardPause / 2)
			return outcome
		}})
		g.calls(false, answered)
		g.now = g.now.Add(guardPause / 2)
		g.calls(true, answered)
		g.logged("lost back")
	}
}

func TestACallerThatGoesAwayIsNoFailureOfRedis(t *testing.T) {
	g := newGuarded(t)
	g.Timeout = time.Hour
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Call(gone, func(ctx context.Context) error { return ctx.Err() }); err != nil {
		t.Error(err)
	}
}
