// Package proven decides whether a configuration that an Envoy has acknowledged is the one that it serves. An
// acknowledgement says that Envoy's main thread has taken it; so each Envoy is also asked, as a client would ask
// it, for the version that answers at xds.VersionPath.
//
// An Envoy that Gatepost cannot reach, because it is behind a proxy or a firewall or listens on another machine's
// loopback, cannot be asked. If it is connected by a Unix socket or a client certificate, its acknowledgement stands, and
// the status says that it is no more. Any other peer that has only acknowledged may be anybody and does not count.
package proven

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"gatepost/xds"
)

// Control is the control plane whose Envoys are asked.
type Control interface {
	// Status tells what is published and which Envoys are connected.
	Status() xds.Status
	// Changed returns a channel that is closed at the next change of Status.
	Changed() <-chan struct{}
}

// Config says whose Envoys are asked, and where.
type Config struct {
	// Control is the control plane. Required.
	Control Control
	// Listen returns the address on which Envoys take requests, by the definitions that are published. Required.
	Listen func() string
	// Ask returns the version that answers at an address. Nil: the function Ask.
	Ask func(ctx context.Context, address string) (string, error)
	// Log is told once of an Envoy that cannot be asked. Required.
	Log *slog.Logger
}

// How an Envoy is asked. What was acknowledged answers within milliseconds; a listener that is new may take a
// little longer.
const (
	firstAgain = 5 * time.Millisecond
	lastAgain  = 5 * time.Second
	// patience is for how long an Envoy that does not answer holds up the others.
	patience = 3 * time.Second
)

// Prover asks the Envoys. Its methods may be called from many goroutines at once.
type Prover struct {
	config Config

	mu      sync.Mutex
	answers map[stream]*answers
	changed chan struct{} // closed, and replaced, at each change of Status
}

// stream tells one connection of an Envoy from another: an Envoy that comes back is asked again.
type stream struct {
	node, address string
	since         time.Time
}

func streamOf(e xds.EnvoyStatus) stream { return stream{e.Node, e.Address, e.Connected} }

// answers are what one Envoy has said.
type answers struct {
	// serving is the version that it last answered with; empty: it never has.
	serving string
	// doubt is why the last question came to nothing; nil where it was answered.
	doubt error
	// asked is the version that it is or was last asked for, and since when.
	asked string
	since time.Time
	// again is when it is to be asked the next time, and pause how long after the last.
	again time.Time
	pause time.Duration
	// asking: a question is under way.
	asking bool
	// silent: it was asked for long enough without an answer. One answer ends that.
	silent bool
	// told: the log has heard of what is in doubt since.
	told bool
}

// Status is what the control plane tells, and what the Envoys have answered beside it.
type Status struct {
	xds.Status
	// Answers are what the Envoys have answered, in the order of Envoys.
	Answers []Answer
}

// Answer is what one Envoy has answered.
type Answer struct {
	// Serving is the version with which the Envoy last answered. Empty: it has not.
	Serving string
	// Proven says whether that is the version that it has acknowledged in full.
	Proven bool
	// Doubt is why an acknowledged version is not proven; empty where it is, or the question is still open.
	Doubt string

	waitedFor, counts bool
}

// New makes a Prover, which does nothing until it runs.
func New(config Config) *Prover {
	if config.Ask == nil {
		config.Ask = Ask
	}
	return &Prover{config: config, answers: map[stream]*answers{}, changed: make(chan struct{})}
}

// Counts reports whether the i-th Envoy counts: it has acknowledged a configuration, and it is trusted, or no trusted
// Envoy is connected and it has answered. Anybody who can connect can send an acknowledgement, and can answer at their
// own address.
func (s Status) Counts(i int) bool { return s.Answers[i].counts }

// Missing returns nil if an Envoy that counts is connected, else what is missing.
func (s Status) Missing() error {
	missing := errNoEnvoy
	for i, e := range s.Envoys {
		switch {
		case s.Counts(i):
			return nil
		case e.Nack != nil:
			missing = fmt.Errorf("the Envoy %s has rejected version %s: %s: %s", e.Node, e.Nack.Version, e.Nack.Type, e.Nack.Reason)
		case e.Acked != "" && s.Answers[i].Doubt != "":
			missing = fmt.Errorf("the Envoy %s has acknowledged a configuration, but that it serves it cannot be verified: %s; "+
				"let Gatepost reach its listener, or connect it by a Unix socket or with a client certificate", e.Node, s.Answers[i].Doubt)
		}
	}
	return missing
}

var errNoEnvoy = errors.New("no connected Envoy has acknowledged a configuration yet")

