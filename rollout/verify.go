package rollout

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// How an Envoy is asked. What was acknowledged answers within milliseconds; a listener that is new may take a
// little longer.
const (
	firstAgain = 5 * time.Millisecond
	lastAgain  = 5 * time.Second
	// patience is for how long an Envoy that does not answer delays the others.
	patience = 3 * time.Second
)

// verifier asks each Envoy that has acknowledged the published version whether it serves it, until it does.
type verifier struct {
	of  *Rollout
	ask func(ctx context.Context, address string) (string, error)

	mu    sync.Mutex
	asked map[int64]*asked // :: stream → when its Envoy is asked
}

// asked is when one Envoy is asked.
type asked struct {
	version string    // the version that it is or was last asked for
	since   time.Time // since when
	again   time.Time // when it is asked next
	pause   time.Duration
	running bool // a question is under way
	logged  bool // the log has the doubt about this version
}

func newVerifier(of *Rollout, ask func(context.Context, string) (string, error)) *verifier {
	if ask == nil {
		ask = askVersion
	}
	return &verifier{of: of, ask: ask, asked: map[int64]*asked{}}
}

// run asks until ctx ends. It returns when no question is under way any more.
func (v *verifier) run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := v.of.StatusChanged()
		timer.Reset(v.askAll(ctx, &running, v.of.Status()))
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
		}
	}
}

// askAll asks each Envoy that is due, and returns when the next one is.
func (v *verifier) askAll(ctx context.Context, running *sync.WaitGroup, status Status) time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	now, next := time.Now(), lastAgain
	connected := map[int64]bool{}
	for _, e := range status.Envoys {
		connected[e.ID] = true
		if e.Acked == "" || e.Acked != status.Version {
			continue // it is on its way to another version
		}
		a := v.asked[e.ID]
		if a == nil {
			a = &asked{}
			v.asked[e.ID] = a
		}
		if a.version != e.Acked {
			*a = asked{version: e.Acked, since: now, again: now, pause: firstAgain, running: a.running, logged: e.silent}
		}
		if a.running || e.Verified {
			continue
		}
		if wait := a.again.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		a.running = true
		running.Go(func() { v.question(ctx, status.Listen, e, a) })
	}
	maps.DeleteFunc(v.asked, func(id int64, _ *asked) bool { return !connected[id] })
	return next
}

// question asks one Envoy once, and reports the answer.
func (v *verifier) question(ctx context.Context, listen netip.AddrPort, e Envoy, a *asked) {
	address, err := beacon(listen, e.Peer)
	var serving string
	if err == nil {
		serving, err = v.ask(ctx, address)
	}
	if ctx.Err() != nil {
		return
	}
	v.mu.Lock()
	overdue := a.version == e.Acked && time.Since(a.since) >= patience
	a.running, a.again = false, time.Now().Add(a.pause)
	a.pause = min(2*a.pause, lastAgain)
	if overdue && !a.logged && (err != nil || serving != e.Acked) {
		a.logged = true
		v.log(e, address, serving, err)
	}
	v.mu.Unlock()
	_ = v.of.handle(answered{id: e.ID, address: address, asked: e.Acked, serving: serving, err: err, overdue: overdue})
}

// log logs, once for each version, that an Envoy is not verified.
func (v *verifier) log(e Envoy, address, serving string, err error) {
	text := "an Envoy does not serve the version that it has acknowledged"
	switch {
	case err != nil && e.Trusted:
		text = "an Envoy cannot be asked which version it serves; its acknowledgement has to do"
	case err != nil:
		text = "an Envoy cannot be asked which version it serves, and it is connected by TCP without a client certificate; it does not count"
	default:
		err = differs{address, serving}
	}
	v.of.config.Logger.Warn(text, "node", e.Node, "address", e.Address, "acked", e.Acked, "error", err)
}
