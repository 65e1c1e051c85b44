package xds

import (
	"cmp"
	"slices"
	"time"
)

// Status is what is being served, and what each connected Envoy has made of it.
type Status struct {
	// Version is the version that is being served, and Published since when. Empty: nothing yet.
	Version   string
	Published time.Time
	// Proven is the version that every Envoy that a change waits for last had in full. Empty: none yet.
	Proven string
	// Rejected is why the newest definitions are not the ones that are served; nil where they are.
	Rejected *Rejection
	// Envoys are those that are connected, sorted by node and address.
	Envoys []EnvoyStatus
}

// EnvoyStatus is one connected Envoy.
type EnvoyStatus struct {
	// Node is the id in its bootstrap, Address where its stream comes from, Connected since when.
	Node    string
	Address string
	// Trusted: it is connected by a Unix socket or a client certificate, so that no stranger can be in its place.
	Trusted bool
	// Host is the host of its listener, if it is trusted and its bootstrap names one.
	Host      string
	Connected time.Time
	// EnvoyVersion is its own, such as 1.40.0; empty if it has not said.
	EnvoyVersion string
	// Acked is the version that it last acknowledged in full, every type of it, and AckedAt when. Empty: none.
	Acked   string
	AckedAt time.Time
	// Nack is its last rejection since then; nil where there was none.
	Nack *Rejection
}

// Status tells how things stand. What it returns is the caller's.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Version: s.rollout.version(), Published: s.rollout.since, Rejected: s.refusal}
	if s.proven != nil {
		out.Proven = s.proven.Version
	}
	for _, e := range s.envoys {
		out.Envoys = append(out.Envoys, EnvoyStatus{
			Node: e.node, Address: e.address, Host: e.host, Trusted: e.trusted, EnvoyVersion: e.version, Connected: e.since,
			Acked: e.acked, AckedAt: e.ackedAt, Nack: e.nack,
		})
	}
	slices.SortFunc(out.Envoys, func(a, b EnvoyStatus) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Address, b.Address))
	})
	return out
}
