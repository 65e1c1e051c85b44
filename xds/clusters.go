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
	// upstreamIdle is how long an unused connection to an upstream is kept. Node.js, for one, closes its side
	// after 5 s; a request that Envoy has just put on such a connection would be lost.
	upstreamIdle = 4 * time.Second
)

// maxRequests is the most that may be under way to one service at a time; what is beyond is 503 at once, so that one service
// that hangs does not take the whole gateway with it. Of connections, and of requests that wait for one, it is 1024 each,
// which is Envoy's default.
const maxRequests = 4096

// clusters makes one cluster for each service that has come. Those of the services that have gone are nil, by name.
func (b *builder) clusters(gone, come []*definitions.Service) map[string]*resource {
	out := make(map[string]*resource, len(gone)+len(come))
	for _, def := range gone {
		if s := b.service(def); !s.withheld {
			out[s.cluster] = nil
		}
	}
	for _, def := range come {
		if s := b.service(def); !s.withheld {
			b.about = s.String()
			out[s.cluster] = b.cluster(s)
		}
	}
	return out
}

// withoutEndpoint is a cluster that leads nowhere.
func withoutEndpoint(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: ofNoUse},
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
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": b.pack(http1()),
		},
	}
	discover(c, targets)
	if targets[0].TLS {
		b.secure(c, targets)
	}
	b.validate(c)
	return b.finish(c)
}

// discover says how Envoy comes to addresses: they are written down, or names are looked up again and again.
func discover(c *clusterv3.Cluster, targets []definitions.Upstream) {
	if !looksUp(targets) {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return
	}
	// Envoy asks again every 5 s (dns_refresh_rate, whose field is deprecated; 5 s is its default).
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	// Envoy acknowledges no cluster while it waits for one, so a name server that does not reply would hold up every
	// change and the start. Nothing waits in Envoy, then; new routes wait here (names.go).
	c.WaitForWarmOnInit = wrapperspb.Bool(false)
	// A name with addresses of both families is called by IPv4: what listens on "localhost" often has no other.
	c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
}

// looksUp reports whether upstreams have names that Envoy looks up.
func looksUp(targets []definitions.Upstream) bool {
	return slices.ContainsFunc(targets, func(u definitions.Upstream) bool { return !u.IsIP })
}

func http1() *upstreamhttpv3.HttpProtocolOptions {
	return &upstreamhttpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(upstreamIdle)},
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
					HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
				},
			},
		},
	}
}

// ofNoUse is the name of the cluster as its own endpoints have it: required, and read of endpoints that come by themselves (EDS).
const ofNoUse = "-"

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
	return &endpointv3.ClusterLoadAssignment{ClusterName: ofNoUse, Endpoints: []*endpointv3.LocalityLbEndpoints{group}}
}
