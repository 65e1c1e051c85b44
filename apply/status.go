package apply

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/proven"
	"gatepost/xds"
)

// Loaded returns nil where definitions are being served.
func (a *Applier) Loaded(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.newest == nil {
		return errors.New("no definitions were read yet")
	}
	return nil
}

// Degraded returns how what is served differs from the newest definitions, and why; empty if it does not.
func (a *Applier) Degraded() string {
	status := a.prover.Status()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.failed == nil && status.Rejected == nil:
		return ""
	case a.failed == nil:
		return status.Rejected.Error()
	case a.newest != nil && len(a.newest.withheld)+len(a.newest.former) > 0:
		return "serving some services " + a.failed.Error()
	}
	return "serving the previous version: " + a.failed.Error()
}

// withheldServices counts the services that are served without their upstreams.
func (a *Applier) withheldServices() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.newest == nil {
		return 0
	}
	return len(a.newest.withheld)
}

// isCurrent reports whether the newest definitions are served, all of them.
func (a *Applier) isCurrent() bool {
	return a.Loaded(context.Background()) == nil && a.Degraded() == ""
}

// Acked returns nil if an Envoy that counts has acknowledged a configuration in full.
func (a *Applier) Acked(context.Context) error { return a.prover.Status().Missing() }

// Snapshot returns the Envoy configuration that was last published; nil if none was.
func (a *Applier) Snapshot() *xds.Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.newest == nil {
		return nil
	}
	return a.newest.snapshot
}

// listen is where Envoys take requests, by the newest definitions.
func (a *Applier) listen() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.newest == nil {
		return ""
	}
	return a.config.Options.ListenAddress(a.newest.definitions.Gateway).String()
}

// Serving tells what was last published, how far the Envoys have proven it, and why newer definitions were rejected
// where they were.
func (a *Applier) Serving() (serving *definitions.Definitions, now proven.Status, isApplied bool, rejected error) {
	now = a.prover.Status()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case errors.Is(a.failed, xds.ErrRejected):
		rejected = a.failed
	case now.Rejected != nil:
		rejected = now.Rejected
	}
	if a.newest == nil {
		return nil, now, false, rejected
	}
	return a.newest.definitions, now, now.Version == a.newest.version && now.Applied(), rejected
}

// Moved returns a channel that is closed at the next change of what Serving and Status tell of the Envoys.
func (a *Applier) Moved() <-chan struct{} { return a.prover.Changed() }

// Status tells what is served, for operators.
func (a *Applier) Status() *gatewayv1.Status {
	now := a.prover.Status()
	status := &gatewayv1.Status{Version: now.Version, Published: stamp(now.Published), Rejected: a.rejected(now.Status), Module: a.moduleStatus()}
	a.mu.Lock()
	if a.newest != nil {
		status.Source = a.newest.definitions.Name
	}
	if serving := a.published[now.Version]; serving != nil {
		status.Withheld, status.Former = serving.withheld, serving.formerServices()
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

// formerServices are the services that are served in the form that they had before, in that form.
func (a *applied) formerServices() []*gatewayv1.Service {
	var former []*gatewayv1.Service
	for _, s := range a.definitions.Gateway.Services {
		if slices.Contains(a.former, s.Name) {
			former = append(former, s.Message())
		}
	}
	return former
}

// rejected says why the newest definitions are not the ones that are served; empty where they are.
func (a *Applier) rejected(now xds.Status) string {
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
