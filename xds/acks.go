package xds

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// typeNames are the types that Gatepost serves, as they are called in metrics and messages.
var typeNames = map[string]string{
	resourcev3.ListenerType:    "listener",
	resourcev3.ScopedRouteType: "route",
	resourcev3.ClusterType:     "cluster",
}

// envoy is one connected Envoy, as far as its stream tells. An Envoy that comes back is another one.
type envoy struct {
	node    string
	address string
	peer    string // address without the port; the same for all on Unix sockets
	trusted bool   // it is connected by a Unix socket or a client certificate
	host    string // the host of its listener, if it named one and is trusted
	version string // of Envoy
	since   time.Time
	types   map[string]*subscription // :: type → what it has of it

	acked   string // the version of the snapshot that it last acknowledged in full; "": never any
	ackedAt time.Time
	nack    *Rejection // the last one since then
	// rejected are the rejections that counted.
	rejected []*Rejection
	// lagging: it is not waited for, because it has not replied within Patience. An ACK of a whole version ends that.
	lagging bool
}

// active reports whether an Envoy has ever acknowledged a whole version on this stream. Whoever can connect can send
// a NACK or nothing at all, so what such a stream does concerns the others only if it has served something.
func (e *envoy) active() bool { return e.acked != "" }

// hasAckedPart reports whether it has acknowledged something on the way to a snapshot that it has not rejected.
func (e *envoy) hasAckedPart(of *Snapshot) bool {
	if e.nack != nil && e.nack.Version == of.Version {
		return false
	}
	for _, sub := range e.types {
		if sub.acked != "" {
			return true
		}
	}
	return false
}

// subscription is what one Envoy has of one type.
type subscription struct {
	began   bool            // its first request has come
	acked   string          // the version of the set that it has; "" where that is not known
	pending map[string]sent // :: nonce → what it was sent and has not answered yet
}

// sent is a response that waits for its answer.
type sent struct {
	version string    // of the set; "" where it is not the whole of it
	target  *Snapshot // what it was a step to; nil where that was over when it was sent
}

func (e *envoy) has(typeURL string, v view) bool {
	sub := e.types[typeURL]
	return sub != nil && sub.acked == v.of(typeURL).version
}

func (e *envoy) hasAll(v view) bool {
	for typeURL := range typeNames {
		if !e.has(typeURL, v) {
			return false
		}
	}
	return true
}

func (e *envoy) of(typeURL string) *subscription {
	sub := e.types[typeURL]
	if sub == nil {
		sub = &subscription{pending: map[string]sent{}}
		e.types[typeURL] = sub
	}
	return sub
}

// callbacks is how go-control-plane tells what goes over the streams. It calls these from each stream's own
// goroutine, never while it holds the cache's lock.
type callbacks struct{ s *Server }

func (c callbacks) OnDeltaStreamOpen(ctx context.Context, id int64, _ string) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.streamsOf(peerHost(ctx)) >= maxStreams {
		return status.Errorf(codes.ResourceExhausted, "this peer has %d streams already", maxStreams)
	}
	c.s.envoys[id] = &envoy{address: peerAddress(ctx), peer: peerHost(ctx), trusted: trustedPeer(ctx), since: time.Now(), types: map[string]*subscription{}}
	c.s.metrics.connected.Set(float64(len(c.s.envoys)))
	c.s.notify()
	return nil
}

// OnDeltaStreamClosed: those who are left may be all that were waited for.
func (c callbacks) OnDeltaStreamClosed(id int64, _ *corev3.Node) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	e := c.s.envoys[id]
	if e == nil {
		return
	}
	c.s.logged(e, func() { c.s.log.Info("an Envoy has disconnected", "node", e.node, "address", e.address) })
	delete(c.s.envoys, id)
	if !e.active() {
		c.s.forget(e)
	}
	c.s.metrics.connected.Set(float64(len(c.s.envoys)))
	c.s.notify()
	c.s.advance()
}

// maxPending bounds the responses of one type that a peer has not answered.
const maxPending = 64

