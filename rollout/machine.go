package rollout

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/xds"
)

// State is how far the version that is published has come.
type State int

// The states; the package comment draws them.
const (
	Idle      State = iota // nothing is published yet
	Published              // it is sent to the Envoys
	Acked                  // every Envoy that is waited for has acknowledged it
	Active                 // it is verified, and saved as the last good version
	Rejected               // an Envoy has rejected it, and no other version is known
)

func (s State) String() string {
	return [...]string{"idle", "published", "acked", "active", "rejected"}[s]
}

// The events, beside those of package xds.
type (
	// offered is a version of new definitions.
	offered struct{ version *version }
	// repaired is a version that takes the place of a rejected one.
	repaired struct{ version, of *version }
	// renewed is a version with other certificates that takes the place of one that is published.
	renewed struct{ version, of *version }
	// failure is why new definitions could not be read or built.
	failure struct{ err error }
	// startedDegraded is a failure before the gateway started.
	startedDegraded struct{ err error }
	// retried asks for another try of what was rejected.
	retried struct{}
	// answered is the reply of an Envoy that was asked which version it serves.
	answered struct {
		id      int64
		address string // where it was asked
		asked   string // the version that it had acknowledged then
		serving string // the version that it answered with
		err     error  // why it could not be asked
		overdue bool   // it was asked for long enough
	}
)

// action is something that the machine asks for: one of the types below.
type action any

type (
	// publish sends a version to the Envoys, and has Gatepost's own parts use its settings.
	publish struct{ version *version }
	// halt stops the delivery of a version.
	halt struct{ version string }
	// activate has Gatepost's own parts know that the Envoys serve a version, and saves its definitions as the last good
	// ones, unless it was the last active one already.
	activate struct {
		version  *version
		envoys   int
		answered bool // every Envoy that counts answered with it
		again    bool // it was the last active one already
	}
	// repair makes a version that can take the place of a rejected one. before are the definitions that were acked last;
	// nil: no version was acked since the start.
	repair struct {
		rejected *version
		before   *definitions.Definitions
		why      *xds.Rejection
	}
	// rebuild makes a version again, without the module.
	rebuild struct{ version *version }
	// offerAgain applies definitions again whose rejection is forgotten.
	offerAgain struct{ definitions *definitions.Definitions }
	// countFailure counts definitions that are not served as they are.
	countFailure struct{}
	// note writes a line to the log.
	note func(*slog.Logger)
)

// machine is the state of the rollout. It is pure: it changes by step alone, and what is to be done is returned.
type machine struct {
	module        xds.Module
	moduleVersion func(string) string
	withoutModule string // why Envoys do not check tokens by themselves; empty: they do

	target    *version // the version that is published; nil: none
	state     State    // of target
	published time.Time
	acked     *version // the last version that was acked; nil: none since the start
	active    *version // the last version that was active; nil: none since the start
	// known are the versions of which the Envoys may report something. :: id → version
	known map[string]*version
	// rejected holds what no Envoy is sent again. :: id → why
	rejected map[string]*xds.Rejection
	// failure is why the newest definitions are not served as they are; nil if they are.
	failure error
	// retry is the version that would be published if it had not been rejected; nil: none.
	retry *version
	// repairing is the version for which a repair or a rebuild is under way; nil: none.
	repairing *version
	envoys    map[int64]*envoyState // :: stream → the Envoy at its other end
}

func newMachine(c Config) machine {
	return machine{
		module: c.Options.Module, moduleVersion: c.ModuleVersion, withoutModule: c.WithoutModule,
		known: map[string]*version{}, rejected: map[string]*xds.Rejection{}, envoys: map[int64]*envoyState{},
	}
}

// step handles one event. An error is the answer to an offer that is not accepted.
func (m *machine) step(e any, now time.Time) (out []action, err error) {
	switch e := e.(type) {
	case offered:
		out, err = m.offer(e.version, now)
	case renewed:
		if e.of == m.target {
			out, err = m.offer(e.version, now)
		}
	case repaired:
		out, err = m.replace(e, now)
	case failure:
		out = m.fail(e.err)
	case startedDegraded:
		out = m.startDegraded(e.err)
	case retried:
		out = m.retryRejected(now)
	case answered:
		m.answer(e)
	case xds.Connected:
		m.connect(e.Peer)
	case xds.Disconnected:
		m.disconnect(e.ID)
	case xds.PartAcked:
		if one := m.envoys[e.ID]; one != nil {
			one.ackedPart = true
		}
	case xds.Acked:
		if one := m.envoys[e.ID]; one != nil {
			one.acked, one.ackedAt, one.nack = e.Version, e.At, nil
		}
	case xds.Delivered:
		m.deliver(e.Version)
	case xds.Nacked:
		out = m.nack(e, now)
	}
	return append(out, m.follow()...), err
}

// follow makes the transitions that follow from the state as a whole.
func (m *machine) follow() []action {
	var out []action
	if m.retry != nil && m.rejected[m.retry.id()] == nil {
		out = append(out, m.forgotten()...)
	}
	out = append(out, m.checkModule()...)
	if m.state == Acked && m.status().Applied() {
		m.state = Active
		status := m.status()
		out = append(out, activate{m.target, len(status.Envoys), status.Answered(), m.active == m.target})
		m.active = m.target
	}
	return out
}

// offer publishes a version of new definitions, unless it is known to be rejected.
func (m *machine) offer(v *version, now time.Time) ([]action, error) {
	if why := m.rejected[v.id()]; why != nil {
		m.retry = v
		return nil, fmt.Errorf("publishing: %w", why)
	}
	return m.publish(v, now), nil
}

