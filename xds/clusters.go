package xds

import (
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/definitions"
)

const (
	connectTimeout = 2 * time.Second
	// upstreamIdle is how long an unused connection to an upstream is kept. Servers close their side after some time:
	// gunicorn after 2 s, and Node.js, uvicorn and Apache after 5 s. A request that Envoy sends at that moment is lost,
	// and is not tried again, because the upstream may have acted on it.
	upstreamIdle = 1500 * time.Millisecond
)

// clusters builds the clusters of the added services. Those of the removed services are nil. :: name → cluster
func (b *builder) clusters(removed, added []*definitions.Service) map[string]*resource {
	out := make(map[string]*resource, len(removed)+len(added))
	for _, def := range removed {
		if s := b.service(def); s.upstreams != nil {
			out[s.cluster] = nil
		}
	}
	for _, def := range added {
		if s := b.service(def); s.upstreams != nil {
			b.about = s.String()
			out[s.cluster] = b.finish(s.upstreams)
			s.upstreams = nil // of ten thousand services, the messages would be a third of the memory of a build
		}
	}
	return out
}

// withoutEndpoint is a cluster without an endpoint.
func withoutEndpoint(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: placeholderName},
	}
}

// upstreamsOf builds the cluster of a service. Its name contains the base path, because routes rewrite to it: a change
// of the base makes another cluster, so old routes never lead to new upstreams. If Envoy has to look up names, or to
// check hosts, it also contains a hash of the cluster: a changed cluster would have no host until the names are looked
// up and the hosts checked, but another cluster leaves the old one unchanged.
func (b *builder) upstreamsOf(s *service) *clusterv3.Cluster {
	name := clusterOf + s.def.Name + s.base()
	targets := slices.Collect(s.def.AllUpstreams())
	c := &clusterv3.Cluster{
		ConnectTimeout:                durationpb.New(connectTimeout),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
		LbPolicy:                      clusterv3.Cluster_ROUND_ROBIN,
		LoadAssignment:                s.loadAssignment(),
		CircuitBreakers:               circuitBreakers(s.def),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": b.pack(s.httpOptions(b.bodyFilters(s.def), b.gw.Tokens.Lifetime)),
		},
	}
	s.balance(c)
	s.avoidUnhealthy(c)
	discovers := s.def.HealthCheck != nil || looksUp(targets)
	b.discover(c, discovers)
	if targets[0].TLS() {
		b.secure(c, s)
	}
	if c.Name = name; discovers {
		c.AltStatName = name
		c.Name += clusterHash + hashed(string(b.content(c))).short()
	}
	return c
}

// discover sets how Envoy gets the addresses: they are given, or names are looked up periodically.
func (b *builder) discover(c *clusterv3.Cluster, lookedUp bool) {
	if !lookedUp {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: dnsCluster, TypedConfig: b.pack(resolution()),
	}}
	// Envoy acknowledges no cluster while it warms one, so a name server that does not respond would delay every change
	// and the start. So Envoy does not wait, and new routes wait here (names.go).
	c.WaitForWarmOnInit = wrapperspb.Bool(false)
	if len(c.GetHealthChecks()) > 0 {
		startWithoutHosts(c)
	}
}

// dnsCluster is the type of a cluster whose hosts Envoy looks up.
const dnsCluster = "envoy.cluster.dns"

// resolution configures how Envoy looks up names.
func resolution() *dnsclusterv3.DnsCluster {
	return &dnsclusterv3.DnsCluster{
		// By default 5 s. A service with one upstream gets 503 for as long if that restarts with another address, or if its
		// name does not exist for a moment (docs/design/upstream-names.md).
		DnsRefreshRate: durationpb.New(time.Second),
		// If a name has addresses of both families, IPv4 is used: servers on "localhost" often listen on no other.
		DnsLookupFamily: dnsv3.DnsLookupFamily_V4_PREFERRED,
	}
}

// startWithoutHosts keeps Envoy from waiting for the first health checks: it waits for those of the hosts that a
// cluster has when the first of its names has been looked up. An IP address is found at once. So the first name is one
// that is known not to exist, without a name server (RFC 7686 §2).
func startWithoutHosts(c *clusterv3.Cluster) {
	first := c.GetLoadAssignment().GetEndpoints()[0]
	first.LbEndpoints = append([]*endpointv3.LbEndpoint{lbEndpoint(noName, 1)}, first.GetLbEndpoints()...)
}

