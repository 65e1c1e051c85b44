package xds

import (
	"context"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
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
	trusted bool   // it is connected by a Unix socket or a client certificate
	host    string // the host of its listener, if it named one and is trusted
	since   time.Time
	types   map[string]*subscription // :: type → what it has of it

	acked   string // the version of the snapshot that it last acknowledged in full
	ackedAt time.Time
	nack    *Rejection // the last one since then
}

// subscription is what one Envoy has of one type.
type subscription struct {
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
	c.s.envoys[id] = &envoy{address: peerAddress(ctx), trusted: trustedPeer(ctx), since: time.Now(), types: map[string]*subscription{}}
	c.s.metrics.connected.Set(float64(len(c.s.envoys)))
	c.s.notify()
	return nil
}

// OnDeltaStreamClosed: those who are left may be all that were waited for.
func (c callbacks) OnDeltaStreamClosed(id int64, _ *corev3.Node) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if e := c.s.envoys[id]; e != nil {
		c.s.log.Info("an Envoy has gone", "node", e.node, "address", e.address)
	}
	delete(c.s.envoys, id)
	c.s.metrics.connected.Set(float64(len(c.s.envoys)))
	c.s.notify()
	c.s.advance()
}

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
	e.of(resp.GetTypeUrl()).pending[resp.GetNonce()] = out
	c.s.metrics.pushes.WithLabelValues(name).Inc()
}

// OnStreamDeltaRequest hears a subscription, an ACK or a NACK. (xDS protocol, "ACK/NACK and resource type
// instance version": a request with the nonce of a response answers it, and with an error it rejects it.)
func (c callbacks) OnStreamDeltaRequest(id int64, req *discoveryv3.DeltaDiscoveryRequest) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	e := c.s.envoys[id]
	if e == nil {
		return nil
	}
	if e.node == "" && req.GetNode() != nil {
		e.node = req.GetNode().GetId()
		if e.trusted {
			e.host = hostOf(req.GetNode())
		}
		c.s.log.Info("an Envoy has connected", "node", e.node, "address", e.address)
		c.s.notify()
	}
	if _, known := typeNames[req.GetTypeUrl()]; !known {
		return nil
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
	has := req.GetInitialResourceVersions()
	if req.GetTypeUrl() == resourcev3.ClusterType {
		s.keep(has)
	}
	if serving := s.rollout.view.of(req.GetTypeUrl()); len(has) > 0 && serving.equals(has) {
		e.of(req.GetTypeUrl()).acked = serving.version
		s.advance()
	}
}

// nacked hears a rejection: it is told once, and the version that it belongs to is never sent again.
func (s *Server) nacked(e *envoy, req *discoveryv3.DeltaDiscoveryRequest, answered sent) {
	name := typeNames[req.GetTypeUrl()]
	e.of(req.GetTypeUrl()).acked = "" // some of what was sent may have been taken
	e.nack = &Rejection{Type: name, Node: e.node, Reason: req.GetErrorDetail().GetMessage(), At: time.Now()}
	if answered.target != nil {
		e.nack.Version = answered.target.Version
	}
	s.metrics.nacks.WithLabelValues(name).Inc()
	s.log.Error("an Envoy has rejected the configuration", "node", e.node, "address", e.address,
		"type", name, "version", e.nack.Version, "reason", e.nack.Reason)
	defer s.notify()
	if answered.target == nil || answered.target == s.proven {
		return // over already, or the best that there is
	}
	s.reject(e.nack)
	if answered.target == s.rollout.target {
		s.refusal = e.nack
		s.rollout.stop()
		s.rollBack(req.GetTypeUrl())
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

// trustedPeer reports whether a peer is connected by a Unix socket or has shown a valid client certificate.
func trustedPeer(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return false
	}
	secured, isTLS := p.AuthInfo.(credentials.TLSInfo)
	return p.Addr.Network() == "unix" || isTLS && len(secured.State.VerifiedChains) > 0
}

// HostMetadata is the key of the node metadata that names the host of an Envoy's listener. Gatepost sends requests
// there, so it is read only from peers on a Unix socket or with a client certificate.
const HostMetadata = "gatepost.host"

// maxHost is the longest host name of DNS.
const maxHost = 253

func hostOf(node *corev3.Node) string {
	host := node.GetMetadata().GetFields()[HostMetadata].GetStringValue()
	if len(host) > maxHost {
		return ""
	}
	return host
}

func peerAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}
