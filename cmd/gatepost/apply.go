package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/definitions"
	"gatepost/envoy"
	gatewayv1 "gatepost/proto/gatepost/v1"
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
	proven *applied // what every Envoy last had in full; nil: nothing yet
	failed error    // why the newest file is not what is published; nil where it is
}

// applied is definitions with what is made of them.
type applied struct {
	definitions *definitions.Definitions
	version     string
	login       *endpoint.Settings
}

func newApplier(side *sidecar, lastGood definitions.LastGood) *applier {
	return &applier{side: side, lastGood: lastGood}
}

// Apply publishes definitions. An error leaves everything as it is.
func (a *applier) Apply(d *definitions.Definitions) error {
	login, err := endpoint.SettingsFrom(d.Gateway.GetTokens())
	if err != nil {
		return fmt.Errorf("reading the token settings of %s: %w", d.Name, err)
	}
	snapshot, err := xds.Build(d.Gateway, xds.Options{GRPCCluster: envoy.ClusterGRPC, HTTPCluster: envoy.ClusterHTTP, CAFile: a.side.settings.caFile})
	if err != nil {
		return fmt.Errorf("building Envoy's configuration from %s: %w", d.Name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.side.control.Publish(snapshot); err != nil {
		return err
	}
	a.newest, a.failed = &applied{d, snapshot.Version, login}, nil
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
}

// Changed is told of new definitions by the watcher.
func (a *applier) Changed(_ context.Context, d *definitions.Definitions) {
	if err := a.Apply(d); err != nil {
		a.Failed(err)
	}
}

// Failed is told why new definitions are not served. What was served before stays.
func (a *applier) Failed(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = err
	a.side.metrics.definitionsFailed.Inc()
	a.side.logger.Error("the definitions cannot be served; those before stay", "error", err)
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

// Follow hears what the Envoys make of what is published, until ctx ends.
func (a *applier) Follow(ctx context.Context) {
	for {
		changed := a.side.control.Changed()
		a.settle(a.side.control.Status())
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// settle keeps the newest definitions where they are proven, and goes back to the proven ones where the control
// plane has: the token handler obeys what Envoy serves.
func (a *applier) settle(status xds.Status) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.newest == nil || a.newest == a.proven:
	case status.Proven == a.newest.version:
		a.proven = a.newest
		if err := a.lastGood.Save(a.newest.definitions); err != nil {
			a.side.logger.Error("keeping the proven definitions", "error", err)
		}
	case a.proven != nil && status.Rejected != nil && status.Rejected.Version == a.newest.version:
		a.newest, a.failed = a.proven, status.Rejected
		a.obey(a.proven)
	}
}

// Status tells what is served, for operators.
func (a *applier) Status() *gatewayv1.Status {
	now := a.side.control.Status()
	status := &gatewayv1.Status{Version: now.Version, Published: stamp(now.Published), Rejected: a.rejected(now)}
	a.mu.Lock()
	if a.newest != nil {
		status.Source = a.newest.definitions.Name
	}
	a.mu.Unlock()
	for _, one := range now.Envoys {
		shown := &gatewayv1.EnvoyStatus{
			Node: one.Node, Address: one.Address, Acked: one.Acked, AckedAt: stamp(one.AckedAt),
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
