package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/definitions"
	"gatepost/definitions/revisions"
	"gatepost/envoy"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/proven"
	"gatepost/tokens/cache"
	"gatepost/tokens/endpoint"
	"gatepost/xds"
)

// applier takes definitions to where they are obeyed: to the Envoys by xds, to the token handler and the cache by
// their settings. What the Envoys reject is taken back there too, and what they have all taken is kept.
type applier struct {
	side     *sidecar
	lastGood definitions.LastGood

	mu     sync.Mutex
	newest *applied // what was last published
	// published is the newest, and those to which the control plane may go back. :: version → what it was made of
	published map[string]*applied
	proven    *applied // what every Envoy was last seen to serve; nil: nothing yet
	failed    error    // why the newest file is not what is published; nil where it is
	// rejectedLast is what the Envoys have rejected and would be served had they not; nil: nothing.
	rejectedLast *applied
}

// applied is definitions with what is made of them.
type applied struct {
	definitions *definitions.Definitions
	snapshot    *xds.Snapshot
	version     string
	login       *endpoint.Settings
	saved       time.Time // when they were written; zero: before this gateway began
	withheld    []string  // the services that are served without their upstreams
}

func newApplier(side *sidecar, lastGood definitions.LastGood) *applier {
	return &applier{side: side, lastGood: lastGood, published: map[string]*applied{}}
}

// Apply publishes definitions that were saved at a time, for the measuring. An error leaves everything as it is.
func (a *applier) Apply(d *definitions.Definitions, saved time.Time) error {
	next, err := a.build(d, saved)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.publish(next)
}

// build makes of definitions what is published of them, with some services withheld.
func (a *applier) build(d *definitions.Definitions, saved time.Time, withheld ...string) (*applied, error) {
	login, err := endpoint.SettingsFrom(d.Gateway.GetTokens())
	if err != nil {
		return nil, fmt.Errorf("reading the token settings of %s: %w", d.Name, err)
	}
	snapshot, err := xds.Build(d.Gateway, xds.Options{
		GRPCCluster: envoy.ClusterGRPC, HTTPCluster: envoy.ClusterHTTP, CAFile: a.side.settings.caFile, Withheld: withheld,
	})
	if err != nil {
		return nil, fmt.Errorf("building Envoy's configuration from %s: %w", d.Name, err)
	}
	return &applied{d, snapshot, snapshot.Version, login, saved, withheld}, nil
}

// publish hands what was built to the Envoys. It is called with mu held.
func (a *applier) publish(next *applied) error {
	if err := a.side.control.Publish(next.snapshot); err != nil {
		if errors.Is(err, xds.ErrRejected) {
			a.rejectedLast = next
		}
		return err
	}
	a.newest, a.failed, a.rejectedLast = next, nil, nil
	a.published[next.version] = next
	a.obey(a.newest)
	return nil
}

// obey gives the parts of Gatepost itself what the definitions say. It is called with mu held.
func (a *applier) obey(now *applied) {
	a.side.login.Store(now.login)
	revocation := cache.Proven
	if now.definitions.Gateway.GetTokens().GetRevocation() == "prompt" {
		revocation = cache.Prompt
	}
	a.side.store.SetRevocation(revocation)
	// Envoy is not configured with the time: each decision says it of itself, so it holds from the next one on, and
	// what was allowed before is waited for.
	a.side.store.SetEnvoyLease(envoyLease(now.definitions.Gateway.GetTokens().GetLease().AsDuration()))
}

// Changed is told of new definitions by the watcher.
func (a *applier) Changed(_ context.Context, d *definitions.Definitions) {
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
func (a *applier) Failed(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = err
	if !errors.Is(err, xds.ErrRejected) {
		a.rejectedLast = nil
	}
	a.side.metrics.definitionsFailed.Inc()
	a.side.logger.Error("the definitions cannot be served; those before stay", "error", err)
}

// StartedWithout is told why the definitions to start with are not the newest ones. Who follows those says so again to
// Failed, where it is counted.
func (a *applier) StartedWithout(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = err
	if a.newest == nil {
		a.side.logger.Warn("waiting for definitions: there are none to be had", "config", a.side.settings.config, "error", err)
		return
	}
	a.side.logger.Warn("starting with the definitions that were last proven; the newest cannot be served", "config", a.side.settings.config, "error", err)
}

// Again has the Envoys try once more what they have rejected last: what was in the way may lie outside of the
// definitions, such as a port that was taken.
func (a *applier) Again(ctx context.Context) {
	rejected := a.side.control.Status().Rejected
	a.mu.Lock()
	again := a.rejectedLast
	a.mu.Unlock()
	switch {
	case again != nil: // those before are served meanwhile
		a.side.control.Retry(again.version)
		a.Changed(ctx, again.definitions)
	case rejected != nil: // there were none before
		a.side.control.Retry(rejected.Version)
	}
}

// Loaded returns nil where definitions are being served.
func (a *applier) Loaded(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.newest == nil {
		return errors.New("no definitions were read yet")
	}
	return nil
}

// Acked returns nil where an Envoy that is connected has acknowledged a configuration in full.
func (a *applier) Acked(context.Context) error {
	for _, one := range a.side.control.Status().Envoys {
		if one.Acked != "" {
			return nil
		}
	}
	return errors.New("no connected Envoy has acknowledged a configuration yet")
}

// Listen is where Envoys take requests, by the newest definitions.
func (a *applier) Listen() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.newest == nil {
		return ""
	}
	return a.newest.definitions.Gateway.GetListen()
}

