package rollout

import (
	"slices"
	"time"

	"gatepost/xds"
)

// envoyState is what the machine knows of a connected Envoy.
type envoyState struct {
	xds.Peer
	acked     string // the version that it last acknowledged in full; empty: none on this stream
	ackedAt   time.Time
	ackedPart bool             // it has acknowledged something
	nack      *xds.Rejection   // the last one since then
	lastNack  *xds.Rejection   // the last one, also if it was overcome; for the status alone
	rejected  []*xds.Rejection // those that counted

	asked   string // the version that it was last asked for
	serving string // the version that it last answered with; empty: none
	doubt   error  // why the last question had no answer, or another than expected; nil: it had
	silent  bool   // it was asked for long enough without an answer. One answer ends that.
}

// active reports whether an Envoy has ever acknowledged a whole version on this stream. Every client of --grpc can send
// a NACK or nothing at all, so what such a stream does concerns the others only if it has served something.
func (e *envoyState) active() bool { return e.acked != "" }

func (e *envoyState) isVerified() bool { return e.active() && e.serving == e.acked }

func (m *machine) connect(p xds.Peer) {
	if known := m.envoys[p.ID]; known != nil {
		known.Peer = p
		return
	}
	m.envoys[p.ID] = &envoyState{Peer: p}
}

// disconnect forgets an Envoy, and what it has rejected if it never was active: another may take it.
func (m *machine) disconnect(id int64) {
	e := m.envoys[id]
	delete(m.envoys, id)
	if e == nil || e.active() {
		return
	}
	for _, r := range e.rejected {
		if m.rejected[r.Version] == r {
			delete(m.rejected, r.Version)
		}
	}
}

func (m *machine) answer(a answered) {
	e := m.envoys[a.id]
	if e == nil {
		return
	}
	e.asked, e.doubt = a.asked, a.err
	if a.err != nil {
		e.silent = e.silent || a.overdue
		return
	}
	e.serving, e.silent = a.serving, false
	if a.serving != a.asked {
		e.doubt = differs{a.address, a.serving}
	}
}

// differs is the doubt about an Envoy that answers with another version than it has acknowledged.
type differs struct{ address, serving string }

func (d differs) Error() string { return d.address + " answers with version " + d.serving }

// mayReject reports whether the rejection of a version by this Envoy is one for all: if it was active before, or if
// no other is active and none that replies has taken any of it.
func (m *machine) mayReject(e *envoyState, version string) bool {
	voters := xds.Voters(m.envoys)
	if !slices.Contains(voters, e) {
		return false
	}
	return e.active() || !slices.ContainsFunc(voters, func(other *envoyState) bool {
		return other != e && (other.active() || other.ackedPart && (other.nack == nil || other.nack.Version != version))
	})
}

// mostRejected bounds what is remembered: definitions that change all the time must not fill the memory.
const mostRejected = 256

// remember has a version not sent again. The oldest rejection of too many is forgotten.
func (m *machine) remember(e *envoyState, r *xds.Rejection) {
	m.rejected[r.Version] = r
	if len(m.rejected) > mostRejected {
		oldest := r
		for _, other := range m.rejected {
			if other.At.Before(oldest.At) {
				oldest = other
			}
		}
		delete(m.rejected, oldest.Version)
	}
	e.rejected = slices.DeleteFunc(append(e.rejected, r), func(one *xds.Rejection) bool { return m.rejected[one.Version] != one })
}
