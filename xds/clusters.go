package xds

import (
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/definitions"
)

const (
	connectTimeout = 2 * time.Second
	// upstreamIdle is how long an unused connection to an upstream is kept. Node.js, for example, closes its side after
	// 5 s. A request that Envoy sends on such a connection at that moment is lost.
	upstreamIdle = 4 * time.Second
)

// maxRequests limits the concurrent requests to one service. A request above the limit gets 503 at once, so that a
// service that hangs does not block the whole gateway. The limits of connections and of pending requests are Envoy's
// default, 1024.
const maxRequests = 4096

// clusters builds the clusters of the added services. Those of the removed services are nil. :: name → cluster
func (b *builder) clusters(removed, added []*definitions.Service) map[string]*resource {
	out := make(map[string]*resource, len(removed)+len(added))
	for _, def := range removed {
		if s := b.service(def); s.hasUpstreams() && !s.withheld {
			out[s.cluster] = nil
		}
	}
	for _, def := range added {
		if s := b.service(def); s.hasUpstreams() && !s.withheld {
			b.about = s.String()
			out[s.cluster] = b.cluster(s)
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

func (b *builder) cluster(s *service) *resource {
	targets := s.def.Upstreams
	c := &clusterv3.Cluster{
		Name:                          s.cluster,
		AltStatName:                   statName(s),
		ConnectTimeout:                durationpb.New(connectTimeout),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
		LbPolicy:                      clusterv3.Cluster_ROUND_ROBIN,
		LoadAssignment:                endpoints(targets),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxRequests: wrapperspb.UInt32(maxRequests),
		}}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": b.pack(s.httpOptions()),
		},
	}
	discover(c, targets)
	if targets[0].TLS() {
		b.secure(c, targets, s.protocol())
	}
	b.validate(c)
	return b.finish(c)
}

// discover sets how Envoy gets the addresses: they are given, or names are looked up periodically.
func discover(c *clusterv3.Cluster, targets []definitions.Upstream) {
	if !looksUp(targets) {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return
	}
	// Envoy looks up every 5 s (the default of dns_refresh_rate, whose field is deprecated).
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	// Envoy acknowledges no cluster while it warms one, so a name server that does not respond would delay every change
	// and the start. So Envoy does not wait, and new routes wait here (names.go).
	c.WaitForWarmOnInit = wrapperspb.Bool(false)
	// If a name has addresses of both families, IPv4 is used: servers on "localhost" often listen on no other.
	c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
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

func (s *service) httpOptions() *upstreamhttpv3.HttpProtocolOptions {
	type (
		explicit = upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig
		auto     = upstreamhttpv3.HttpProtocolOptions_AutoHttpConfig
	)
	options := &upstreamhttpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(upstreamIdle)},
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

func endpoints(targets []definitions.Upstream) *endpointv3.ClusterLoadAssignment {
	group := &endpointv3.LocalityLbEndpoints{}
	several := len(tlsHosts(targets)) > 1
	for _, u := range targets {
		e := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address:       u.Host,
				PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(u.Port)},
			}}},
		}}}
		if several {
			e.Metadata = hostMetadata(u.Host)
		}
		group.LbEndpoints = append(group.LbEndpoints, e)
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: placeholderName, Endpoints: []*endpointv3.LocalityLbEndpoints{group}}
}