// noName is a name that nobody looks up.
const noName = "none.onion"

func lbEndpoint(host string, port uint16) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
		}}},
	}}}
}

// looksUp reports whether upstreams have names that Envoy looks up.
func looksUp(targets []definitions.Upstream) bool {
	return slices.ContainsFunc(targets, func(u definitions.Upstream) bool { return !u.IsIP })
}

// The HTTP versions of a cluster.
const (
	onlyHTTP1 = "http/1.1"
	onlyHTTP2 = "h2"
	byALPN    = "h2 or http/1.1"
)

// protocol returns the HTTP version of the upstreams. Envoy sends no WebSocket over HTTP/2 to a server that does not
// expect one, so ALPN must not choose that.
func (s *service) protocol() string {
	switch scheme := s.def.Upstreams[0].Scheme; {
	case scheme == definitions.SchemeH2C:
		return onlyHTTP2
	case scheme == definitions.SchemeHTTPS && !s.def.WebSocket:
		return byALPN
	}
	return onlyHTTP1
}

// longestStream is the longest duration of a stream to an upstream; 0: no limit. It is in the cluster, because in a
// route it would replace the timeout. A decision can make it shorter.
func (s *service) longestStream(lifetime time.Duration) time.Duration {
	if s.def.WebSocket && s.def.Authenticate {
		return lifetime
	}
	return s.longest()
}

func (s *service) httpOptions(filters []*hcmv3.HttpFilter, lifetime time.Duration) *upstreamhttpv3.HttpProtocolOptions {
	type (
		explicit = upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig
		auto     = upstreamhttpv3.HttpProtocolOptions_AutoHttpConfig
	)
	options := &upstreamhttpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(upstreamIdle)},
		HttpFilters:               filters,
	}
	if longest := s.longestStream(lifetime); longest > 0 {
		options.CommonHttpProtocolOptions.MaxStreamDuration = durationpb.New(longest)
	}
	config := new(explicit)
	switch s.protocol() {
	case byALPN:
		options.UpstreamProtocolOptions = &upstreamhttpv3.HttpProtocolOptions_AutoConfig{AutoConfig: &auto{Http2ProtocolOptions: http2Options()}}
		return options
	case onlyHTTP2:
		config.ProtocolConfig = &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: http2Options()}
	default:
		config.ProtocolConfig = &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}
	}
	options.UpstreamProtocolOptions = &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: config}
	return options
}

// placeholderName is the cluster name in a load assignment. It is required, but only EDS uses it.
const placeholderName = "-"

// loadAssignment has the upstreams, and those of the canary as a group of their own.
func (s *service) loadAssignment() *endpointv3.ClusterLoadAssignment {
	several := len(tlsHosts(s.def)) > 1
	out := &endpointv3.ClusterLoadAssignment{ClusterName: placeholderName}
	canary := s.def.Canary
	if canary == nil {
		out.Endpoints = []*endpointv3.LocalityLbEndpoints{s.group(s.def.Upstreams, several)}
		return out
	}
	add := func(zone string, targets []definitions.Upstream, percent int) {
		if percent > 0 {
			group := s.group(targets, several)
			group.Locality, group.LoadBalancingWeight = &corev3.Locality{Zone: zone}, wrapperspb.UInt32(uint32(percent))
			out.Endpoints = append(out.Endpoints, group)
		}
	}
	add(zoneStable, s.def.Upstreams, 100-canary.Percent)
	add(ZoneCanary, canary.Upstreams, canary.Percent)
	return out
}

func (s *service) group(targets []definitions.Upstream, several bool) *endpointv3.LocalityLbEndpoints {
	group := &endpointv3.LocalityLbEndpoints{}
	for _, u := range targets {
		e := lbEndpoint(u.Host, u.Port)
		if s.def.HealthCheck != nil { // otherwise the Host of a check is the name of the cluster, which servers refuse
			e.GetEndpoint().HealthCheckConfig = &endpointv3.Endpoint_HealthCheckConfig{Hostname: u.Authority()}
		}
		if several {
			e.Metadata = hostMetadata(u.Host)
		}
		group.LbEndpoints = append(group.LbEndpoints, e)
	}
	return group
}
