package xds

import (
	"fmt"
	"time"
)

// Peer is an Envoy at the other end of a stream. An Envoy that comes back is another Peer.
type Peer struct {
	// ID is that of the stream.
	ID int64
	// Node is the id in its bootstrap; empty until it has sent its first request.
	Node string
	// Address is the address that its stream comes from.
	Address string
	// Trusted: it is connected by a Unix socket or a client certificate, so that no stranger can be in its place.
	Trusted bool
	// Host is the host of its listener, if it is trusted and its bootstrap names one.
	Host string
	// EnvoyVersion is the version of Envoy, such as 1.40.0; empty if it has not sent one.
	EnvoyVersion string
	Connected    time.Time
}

func (p Peer) isTrusted() bool { return p.Trusted }

// Event is something that happened to the delivery of a configuration: one of the types below.
type Event interface{ isEvent() }

type (
	// Connected is an Envoy that has opened a stream. It is reported again when its first request has named it.
	Connected struct{ Peer Peer }
	// Disconnected is the end of a stream.
	Disconnected struct{ ID int64 }
	// PartAcked is an ACK of one update of one type.
	PartAcked struct{ ID int64 }
	// Acked is reported when an Envoy has acknowledged every type of a version.
	Acked struct {
		ID      int64
		Version string
		At      time.Time
	}
	// Delivered is reported when every Envoy that a change waits for, and at least one, has acknowledged a version in
	// full.
	Delivered struct{ Version string }
	// Nacked is a NACK.
	Nacked struct {
		ID        int64
		Rejection *Rejection
	}
)

func (Connected) isEvent()    {}
func (Disconnected) isEvent() {}
func (PartAcked) isEvent()    {}
func (Acked) isEvent()        {}
func (Delivered) isEvent()    {}
func (Nacked) isEvent()       {}

// Rejection is what an Envoy has rejected, and why.
type Rejection struct {
	Version string    // the snapshot's version; empty if it is not the one that is being delivered
	Type    string    // the type of resource: listener, route or cluster
	Node    string    // which Envoy
	Reason  string    // in Envoy's words
	At      time.Time // when
}

func (r *Rejection) Error() string {
	return fmt.Sprintf("rejected by Envoy: version %s: %s: %s", r.Version, r.Type, r.Reason)
}

// Voters returns those of the connected Envoys whose ACKs and NACKs count for the others: the trusted ones or, if there
// are none, all. On a listener for plain TCP nobody is trusted, so there all peers count the same.
func Voters[E interface{ isTrusted() bool }](envoys map[int64]E) []E {
	var all, trusted []E
	for _, e := range envoys {
		all = append(all, e)
		if e.isTrusted() {
			trusted = append(trusted, e)
		}
	}
	if len(trusted) == 0 {
		return all
	}
	return trusted
}