// Follow hears what the Envoys make of what is published, until ctx ends.
func (a *applier) Follow(ctx context.Context) {
	for {
		changed := a.side.prover.Changed()
		a.settle()
		a.fallBack()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// settle keeps the newest definitions where they are applied, and goes back to those before where the control
// plane has: the token handler obeys what Envoy serves.
func (a *applier) settle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	status := a.side.prover.Status()
	switch {
	case a.newest == nil || a.newest == a.proven:
	case status.Version == a.newest.version && status.Applied():
		a.proven = a.newest
		a.tellApplied(status)
		if err := a.lastGood.Save(a.newest.definitions); err != nil {
			a.side.logger.Error("keeping the proven definitions", "error", err)
		}
	case status.Rejected != nil && status.Rejected.Version == a.newest.version && status.Version != a.newest.version:
		before := a.published[status.Version]
		if before == nil {
			break // the control plane is already further than this
		}
		rejected := a.newest
		a.newest, a.rejectedLast, a.failed = before, rejected, status.Rejected
		a.obey(a.newest)
		a.withhold(rejected, before.definitions, status.Rejected)
	}
	maps.DeleteFunc(a.published, func(version string, one *applied) bool {
		return one != a.newest && version != status.Proven
	})
}

// fallBack serves what was proven before this gateway began, where an Envoy has rejected what it began with and nothing
// was proven since.
func (a *applier) fallBack() {
	a.mu.Lock()
	defer a.mu.Unlock()
	status, rejected := a.side.prover.Status(), a.newest
	if rejected == nil || a.proven != nil || status.Rejected == nil || status.Rejected.Version != rejected.version {
		return
	}
	kept, err := a.lastGood.Load()
	if err == nil && !sameSource(kept.Name, rejected.definitions.Name) {
		kept = nil
	}
	if a.withhold(rejected, kept, status.Rejected) || kept == nil || kept.Hash() == rejected.definitions.Hash() {
		return
	}
	next, err := a.build(kept, time.Time{})
	if err == nil {
		err = a.publish(next)
	}
	if err != nil {
		a.side.logger.Error("the definitions that were last proven cannot be served", "source", kept.Name, "error", err)
		return
	}
	a.failed, a.rejectedLast = status.Rejected, rejected
	a.side.logger.Warn("serving the definitions that were last proven", "source", kept.Name, "error", status.Rejected)
}

// sameSource says whether definitions of two names come from the same place: one file, or Redis.
func sameSource(one, other string) bool {
	_, redis := revisions.Number(one)
	_, alsoRedis := revisions.Number(other)
	return one == other || redis && alsoRedis
}

// tellApplied says that the newest definitions are what clients get, and how long it took. It is called with mu held.
func (a *applier) tellApplied(status proven.Status) {
	said := []any{"version", a.newest.version, "envoys", len(status.Envoys), "answered", status.Answered()}
	if !a.newest.saved.IsZero() {
		took := time.Since(a.newest.saved)
		a.side.metrics.definitionsApplied.Observe(took.Seconds())
		said = append(said, "milliseconds", took.Milliseconds())
	}
	a.side.logger.Info("applied", said...)
}

// Status tells what is served, for operators.
func (a *applier) Status() *gatewayv1.Status {
	now := a.side.prover.Status()
	status := &gatewayv1.Status{Version: now.Version, Published: stamp(now.Published), Rejected: a.rejected(now.Status)}
	a.mu.Lock()
	if a.newest != nil {
		status.Source = a.newest.definitions.Name
	}
	a.mu.Unlock()
	for i, one := range now.Envoys {
		shown := &gatewayv1.EnvoyStatus{
			Node: one.Node, Address: one.Address, Acked: one.Acked, AckedAt: stamp(one.AckedAt),
			Proven: now.Answers[i].Proven, Serving: now.Answers[i].Serving, Doubt: now.Answers[i].Doubt,
		}
		if one.Nack != nil {
			shown.Nack, shown.NackType, shown.NackedAt = one.Nack.Reason, one.Nack.Type, stamp(one.Nack.At)
		}
		status.Envoys = append(status.Envoys, shown)
	}
	return status
}

// rejected says why the newest definitions are not the ones that are served; empty where they are.
func (a *applier) rejected(now xds.Status) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.failed != nil:
		return a.failed.Error()
	case now.Rejected != nil:
		return now.Rejected.Error()
	}
	return ""
}

// stamp is nil for a time that never was.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// firstDefinitions reads the definitions to start with: the file, or where it is bad or gone what was last proven
// of it. Nothing that was served before a restart is lost by a mistake in the file.
func firstDefinitions(path string, lastGood definitions.LastGood) (first *definitions.Definitions, wrong error, err error) {
	read, wrong := definitions.Load(path)
	if wrong == nil {
		return read, nil, nil
	}
	kept, keptErr := lastGood.Load()
	if keptErr == nil && kept.Name == path {
		return kept, wrong, nil
	}
	if keptErr != nil && !errors.Is(keptErr, fs.ErrNotExist) {
		wrong = errors.Join(wrong, keptErr)
	}
	return nil, nil, fmt.Errorf("reading the definitions:\n%w", wrong)
}
