// Package systemd decides what is reported to systemd: that the process is ready, reloads its
// configuration, stops, or is alive. See sd_notify(3).
package systemd

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// pollReady is the interval of the readiness check until the process is ready.
const pollReady = 250 * time.Millisecond

// maxStatus limits a status line, in bytes. systemd ignores messages of more than 4 KiB.
const maxStatus = 1000

// Reporter sends the state of the process to the Unix datagram socket that NOTIFY_SOCKET names. A
// nil Reporter sends nothing. Its methods are safe for concurrent use.
type Reporter struct {
	logger   *slog.Logger
	watchdog time.Duration // systemd expects a WATCHDOG=1 in each such interval; 0: it expects none

	mu    sync.Mutex // held while a message is sent, so messages have the order of the states
	state state
}

type state int

const (
	starting state = iota
	ready
	reloading
	stopping
)

// Config is what a [Reporter] needs.
type Config struct {
	// Logger receives what cannot be reported, which stops nothing. Nil: nothing is logged.
	Logger *slog.Logger
}

// New returns a Reporter, or nil if NOTIFY_SOCKET is not set.
func New(config Config) *Reporter {
	logger := cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		logger.Warn("reading WATCHDOG_USEC failed: systemd receives no WATCHDOG=1", "error", err)
	}
	return &Reporter{logger: logger, watchdog: watchdog}
}

// Run reports READY=1 when isReady returns nil. From then on it reports WATCHDOG=1, three times in
// each interval of the watchdog, as long as isAlive returns nil. It returns when ctx ends.
func (r *Reporter) Run(ctx context.Context, isReady, isAlive func(context.Context) error) {
	if r == nil {
		return
	}
	if r.awaitReady(ctx, isReady) && r.watchdog > 0 {
		r.keepAlive(ctx, isAlive)
	}
}

// awaitReady returns false if ctx ends first. The status names what is missing.
func (r *Reporter) awaitReady(ctx context.Context, isReady func(context.Context) error) bool {
	poll := time.NewTicker(pollReady)
	defer poll.Stop()
	reported := ""
	for {
		missing := isReady(ctx)
		if missing == nil {
			r.change(starting, ready, daemon.SdNotifyReady, status("started"))
			return true
		}
		if text := missing.Error(); text != reported {
			reported = text
			r.change(starting, starting, status("not ready: "+text))
		}
		select {
		case <-ctx.Done():
			return false
		case <-poll.C:
		}
	}
}

func (r *Reporter) keepAlive(ctx context.Context, isAlive func(context.Context) error) {
	interval := r.watchdog / 3
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, interval)
		err := isAlive(bounded)
		cancel()
		if err == nil {
			r.mu.Lock()
			r.send(daemon.SdNotifyWatchdog)
			r.mu.Unlock()
		} else if ctx.Err() == nil {
			r.logger.Error("the process does not respond: systemd receives no WATCHDOG=1", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Reload reports RELOADING=1, calls reload, and reports READY=1 with the result as the status. If
// the process is not ready yet, or stops, it only calls reload.
func (r *Reporter) Reload(reload func() (result string)) {
	if r == nil || !r.change(ready, reloading, daemon.SdNotifyReloading) {
		reload()
		return
	}
	result := reload()
	r.change(reloading, ready, daemon.SdNotifyReady, status(result))
}

// Stopping reports STOPPING=1. After it only WATCHDOG=1 is reported.
func (r *Reporter) Stopping() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != stopping {
		r.state = stopping
		r.send(daemon.SdNotifyStopping)
	}
}

// change changes the state and sends a message, if the state is from.
func (r *Reporter) change(from, to state, message ...string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != from {
		return false
	}
	r.state = to
	r.send(message...)
	return true
}

// send is called with mu held.
func (r *Reporter) send(message ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(message, "\n")); err != nil {
		r.logger.Warn("reporting to systemd failed", "message", message[0], "error", err)
	}
}

// status returns the assignment of a status, as one line.
func status(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxStatus {
		text = strings.ToValidUTF8(text[:maxStatus], "") + "…"
	}
	return "STATUS=" + text
}