// Applied reports whether what is published is what every Envoy that counts serves, as far as each can be asked: all of
// them, and at least one, have acknowledged it in full, and none that can be asked answers with anything else.
func (s Status) Applied() bool {
	for i, e := range s.Envoys {
		if s.Counts(i) && (e.Acked != s.Version || s.Answers[i].waitedFor) {
			return false
		}
	}
	return s.Version != "" && s.Missing() == nil
}

// Answered reports whether it is Applied, and every Envoy that counts has been asked and has answered with it.
func (s Status) Answered() bool {
	for i, a := range s.Answers {
		if s.Counts(i) && !a.Proven {
			return false
		}
	}
	return s.Applied()
}

// Status tells how things stand. What it returns is the caller's.
func (p *Prover) Status() Status {
	status := Status{Status: p.config.Control.Status()}
	withTrusted := slices.ContainsFunc(status.Envoys, func(e xds.EnvoyStatus) bool { return e.Trusted })
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range status.Envoys {
		a := p.answers[streamOf(e)]
		if a == nil {
			a = &answers{}
		}
		out := Answer{Serving: a.serving, Proven: e.Acked != "" && a.serving == e.Acked}
		if !out.Proven && a.asked == e.Acked && a.doubt != nil {
			out.Doubt = a.doubt.Error()
		}
		out.waitedFor = !out.Proven && !a.silent
		out.counts = e.Acked != "" && (e.Trusted || !withTrusted && a.serving != "")
		status.Answers = append(status.Answers, out)
	}
	return status
}

// Changed returns a channel that is closed at the next change of Status. Take it before Status is read, and
// again after each time.
func (p *Prover) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// notify tells all who wait that Status has changed. The lock is held.
func (p *Prover) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Run asks until ctx ends. It returns when no question is under way any more.
func (p *Prover) Run(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed, answered := p.config.Control.Changed(), p.Changed()
		timer.Reset(p.ask(ctx, &asking, p.config.Control.Status()))
		select {
		case <-ctx.Done():
			return
		case <-changed:
			p.mu.Lock()
			p.notify()
			p.mu.Unlock()
		case <-answered:
		case <-timer.C:
		}
	}
}

// ask puts the question to each Envoy that is to be asked now, and returns when to look again.
func (p *Prover) ask(ctx context.Context, asking *sync.WaitGroup, status xds.Status) time.Duration {
	listen := p.config.Listen()
	p.mu.Lock()
	defer p.mu.Unlock()
	now, next := time.Now(), lastAgain
	connected := map[stream]bool{}
	for _, e := range status.Envoys {
		connected[streamOf(e)] = true
		if e.Acked == "" || e.Acked != status.Version {
			continue // it is on its way to another version
		}
		a := p.answers[streamOf(e)]
		if a == nil {
			a = &answers{}
			p.answers[streamOf(e)] = a
		}
		if a.asked != e.Acked {
			a.asked, a.since, a.again, a.pause, a.told = e.Acked, now, now, firstAgain, a.silent
		}
		if a.asking || a.serving == e.Acked {
			continue
		}
		if wait := a.again.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		a.asking = true
		asking.Go(func() { p.question(ctx, listen, e, a) })
	}
	maps.DeleteFunc(p.answers, func(s stream, _ *answers) bool { return !connected[s] })
	return next
}

// question asks one Envoy once, and notes what it answers.
func (p *Prover) question(ctx context.Context, listen string, e xds.EnvoyStatus, a *answers) {
	address, err := beacon(listen, e)
	var serving string
	if err == nil {
		serving, err = p.config.Ask(ctx, address)
	}
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a.asking = false
	switch {
	case err != nil:
		a.doubt = err
	case serving != e.Acked:
		a.serving, a.silent, a.doubt = serving, false, differs{address, serving}
	default:
		a.serving, a.silent, a.doubt = serving, false, nil
	}
	a.again = time.Now().Add(a.pause)
	a.pause = min(2*a.pause, lastAgain)
	if a.doubt != nil && a.asked == e.Acked && time.Since(a.since) >= patience {
		a.silent = err != nil
		p.tell(e, a)
	}
	p.notify()
}

// tell logs, once for each version, what is in doubt. The lock is held.
func (p *Prover) tell(e xds.EnvoyStatus, a *answers) {
	if a.told {
		return
	}
	a.told = true
	text := "an Envoy does not serve the version that it has acknowledged"
	switch {
	case a.silent && e.Trusted:
		text = "an Envoy cannot be asked which version it serves; its acknowledgement has to do"
	case a.silent:
		text = "an Envoy cannot be asked which version it serves, and it is connected by TCP without a client certificate; it does not count"
	}
	p.config.Log.Warn(text, "node", e.Node, "address", e.Address, "acked", e.Acked, "error", a.doubt)
}

// differs says that something else answers than what was acknowledged.
type differs struct{ address, serving string }

func (d differs) Error() string { return d.address + " answers with version " + d.serving }