// OnStreamDeltaResponse notes what is about to be sent, under the nonce by which it will be answered.
func (c callbacks) OnStreamDeltaResponse(id int64, _ *discoveryv3.DeltaDiscoveryRequest, resp *discoveryv3.DeltaDiscoveryResponse) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	e, r := c.s.envoys[id], &c.s.rollout
	name, known := typeNames[resp.GetTypeUrl()]
	if e == nil || !known {
		return
	}
	version, half := strings.CutSuffix(resp.GetSystemVersionInfo(), lessWhatGoes)
	out := sent{version: version}
	of := resp.GetTypeUrl() == resourcev3.ClusterType || r.phase == routesOut // else it is still the old one's
	if of && version == r.view.of(resp.GetTypeUrl()).version {
		out.target = r.target
	}
	if half {
		out.version = ""
	}
	pending := e.of(resp.GetTypeUrl()).pending
	if len(pending) >= maxPending { // no Envoy leaves so many unanswered; what it says of these later is ignored
		clear(pending)
	}
	pending[resp.GetNonce()] = out
	c.s.metrics.pushes.WithLabelValues(name).Inc()
}

// OnStreamDeltaRequest hears a subscription, an ACK or a NACK. (xDS protocol, "ACK/NACK and resource type
// instance version": a request with the nonce of a response answers it, and with an error it rejects it.)
func (c callbacks) OnStreamDeltaRequest(id int64, req *discoveryv3.DeltaDiscoveryRequest) error {
	if c.s.startsWithNames(req.GetTypeUrl(), req.GetResponseNonce(), req.GetInitialResourceVersions()) {
		c.s.pause(c.s.opts.Warmup) // of this stream alone
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	e := c.s.envoys[id]
	if e == nil {
		return nil
	}
	if e.node == "" && req.GetNode() != nil {
		e.node = bounded(req.GetNode().GetId(), maxNode)
		e.version = versionOf(req.GetNode())
		if e.trusted {
			e.host = hostOf(req.GetNode())
		}
		c.s.logged(e, func() { c.s.log.Info("an Envoy has connected", "node", e.node, "address", e.address) })
		c.s.notify()
	}
	if _, known := typeNames[req.GetTypeUrl()]; !known {
		return status.Error(codes.InvalidArgument, "Gatepost serves no resources of this type")
	}
	// Names to subscribe to would be kept for as long as the stream is open, however many they are.
	if slices.ContainsFunc(req.GetResourceNamesSubscribe(), func(name string) bool { return name != "*" }) {
		return status.Error(codes.InvalidArgument, "Gatepost serves all resources of a type: subscribe to *")
	}
	if req.GetResponseNonce() == "" {
		c.s.subscribed(e, req)
		return nil
	}
	sub := e.of(req.GetTypeUrl())
	answered, known := sub.pending[req.GetResponseNonce()]
	if !known {
		return nil
	}
	delete(sub.pending, req.GetResponseNonce())
	if req.GetErrorDetail() != nil {
		c.s.nacked(e, req, answered)
		return nil
	}
	sub.acked = answered.version
	c.s.metrics.acks.WithLabelValues(typeNames[req.GetTypeUrl()]).Inc()
	c.s.advance()
	return nil
}

// subscribed hears what an Envoy that comes back still has. Where that is what is being served, nothing is sent,
// and so nothing will be acknowledged.
func (s *Server) subscribed(e *envoy, req *discoveryv3.DeltaDiscoveryRequest) {
	has, sub := req.GetInitialResourceVersions(), e.of(req.GetTypeUrl())
	first := !sub.began
	sub.began = true
	if first && req.GetTypeUrl() == resourcev3.ClusterType && s.mayKeep(e) {
		s.keep(has)
	}
	if serving := s.rollout.view.of(req.GetTypeUrl()); len(has) > 0 && serving.equals(has) {
		sub.acked = serving.version
		s.advance()
	}
}

// mayKeep reports whether the clusters that an Envoy has from before are kept for it: if it is trusted, or if none is
// active that would be sent them too.
func (s *Server) mayKeep(e *envoy) bool {
	return e.trusted || len(s.activeEnvoys()) == 0 && slices.Contains(s.voters(), e)
}

// nacked records a rejection. If it counts, its version is never sent again.
func (s *Server) nacked(e *envoy, req *discoveryv3.DeltaDiscoveryRequest, answered sent) {
	name := typeNames[req.GetTypeUrl()]
	e.of(req.GetTypeUrl()).acked = "" // some of what was sent may have been taken
	e.nack = &Rejection{Type: name, Node: e.node, Reason: bounded(req.GetErrorDetail().GetMessage(), maxReason), At: time.Now()}
	if answered.target != nil {
		e.nack.Version = answered.target.Version
	}
	s.metrics.nacks.WithLabelValues(name).Inc()
	defer s.notify()
	counts := answered.target == nil || s.mayReject(e, answered.target)
	s.logged(e, func() {
		s.log.Error("an Envoy has rejected the configuration", "node", e.node, "address", e.address, "type", name,
			"version", e.nack.Version, "reason", bounded(e.nack.Reason, maxLogged), "counts", counts)
	})
	if answered.target == nil || answered.target == s.proven || !counts {
		return // superseded, or the best that there is, or no reason to take it from others
	}
	s.reject(e.nack)
	e.rejected = slices.DeleteFunc(append(e.rejected, e.nack), func(one *Rejection) bool { return s.rejected[one.Version] != one })
	if answered.target == s.rollout.target {
		s.refusal = e.nack
		s.rollout.stop()
		s.rollBack(req.GetTypeUrl())
	}
}

// mayReject reports whether the rejection of a snapshot by this Envoy is one for all: if it was active before, or if
// no other is active and none that replies has taken any of it.
func (s *Server) mayReject(e *envoy, snapshot *Snapshot) bool {
	voters := s.voters()
	if !slices.Contains(voters, e) {
		return false
	}
	if e.active() {
		return true
	}
	for _, other := range voters {
		if other != e && (other.active() || other.hasAckedPart(snapshot)) {
			return false
		}
	}
	return true
}

// forget forgets what an Envoy has rejected that never was active and is gone: another may take it.
func (s *Server) forget(e *envoy) {
	for _, r := range e.rejected {
		if s.rejected[r.Version] == r {
			delete(s.rejected, r.Version)
		}
		if s.refusal == r {
			s.refusal = nil
		}
	}
}

// mostRejected bounds what is remembered: definitions that change all the time must not fill the memory.
const mostRejected = 256

func (s *Server) reject(r *Rejection) {
	s.rejected[r.Version] = r
	if len(s.rejected) <= mostRejected {
		return
	}
	oldest := r
	for _, other := range s.rejected {
		if other.At.Before(oldest.At) {
			oldest = other
		}
	}
	delete(s.rejected, oldest.Version)
}

// voters returns the Envoys whose ACKs and NACKs count for others: the trusted ones or, if none is connected, all. On a
// listener for plain TCP nobody is trusted, so there all peers count the same.
func (s *Server) voters() []*envoy {
	var trusted, all []*envoy
	for _, e := range s.envoys {
		all = append(all, e)
		if e.trusted {
			trusted = append(trusted, e)
		}
	}
	if len(trusted) > 0 {
		return trusted
	}
	return all
}

// activeEnvoys returns the voters that are active and not lagging.
func (s *Server) activeEnvoys() []*envoy {
	return slices.DeleteFunc(s.voters(), func(e *envoy) bool { return !e.active() || e.lagging })
}

// awaited returns the Envoys that a change waits for: the active ones or, if there are none, all voters that are not
// lagging.
func (s *Server) awaited() []*envoy {
	if active := s.activeEnvoys(); len(active) > 0 {
		return active
	}
	return slices.DeleteFunc(s.voters(), func(e *envoy) bool { return e.lagging })
}

// logged runs a log call about an Envoy. Streams that never were active are many if a stranger makes them, so only some
// of theirs are logged.
func (s *Server) logged(e *envoy, log func()) {
	if e.active() {
		log()
		return
	}
	s.strangers.Do(log)
}

func (s *Server) streamsOf(peer string) int {
	count := 0
	for _, e := range s.envoys {
		if e.peer == peer {
			count++
		}
	}
	return count
}

// versionOf returns the version that an Envoy says it has, as 1.40.0; empty if it says none.
func versionOf(node *corev3.Node) string {
	v := node.GetUserAgentBuildVersion().GetVersion()
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
}
