// Package apply decides which definitions are in force. New ones are built and published, and then the Envoys have
// the word: what every Envoy serves is kept as the last proven, what one rejects is taken back, and where it rejects
// single services the others go on without them. What is in force is obeyed by Gatepost's own parts too.
package apply

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/definitions"
	"gatepost/proven"
	"gatepost/xds"
)

// Config is what an Applier needs.
type Config struct {
	// Control is the control plane that serves the Envoys. Required.
	Control *xds.Server
	// Options is what the Envoys' configuration needs to know of its surroundings; none are withheld.
	Options xds.Options
	// WithoutModule is why Options has no module; empty if it has one.
	WithoutModule string
	// ModuleVersion says why an Envoy of a version, such as 1.40.0, must not use the module; empty if it may. Nil: any may.
	ModuleVersion func(version string) string
	// LastGood keeps the definitions that were last proven. It may block. Required.
	LastGood LastGood
	// Obey has Gatepost's own parts do what the definitions that are now in force say. Required. It must not block.
	Obey func(tokens *definitions.Tokens)
	// Log is told of each change of what is in force. Required.
	Log *slog.Logger
	// Registerer takes the metrics. Required.
	Registerer prometheus.Registerer
}

// LastGood saves definitions for the next start; see [definitions.LastGood].
type LastGood interface {
	Save(d *definitions.Definitions) error
	Load() (*definitions.Definitions, error)
}

// Applier takes definitions to where they are obeyed. Its methods may be called from many goroutines at once.
type Applier struct {
	config  Config
	builder xds.Builder
	prover  *proven.Prover
	saver   *saver
	metrics metrics
	// withoutModule is why Envoys do not check tokens by themselves; empty: they do.
	withoutModule atomic.Pointer[string]

	mu     sync.Mutex
	newest *applied // what was last published
	// published is the newest, and those to which the control plane may go back. :: version → what it was made of
	published map[string]*applied
	proven    *applied // what every Envoy was last seen to serve; nil: nothing yet
	failed    error    // why the newest definitions are not what is published; nil where they are
	// rejectedLast is what the Envoys have rejected and would be served had they not; nil: nothing.
	rejectedLast *applied
}

// applied is definitions with what is made of them.
type applied struct {
	definitions *definitions.Definitions
	snapshot    *xds.Snapshot
	version     string
	saved       time.Time // when they were written; zero: before this gateway began
	withheld    []string  // the services that are served without their upstreams
	former      []string  // the services that are served in the form that they had before
}

// New returns an applier with nothing in force yet.
func New(config Config) *Applier {
	a := &Applier{config: config, published: map[string]*applied{}, saver: newSaver(config.LastGood, config.Log)}
	a.withoutModule.Store(&config.WithoutModule)
	a.metrics = newMetrics(config.Registerer, a)
	a.prover = proven.New(proven.Config{Control: config.Control, Listen: a.listen, Log: config.Log})
	return a
}

// Apply publishes definitions that were saved at a time, for the measuring. An error leaves everything as it is.
func (a *Applier) Apply(d *definitions.Definitions, saved time.Time) error {
	next, err := a.build(d, saved)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.publish(next)
}

// build makes of definitions what is published of them, with some services withheld.
func (a *Applier) build(d *definitions.Definitions, saved time.Time, withheld ...string) (*applied, error) {
	options := a.config.Options
	if options.Listen.IsValid() {
		if err := d.CheckListen(options.Listen); err != nil {
			return nil, err
		}
	}
	options.Withheld = withheld
	if *a.withoutModule.Load() != "" {
		options.Module = xds.Module{}
	}
	snapshot, err := a.builder.Build(d.Gateway, options)
	if err != nil {
		return nil, fmt.Errorf("building Envoy's configuration from %s: %w", d.Name, err)
	}
	return &applied{definitions: d, snapshot: snapshot, version: snapshot.Version, saved: saved, withheld: withheld}, nil
}

// publish hands what was built to the Envoys. It is called with mu held.
func (a *Applier) publish(next *applied) error {
	if err := a.config.Control.Publish(next.snapshot); err != nil {
		if errors.Is(err, xds.ErrRejected) {
			a.rejectedLast = next
		}
		return err
	}
	a.newest, a.failed, a.rejectedLast = next, nil, nil
	a.published[next.version] = next
	a.config.Obey(&next.definitions.Gateway.Tokens)
	// Reading and building a large configuration leaves several times its size as garbage, which an idle runtime keeps.
	go debug.FreeOSMemory()
	return nil
}

// Changed is told of new definitions by the watcher.
func (a *Applier) Changed(_ context.Context, d *definitions.Definitions) {
	a.config.Log.Info("definitions read", "from", d.Name, "services", len(d.Gateway.Services))
	if err := a.Apply(d, savedAt(d.Name)); err != nil {
		a.Failed(err)
	}
}

// savedAt is when a file was saved, by its own account where that can be believed: a file that was moved to its place
// may be older than the move.
func savedAt(path string) time.Time {
	now := time.Now()
	info, err := os.Stat(path)
	if err != nil || info.ModTime().After(now) || now.Sub(info.ModTime()) > time.Minute {
		return now
	}
	return info.ModTime()
}

// Failed is told why new definitions are not served. What was served before stays.
func (a *Applier) Failed(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = err
	if !errors.Is(err, xds.ErrRejected) {
		a.rejectedLast = nil
	}
	a.metrics.failed.Inc()
	a.config.Log.Error("the definitions cannot be served; those before stay", "error", err)
}

// StartedWithout is told why the definitions to start with are not the newest ones. Who follows those says so again to
// Failed, where it is counted.
func (a *Applier) StartedWithout(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = err
	if a.newest == nil {
		a.config.Log.Warn("waiting for definitions: there are none to be had", "error", err)
		return
	}
	a.config.Log.Warn("starting with the definitions that were last proven; the newest cannot be served", "error", err)
}

// Again has the Envoys try once more what they have rejected last: what was in the way may lie outside of the
// definitions, such as a port that was taken.
func (a *Applier) Again(ctx context.Context) {
	rejected := a.config.Control.Status().Rejected
	a.mu.Lock()
	again := a.rejectedLast
	a.mu.Unlock()
	switch {
	case again != nil: // those before are served meanwhile
		a.config.Control.Retry(again.version)
		a.Changed(ctx, again.definitions)
	case rejected != nil: // there were none before
		a.config.Control.Retry(rejected.Version)
	}
}
