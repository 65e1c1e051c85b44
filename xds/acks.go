package xds

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gatepost/convention"
)

// typeNames are the types that Gatepost serves, as they are called in metrics and messages.
var typeNames = map[string]string{
	resourcev3.ListenerType:    "listener",
	resourcev3.ScopedRouteType: "route",
	resourcev3.ClusterType:     "cluster",
}

// envoy is one connected Envoy, and what it has of what it was sent.
type envoy struct {
	Peer
	peer  string                   // address without the port; the same for all on Unix sockets
	types map[string]*subscription // :: type → what it has of it
	acked string                   // the version of the snapshot that it last acknowledged in full; "": never any
	// lagging: it is not waited for, because it has not replied within Patience. An ACK of a whole version ends that.
	lagging bool
	secrets secrets
}

// active reports whether an Envoy has ever acknowledged a whole version on this stream. Anybody who can connect can
// send a NACK or nothing at all, so only an active stream counts for the others.
func (e *envoy) active() bool { return e.acked != "" }

// subscription is what one Envoy has of one type.
type subscription struct {
	began   bool            // its first request has come
	acked   string          // the version of the set that it has; "" if that is not known
	pending map[string]sent // :: nonce → a response that it has not answered yet
}

// sent is a response that waits for its answer.
type sent struct {
	version string    // of the set; "" if it is only a part of the set
	target  *Snapshot // the snapshot that it was a step to; nil if another one was published before it was sent
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

// callbacks are called by go-control-plane for each message of a stream, from the stream's own goroutine, and never
// while it holds the cache's lock.
type callbacks struct{ s *Server }

func (c callbacks) OnDeltaStreamOpen(ctx context.Context, id int64, _ string) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.streamsOf(peerHost(ctx)) >= maxStreams {
		return status.Errorf(codes.ResourceExhausted, "this peer has %d streams already", maxStreams)
	}
	e := &envoy{
		Peer: Peer{ID: id, Address: peerAddress(ctx), Trusted: trustedPeer(ctx), Connected: time.Now()},
		peer: peerHost(ctx), types: map[string]*subscription{},
	}
	c.s.envoys[id] = e
	c.s.metrics.connected.Set(float64(len(c.s.envoys)))
	c.s.report(Connected{e.Peer})
	return nil
}

// OnDeltaStreamClosed forgets an Envoy. A change may have waited for that one alone.
func (c callbacks) OnDeltaStreamClosed(id int64, _ *corev3.Node) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	e := c.s.envoys[id]
	if e == nil {
		return
	}
	c.s.logged(e, func() { c.s.log.Info("an Envoy has disconnected", "node", e.Node, "address", e.Address) })
	delete(c.s.envoys, id)
	c.s.metrics.connected.Set(float64(len(c.s.envoys)))
	c.s.report(Disconnected{id})
	c.s.advance()
}

// maxPending bounds the responses of one type that a peer has not answered.
const maxPending = 64

// OnStreamDeltaResponse records a response before it is sent, under the nonce that its answer will have.
func (c callbacks) OnStreamDeltaResponse(id int64, _ *discoveryv3.DeltaDiscoveryRequest, resp *discoveryv3.DeltaDiscoveryResponse) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	e, r := c.s.envoys[id], &c.s.delivery
	name, known := typeNames[resp.GetTypeUrl()]
	if e != nil && resp.GetTypeUrl() == resourcev3.SecretType {
		c.s.secretSent(e, resp)
	}
	if e == nil || !known {
		return
	}
	version, half := strings.CutSuffix(resp.GetSystemVersionInfo(), pendingRemovals)
	out := sent{version: version}
	isStep := resp.GetTypeUrl() == resourcev3.ClusterType || r.phase == routesOut // else it is of the snapshot before
	if isStep && version == r.view.of(resp.GetTypeUrl()).version {
		out.target = r.target
	}
	if half {
		out.version = ""
	}
	pending := e.of(resp.GetTypeUrl()).pending
	if len(pending) >= maxPending { // no Envoy leaves so many unanswered; later answers to them are ignored
		clear(pending)
	}
	pending[resp.GetNonce()] = out
	c.s.metrics.pushes.WithLabelValues(name).Inc()
	c.s.logPush(e, name, version, resp)
}

// mostNamed bounds the names in a debug line: the first response to an Envoy has all resources.
const mostNamed = 20

// logPush logs the resources that an Envoy is sent, at debug level. Of many it names the first ones.
func (s *Server) logPush(e *envoy, typeName, version string, resp *discoveryv3.DeltaDiscoveryResponse) {
	if !s.log.Enabled(s.ctx, slog.LevelDebug) {
		return
	}
	changed, removed := resp.GetResources(), resp.GetRemovedResources()
	var names []string
	for _, r := range changed[:min(len(changed), mostNamed)] {
		names = append(names, r.GetName())
	}
	s.log.Debug("sending an Envoy resources", "node", e.Node, "address", e.Address, "type", typeName, "version", version,
		"count", len(changed)+len(removed), "changed", names, "removed", removed[:min(len(removed), mostNamed)])
}

