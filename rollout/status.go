package rollout

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/xds"
)

// form is how a published version differs from the newest definitions.
type form int

const (
	asDefined form = iota // as the newest definitions that could be read
	inPart                // some services are withheld, or served as in earlier definitions
	fellBack              // the newest definitions were rejected, and older ones are served
)

// Status is what is published, and what each connected Envoy makes of it. `gatepost status`, readiness, metrics and the
// reports to other gateways read it.
type Status struct {
	// State is that of the version that is published.
	State State
	// Version is the version that is published, and Published since when. Empty: none yet. Envoys may still serve another.
	Version   string
	Published time.Time
	// Active is the version that last became active. Empty: none since the start.
	Active string
	// Definitions, Snapshot and Listen are what it is made of, what is sent to Envoy, and where Envoys take requests.
	Definitions *definitions.Definitions
	Snapshot    *xds.Snapshot
	Listen      netip.AddrPort
	// Failure is why the newest definitions are not served as they are; nil if they are.
	Failure error
	// Withheld are the services that answer 503, Former those that are served as in earlier definitions.
	Withheld, Former []string
	// Module is how Envoy checks tokens.
	Module Module
	// Envoys are those that are connected, sorted by node and address.
	Envoys []Envoy
}

// Module is how Envoy checks tokens: by the files of xds.Module, or not by itself for a reason.
type Module struct {
	xds.Module
	Reason string
}

// Envoy is one connected Envoy.
type Envoy struct {
	xds.Peer
	// Acked is the version that it last acknowledged in full, every type of it, and AckedAt when. Empty: none.
	Acked   string
	AckedAt time.Time
	// Nack is its last rejection since then; nil: none.
	Nack *xds.Rejection
	// LastNack is its last rejection, also if it was overcome; nil: none. It decides nothing.
	LastNack *xds.Rejection
	// Serving is the version with which it last answered. Empty: it has not.
	Serving string
	// Verified: that is the version that it has acknowledged.
	Verified bool
	// Doubt is why an acknowledged version is not verified; empty if it is, or if the question is still open.
	Doubt string
	// Counts: it has acknowledged a version, and it is trusted, or no trusted Envoy is connected and it has answered.
	// Every client of --grpc can send an acknowledgement, and can answer at their own address.
	Counts bool

	waitedFor bool // it has yet to answer
	silent    bool // it has not answered for so long that it is not waited for
}

// status returns how things stand.
func (m *machine) status() Status {
	s := Status{State: m.state, Published: m.published, Failure: m.failure, Module: Module{Reason: m.withoutModule}}
	if m.withoutModule == "" {
		s.Module.Module = m.module
	}
	if v := m.target; v != nil {
		s.Version, s.Definitions, s.Snapshot, s.Listen, s.Withheld, s.Former = v.id(), v.definitions, v.snapshot, v.listen, v.withheld, v.former
	}
	if m.active != nil {
		s.Active = m.active.id()
	}
	withTrusted := false
	for _, e := range m.envoys {
		withTrusted = withTrusted || e.Trusted
	}
	for _, e := range m.envoys {
		one := Envoy{
			Peer: e.Peer, Acked: e.acked, AckedAt: e.ackedAt, Nack: e.nack, LastNack: e.lastNack, Serving: e.serving, Verified: e.isVerified(),
			Counts: e.active() && (e.Trusted || !withTrusted && e.serving != ""),
		}
		if !one.Verified && e.asked == e.acked && e.doubt != nil {
			one.Doubt = e.doubt.Error()
		}
		one.waitedFor, one.silent = !one.Verified && !e.silent, e.silent
		s.Envoys = append(s.Envoys, one)
	}
	slices.SortFunc(s.Envoys, func(a, b Envoy) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Address, b.Address), cmp.Compare(a.ID, b.ID))
	})
	return s
}

func (s Status) form() form {
	rejection := s.Rejection()
	switch {
	case len(s.Withheld)+len(s.Former) > 0:
		return inPart
	case rejection != nil && rejection.Version != s.Version:
		return fellBack
	}
	return asDefined
}

// Rejection returns the rejection by an Envoy that is the cause of Failure; nil if that has another cause.
func (s Status) Rejection() *xds.Rejection {
	var rejection *xds.Rejection
	errors.As(s.Failure, &rejection)
	return rejection
}

// Loaded returns nil if definitions are being served.
func (s Status) Loaded() error {
	if s.Version == "" {
		return errors.New("no definitions were read yet")
	}
	return nil
}

