// Package rollout decides the life of a version of the configuration: whether it is served, kept as the last good
// one, or taken back.
//
//	               Delivered            verified
//	┌► published ─────────────► acked ─────────────► active
//	│      │                      │ ▲                   │
//	│      │ NACK                 │ │ Delivered         │
//	│      ▼                      │ │                   │
//	│  rejected ──────────────────┼─┘                   │
//	│      │                      │                     │
//	└──────┴──────────────────────┴─────────────────────┘
//	       another version is published, or the same again
//
// What triggers each transition:
//
//   - published: new definitions were read and built (Apply), or a version takes the place of a rejected one, or a
//     rejected one is tried again. Gatepost's own parts use its settings from now on (Config.OnPublish).
//   - acked: [xds.Delivered], every Envoy that a change waits for has acknowledged every type. From now on a rejection
//     of a later version falls back to this one. A rejected version can still be acked, if its cause is gone.
//   - verified: each Envoy that counts answered with the version at [definitions.VersionPath]. An ACK comes from
//     Envoy's main thread, an answer from a worker. A trusted Envoy that cannot be asked for 3 s is not waited for.
//   - active: verified. Its definitions are saved for the next start (and Config.OnActive is called).
//   - rejected: [xds.Nacked], if the NACK counts: it is not of the last acked version, the Envoy is a trusted one (or
//     none is connected), and it has acknowledged a whole version before, or no other Envoy has acknowledged anything
//     of this one. If a version was acked before, that one is published at once. A rejected version is not sent again,
//     until RetryRejected, or until the Envoy that has rejected it disconnects without ever having acknowledged a
//     version.
//
// What follows a rejection, the first that is possible:
//
//  1. The last acked version is published again, at once (fallen back to last good).
//  2. The NACK names the module: the rejected definitions are published without it, as are all later ones.
//  3. The NACK names services: the definitions are published without these (active in part). Each of them is served
//     as in the last good definitions or, if that would be less strict, answers 503.
//  4. If no version was acked since the start, the last good definitions from the disk are published.
//  5. Else the version stays published, and the Envoys keep what they have.
//
// A published version is as its definitions say, without some services (in part), or older than the newest definitions
// (fallen back). It passes through the same states in each case. All that is known is in one Status.
//
// The state machine (machine.go) is pure: events in, actions out. Rollout does the input and output around it; the
// verifier asks the Envoys.
package rollout

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"gatepost/convention"
	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/xds"
)

// Config is what a Rollout needs.
type Config struct {
	// Control is the control plane that serves the Envoys. Required.
	Control *xds.Server
	// Options is what the Envoys' configuration needs to know of its surroundings; none are withheld.
	Options xds.Options
	// WithoutModule is why Options has no module; empty if it has one.
	WithoutModule string
	// ModuleVersion returns why an Envoy of a version, such as 1.40.0, must not use the module; empty if it may. Nil:
	// any may.
	ModuleVersion func(version string) string
	// LastGood keeps the definitions that were active last. It may block. Required.
	LastGood LastGood
	// Certificates reads the certificates that definitions name, and returns those that can be served. It is called for
	// each version, and an error is one of building it. Nil: there are none.
	Certificates func(d *definitions.Definitions) ([]xds.Certificate, error)
	// OnPublish gives Gatepost's own parts the settings of the version that is published now. Required. It must not block.
	OnPublish func(d *definitions.Definitions)
	// OnActive is called each time that the published version becomes active. It must not block. Nil: nothing waits for
	// that.
	OnActive func()
	// Ask returns the version that an Envoy answers with at an address. Nil: by HTTP, at definitions.VersionPath.
	Ask func(ctx context.Context, address string) (string, error)
	// Logger receives each change of state. Nil: nothing is logged.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer
}

// LastGood saves definitions for the next start; see [definitions.LastGood].
type LastGood interface {
	Save(d *definitions.Definitions) error
	Load() (*definitions.Definitions, error)
}