// publish makes a version the target. If the Envoys have the same version already, they need not acknowledge it again.
func (m *machine) publish(v *version, now time.Time) []action {
	isSame := m.isTarget(v) && m.state != Rejected
	if !isSame {
		m.published, m.state = now, Published
	} else if m.acked != nil && m.acked.id() == v.id() {
		m.acked, m.state = v, Acked
	}
	m.target, m.failure, m.retry, m.repairing = v, v.failure, v.instead, nil
	m.known[v.id()] = v
	m.forgetOld()
	return []action{publish{v}}
}

// forgetOld forgets the versions that are neither published nor can be fallen back to.
func (m *machine) forgetOld() {
	maps.DeleteFunc(m.known, func(_ string, v *version) bool { return v != m.target && v != m.acked })
}

// isTarget reports whether a version is the one that is published.
func (m *machine) isTarget(v *version) bool { return m.target != nil && m.target.id() == v.id() }

// replace publishes a version in place of a rejected one, unless other definitions were published since.
func (m *machine) replace(e repaired, now time.Time) ([]action, error) {
	if e.of != m.repairing {
		return nil, nil
	}
	if why := m.rejected[e.version.id()]; why != nil {
		return nil, why
	}
	return m.publish(e.version, now), nil
}

func (m *machine) fail(err error) []action {
	m.failure = err
	if rejection := (*xds.Rejection)(nil); !errors.As(err, &rejection) {
		m.retry = nil
	}
	return []action{countFailure{}, note(func(l *slog.Logger) {
		l.Error("the definitions cannot be served; those before stay", "error", err, convention.EventDefinitionsRejected.Attr())
	})}
}

func (m *machine) startDegraded(err error) []action {
	m.failure = err
	isWaiting := m.target == nil
	return []action{note(func(l *slog.Logger) {
		if isWaiting {
			l.Warn("waiting for definitions: there are none to be had", "error", err)
			return
		}
		l.Warn("starting with the last good definitions; the newest cannot be served", "error", err)
	})}
}

// retryRejected forgets the rejection of the version that would be published without it.
func (m *machine) retryRejected(now time.Time) []action {
	if m.retry == nil {
		return nil
	}
	delete(m.rejected, m.retry.id())
	if m.isTarget(m.retry) {
		return m.publish(m.retry, now)
	}
	return nil // follow offers it again
}

// forgotten follows from a rejection that is not remembered any more.
func (m *machine) forgotten() []action {
	again := m.retry
	m.retry = nil
	if m.isTarget(again) { // it is published still, and the next Envoy may take it
		m.failure, m.state = nil, Published
		return nil
	}
	return []action{offerAgain{again.definitions}}
}

// deliver makes a version acked.
func (m *machine) deliver(id string) {
	v := m.known[id]
	if v == nil {
		return // other versions were published since
	}
	m.acked = v
	delete(m.rejected, id) // the cause is gone
	if v == m.target {
		m.state = Acked
		if m.retry != nil && m.isTarget(m.retry) {
			m.failure, m.retry = nil, nil
		}
	}
	m.forgetOld()
}

// nack records a rejection. If it counts, the version is not sent again, and if it is the target, another takes its
// place.
func (m *machine) nack(e xds.Nacked, now time.Time) []action {
	one, why := m.envoys[e.ID], e.Rejection
	if one == nil {
		return nil
	}
	one.nack, one.lastNack = why, why
	if why.Version == "" || m.acked != nil && m.acked.id() == why.Version {
		return nil // superseded, or the best that there is
	}
	if !m.mayReject(one, why.Version) {
		return []action{note(func(l *slog.Logger) {
			l.Warn("the rejection by this Envoy does not count", "node", why.Node, "version", why.Version)
		})}
	}
	m.remember(one, why)
	if m.target == nil || m.target.id() != why.Version {
		return nil
	}
	return m.reject(why, now)
}

// reject falls back from the target, and asks for a version that can take its place.
func (m *machine) reject(why *xds.Rejection, now time.Time) []action {
	rejected := m.target
	out := []action{halt{rejected.id()}}
	var before *definitions.Definitions
	if m.acked == nil {
		m.state = Rejected // until a repair is published
	} else {
		before = m.acked.definitions
		good := m.acked
		out = append([]action{note(func(l *slog.Logger) {
			l.Warn("publishing the last good configuration again", "version", good.id())
		})}, m.publish(good, now)...)
	}
	m.failure, m.retry, m.repairing = why, rejected.original(), rejected
	if rejected.hasModule && m.module.Refused(why) {
		return append(out, m.dropModule(rejected, "Envoy refuses it: "+why.Reason)...)
	}
	return append(out, repair{rejected, before, why})
}

// checkModule drops the module if an Envoy is connected that must not use it.
func (m *machine) checkModule() []action {
	if m.moduleVersion == nil || m.target == nil || m.withoutModule != "" {
		return nil
	}
	for _, e := range m.envoys {
		if e.EnvoyVersion == "" || !e.Trusted {
			continue
		}
		if why := m.moduleVersion(e.EnvoyVersion); why != "" {
			return m.dropModule(m.target, why)
		}
	}
	return nil
}

// dropModule has a version published without the module, as all later ones are: Envoy asks about each request.
func (m *machine) dropModule(of *version, why string) []action {
	m.repairing = of
	if m.withoutModule != "" {
		return []action{rebuild{of}} // it was built before the module was dropped
	}
	m.withoutModule = why
	return []action{rebuild{of}, note(func(l *slog.Logger) {
		l.Error(convention.MessageWithoutModule, "reason", why)
	})}
}