// Missing returns nil if an Envoy that counts is connected, else what is missing.
func (s Status) Missing() error {
	missing := errNoEnvoy
	for _, e := range s.Envoys {
		switch {
		case e.Counts:
			return nil
		case e.Nack != nil:
			missing = fmt.Errorf("the Envoy %s has rejected version %s: %s: %s", e.Node, e.Nack.Version, e.Nack.Type, e.Nack.Reason)
		case e.Acked != "" && e.Doubt != "":
			missing = fmt.Errorf("the Envoy %s has acknowledged a configuration, but that it serves it cannot be verified: %s; "+
				"let Gatepost reach its listener, or connect it by a Unix socket or with a client certificate", e.Node, e.Doubt)
		}
	}
	return missing
}

var errNoEnvoy = errors.New("no connected Envoy has acknowledged a configuration yet")

// Applied reports whether what is published is what every Envoy that counts serves, as far as each can be asked: all of
// them, and at least one, have acknowledged it in full, and none that can be asked answers with anything else.
func (s Status) Applied() bool {
	for _, e := range s.Envoys {
		if e.Counts && (e.Acked != s.Version || e.waitedFor) {
			return false
		}
	}
	return s.Version != "" && s.Missing() == nil
}

// Answered reports whether it is Applied, and every Envoy that counts has been asked and has answered with it.
func (s Status) Answered() bool {
	return s.Applied() && !slices.ContainsFunc(s.Envoys, func(e Envoy) bool { return e.Counts && !e.Verified })
}

// Degraded returns how what is served differs from the newest definitions, and why; empty if it does not.
func (s Status) Degraded() string {
	switch {
	case s.Failure == nil:
		return ""
	case s.form() == inPart:
		return "serving some services " + s.Failure.Error()
	case s.State == Rejected: // there is no other version
		return s.Failure.Error()
	}
	return "serving the previous version: " + s.Failure.Error()
}

// Pending returns what is waited for until the published version is applied; empty if that is not known.
func (s Status) Pending() string {
	if len(s.Envoys) == 0 {
		return "no Envoy is connected to it"
	}
	if err := s.Missing(); err != nil {
		return err.Error()
	}
	for _, e := range s.Envoys {
		switch {
		case !e.Counts:
		case e.Nack != nil:
			return fmt.Sprintf("Envoy %s has rejected version %s: %s: %s", e.Node, e.Nack.Version, e.Nack.Type, e.Nack.Reason)
		case e.Acked != s.Version:
			return fmt.Sprintf("Envoy %s has not acknowledged version %s yet", e.Node, s.Version)
		case !e.Verified && e.Doubt != "":
			return fmt.Sprintf("Envoy %s has acknowledged, but %s", e.Node, e.Doubt)
		}
	}
	return ""
}

// message returns the status as the admin API shows it.
func (s Status) message() *gatewayv1.Status {
	out := &gatewayv1.Status{
		Version: s.Version, Active: s.Active, Published: stamp(s.Published), Withheld: s.Withheld, Former: s.formerServices(),
		Module: &gatewayv1.ModuleStatus{Library: s.Module.Library, Table: s.Module.Table, Reason: s.Module.Reason},
	}
	if s.Definitions != nil {
		out.Source = s.Definitions.Name
	}
	if s.Failure != nil {
		out.Rejected = s.Failure.Error()
	}
	for _, e := range s.Envoys {
		one := &gatewayv1.EnvoyStatus{
			Node: e.Node, Address: e.Address, Acked: e.Acked, AckedAt: stamp(e.AckedAt), Proven: e.Verified, Serving: e.Serving, Doubt: e.Doubt,
		}
		if e.Nack != nil {
			one.Nack, one.NackType, one.NackedAt = e.Nack.Reason, e.Nack.Type, stamp(e.Nack.At)
		}
		if n := e.LastNack; n != nil {
			one.LastNack = &gatewayv1.Nack{Reason: n.Reason, Type: n.Type, Version: n.Version, At: stamp(n.At)}
		}
		out.Envoys = append(out.Envoys, one)
	}
	return out
}

// formerServices are the services that are served as in earlier definitions, in that form.
func (s Status) formerServices() []*gatewayv1.Service {
	if len(s.Former) == 0 {
		return nil
	}
	var former []*gatewayv1.Service
	for _, service := range s.Definitions.Gateway.Services {
		if slices.Contains(s.Former, service.Name) {
			former = append(former, service.Message())
		}
	}
	return former
}

// stamp is nil for a time that never was.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