// Rollout takes definitions to the Envoys. Its methods may be called from many goroutines at once.
type Rollout struct {
	config   Config
	builder  xds.Builder
	verifier *verifier
	saver    *saver
	metrics  metrics
	wake     chan struct{} // holds one element if there is something to handle

	// building is held from the start of a build until its result is published, so that versions are published in order.
	building sync.Mutex

	inboxMu sync.Mutex
	inbox   []xds.Event // reported and not handled yet

	mu      sync.Mutex // held before inboxMu and before a call of the control plane
	machine machine
	unbuilt *definitions.Definitions // the newest ones, if they could not be built; or nil
	work    []func()                 // builds and reads of the disk that the machine asked for
	changed chan struct{}            // closed, and replaced, at each change of Status
}

// New returns a rollout with nothing published. It subscribes to the control plane, which must not have a stream yet.
func New(config Config) (*Rollout, error) {
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	r := &Rollout{
		config: config, wake: make(chan struct{}, 1), changed: make(chan struct{}),
		saver: newSaver(config.LastGood, config.Logger), machine: newMachine(config),
	}
	r.verifier = newVerifier(r, config.Ask)
	if err := r.register(config.Registerer); err != nil {
		return nil, err
	}
	config.Control.Subscribe(r.post)
	return r, nil
}

// Apply publishes definitions that were saved at a time, for the measuring. An error leaves everything as it is.
func (r *Rollout) Apply(d *definitions.Definitions, saved time.Time) error {
	r.building.Lock()
	defer r.building.Unlock()
	v, err := r.build(d, saved)
	if err != nil {
		return err
	}
	return r.handle(offered{v})
}

// Changed applies new definitions. If that fails, it is logged and counted, and what is served stays.
func (r *Rollout) Changed(_ context.Context, d *definitions.Definitions) {
	r.config.Logger.Info("definitions read", "from", d.Name, "services", len(d.Gateway.Services), convention.EventDefinitionsRead.Attr())
	err := r.Apply(d, savedAt(d.Name))
	rejection := (*xds.Rejection)(nil)
	r.mu.Lock()
	r.unbuilt = nil
	if err != nil && !errors.As(err, &rejection) {
		r.unbuilt = d
	}
	r.mu.Unlock()
	if err != nil {
		_ = r.handle(failure{err})
	}
}

// savedAt returns when a file was saved, if its own time can be believed: a file that was moved to its place may be
// older than the move.
func savedAt(path string) time.Time {
	now := time.Now()
	info, err := os.Stat(path)
	if err != nil || info.ModTime().After(now) || now.Sub(info.ModTime()) > time.Minute {
		return now
	}
	return info.ModTime()
}

// Failed records why new definitions are not served. What was served before stays.
func (r *Rollout) Failed(err error) {
	r.mu.Lock()
	r.unbuilt = nil
	r.mu.Unlock()
	_ = r.handle(failure{err})
}

// StartDegraded records why the definitions to start with are not the newest ones. Their source reports the same to
// Failed later, and there it is counted.
func (r *Rollout) StartDegraded(err error) { _ = r.handle(startedDegraded{err}) }

// RetryRejected has the Envoys try again a version that they have rejected, and has changed definitions applied that
// could not be: the cause may lie outside of them, such as a port that was taken or a missing file of a certificate.
func (r *Rollout) RetryRejected() {
	r.mu.Lock()
	unbuilt := r.unbuilt
	r.mu.Unlock()
	if unbuilt != nil {
		r.Changed(context.Background(), unbuilt)
	}
	_ = r.handle(retried{})
}

// CertificatesChanged publishes the version again if it has other certificates, or other names of them, from now on. It
// returns at once.
func (r *Rollout) CertificatesChanged() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.later(r.renew)
}

// Status returns how things stand. It is the caller's.
func (r *Rollout) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machine.status()
}

// Message returns the status as the admin API shows it.
func (r *Rollout) Message() *gatewayv1.Status {
	status := r.Status()
	out := status.message()
	for i, e := range status.Envoys {
		out.Envoys[i].RejectedSecrets = r.config.Control.RejectedSecrets(e.ID)
	}
	return out
}