// OnStreamDeltaRequest handles a subscription, an ACK or a NACK. (xDS protocol, "ACK/NACK and resource type
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
	if e.Node == "" && req.GetNode() != nil {
		e.Node = bounded(req.GetNode().GetId(), maxNode)
		e.EnvoyVersion = versionOf(req.GetNode())
		if e.Trusted {
			e.Host = hostOf(req.GetNode())
		}
		c.s.logged(e, func() { c.s.log.Info("an Envoy has connected", "node", e.Node, "address", e.Address) })
		c.s.report(Connected{e.Peer})
	}
	if req.GetTypeUrl() == resourcev3.SecretType {
		return c.s.secretRequested(e, req)
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
	c.s.report(PartAcked{id})
	c.s.advance()
	return nil
}

// subscribed handles the first request of a type, with the resources that an Envoy has from an earlier stream. If these
// are the current ones, nothing is sent, so nothing will be acknowledged.
func (s *Server) subscribed(e *envoy, req *discoveryv3.DeltaDiscoveryRequest) {
	has, sub := req.GetInitialResourceVersions(), e.of(req.GetTypeUrl())
	first := !sub.began
	sub.began = true
	if first && req.GetTypeUrl() == resourcev3.ClusterType && s.mayKeep(e) {
		s.keep(has)
	}
	if serving := s.delivery.view.of(req.GetTypeUrl()); len(has) > 0 && serving.equals(has) {
		sub.acked = serving.version
		s.advance()
	}
}

// mayKeep reports whether the clusters that an Envoy has from before are kept for it: if it is trusted, or if none is
// active that would be sent them too.
func (s *Server) mayKeep(e *envoy) bool {
	return e.Trusted || len(s.activeEnvoys()) == 0 && slices.Contains(Voters(s.envoys), e)
}

// lowPort matches Envoy's error if it may not listen on a port below 1024.
var lowPort = regexp.MustCompile(`cannot bind '[^']*:\d{1,4}': Permission denied`)

// withRemedy returns Envoy's error, with a remedy after it if Envoy may not listen on its port.
func withRemedy(reason string) string {
	if !lowPort.MatchString(reason) {
		return reason
	}
	return strings.TrimSpace(reason) + " (allow ports below 1024: setcap cap_net_bind_service=+ep on gatepost, for gatepost run;" +
		" AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd unit; sysctl net.ipv4.ip_unprivileged_port_start=80;" +
		" or listen on a higher port, and publish it with compose: ports: [\"80:5500\"])"
}

// nacked reports a rejection.
func (s *Server) nacked(e *envoy, req *discoveryv3.DeltaDiscoveryRequest, answered sent) {
	name, r := typeNames[req.GetTypeUrl()], &s.delivery
	e.of(req.GetTypeUrl()).acked = "" // Envoy may have accepted a part of it
	rejection := &Rejection{Type: name, Node: e.Node, Reason: bounded(withRemedy(req.GetErrorDetail().GetMessage()), maxReason), At: time.Now()}
	if answered.target != nil {
		rejection.Version = answered.target.Version
		r.isRejected = r.isRejected || answered.target == r.target
		r.clustersRejected = r.clustersRejected || answered.target == r.target && req.GetTypeUrl() == resourcev3.ClusterType
	}
	s.metrics.nacks.WithLabelValues(name).Inc()
	s.logged(e, func() {
		s.log.Error("an Envoy has rejected the configuration", "node", e.Node, "address", e.Address, "type", name,
			"version", rejection.Version, "reason", bounded(rejection.Reason, maxLogged), convention.EventDefinitionsRejected.Attr())
	})
	s.report(Nacked{ID: e.ID, Rejection: rejection})
}

// activeEnvoys returns the voters that are active and not lagging.
func (s *Server) activeEnvoys() []*envoy {
	return slices.DeleteFunc(Voters(s.envoys), func(e *envoy) bool { return !e.active() || e.lagging })
}

// awaited returns the Envoys that a change waits for: the active ones or, if there are none, all voters that are not
// lagging.
func (s *Server) awaited() []*envoy {
	if active := s.activeEnvoys(); len(active) > 0 {
		return active
	}
	return slices.DeleteFunc(Voters(s.envoys), func(e *envoy) bool { return e.lagging })
}

// logged runs a log call about an Envoy. A stranger can open any number of streams that never become active, so only
// some of their calls are run.
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

// versionOf returns the version that an Envoy reports, such as 1.40.0; empty if it reports none.
func versionOf(node *corev3.Node) string {
	v := node.GetUserAgentBuildVersion().GetVersion()
	if v == nil {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
}