// StatusChanged returns a channel that is closed at the next change of Status. Take it before Status is read, and again
// after each time.
func (r *Rollout) StatusChanged() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// AwaitResult waits until every Envoy serves the published version, or until it is known that none will for now: the
// newest definitions failed, or no Envoy counts. If ctx ends first, it returns the status at that time.
func (r *Rollout) AwaitResult(ctx context.Context) Status {
	for {
		changed := r.StatusChanged()
		s := r.Status()
		if s.Applied() || s.Failure != nil || s.Missing() != nil {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s
		}
	}
}

// Run handles what the Envoys report until ctx ends.
func (r *Rollout) Run(ctx context.Context) error {
	saved := make(chan struct{}) // closed when nothing is left to save
	defer r.saver.await(saved)
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() {
		defer close(saved)
		r.saver.run(following)
	}()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { r.verifier.run(ctx); return nil })
	group.Go(func() error { r.loop(ctx); return nil })
	return group.Wait()
}

func (r *Rollout) loop(ctx context.Context) {
	for {
		_ = r.handle(nil)
		r.mu.Lock()
		work := r.work
		r.work = nil
		r.mu.Unlock()
		for _, do := range work {
			do()
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
	}
}

// post queues an event of the control plane, which reports it with its lock held.
func (r *Rollout) post(e xds.Event) {
	r.inboxMu.Lock()
	r.inbox = append(r.inbox, e)
	r.inboxMu.Unlock()
	r.signal()
}

func (r *Rollout) signal() {
	select {
	case r.wake <- struct{}{}:
	default: // the loop has yet to take the last signal
	}
}

// handle has the machine handle all queued events, then this one (nil: none), and does what it asks for.
func (r *Rollout) handle(e any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inboxMu.Lock()
	queued := r.inbox
	r.inbox = nil
	r.inboxMu.Unlock()
	for _, one := range queued {
		_ = r.step(one) // an event of the control plane is no error
	}
	if e == nil {
		return nil
	}
	return r.step(e)
}

// step is called with mu held.
func (r *Rollout) step(e any) error {
	actions, err := r.machine.step(e, time.Now())
	for _, a := range actions {
		r.perform(a)
	}
	_, partly := e.(xds.PartAcked)
	if _, sent := e.(xds.Delivered); sent || partly {
		go freeMemory()
	}
	if !partly {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	return err
}

// perform does one thing that the machine asks for. It is called with mu held, so all that may block is left to the
// loop.
func (r *Rollout) perform(a action) {
	switch a := a.(type) {
	case publish:
		if err := r.config.Control.Publish(a.version.snapshot); err != nil {
			r.config.Logger.Error("publishing failed", "version", a.version.id(), "error", err)
		}
		r.config.OnPublish(a.version.definitions)
		go freeMemory()
	case halt:
		r.config.Control.Halt(a.version)
	case activate:
		if r.config.OnActive != nil {
			r.config.OnActive()
		}
		if !a.again {
			r.logActive(a)
			r.saver.save(a.version.definitions)
		}
	case countFailure:
		r.metrics.failed.Inc()
	case note:
		a(r.config.Logger)
	case repair:
		r.later(func() { r.repair(a) })
	case rebuild:
		r.later(func() { r.rebuild(a.version) })
	case offerAgain:
		r.later(func() { r.Changed(context.Background(), a.definitions) })
	}
}

// later has the loop do something without the lock.
func (r *Rollout) later(do func()) {
	r.work = append(r.work, do)
	r.signal()
}

// logActive logs that a version is what clients get, and how long it took since its definitions were saved.
func (r *Rollout) logActive(a activate) {
	args := []any{"version", a.version.id(), "envoys", a.envoys, "answered", a.answered}
	if !a.version.saved.IsZero() {
		took := time.Since(a.version.saved)
		r.metrics.applied.Observe(took.Seconds())
		args = append(args, "seconds", took.Round(time.Millisecond).Seconds())
	}
	r.config.Logger.Info("applied", append(args, convention.EventDefinitionsApplied.Attr())...)
}
