package envoy

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The clusters in the bootstrap. The configuration from ADS refers to Gatepost by these names.
const (
	// ClusterGRPC is Gatepost's gRPC server: ADS and ext_authz. HTTP/2.
	ClusterGRPC = "gatepost-grpc"
	// ClusterHTTP is Gatepost's token handler. HTTP/1.1.
	ClusterHTTP = "gatepost-http"
)

// upstreamIdle is the idle timeout of Envoy's connections to Gatepost's token handler. The
// handler's own idle timeout must be longer; otherwise Envoy could send a login on a connection
// that is being closed.
const upstreamIdle = 30 * time.Second

// connectTimeout is short, because Gatepost runs on the same machine or network.
const connectTimeout = time.Second

// grpcCluster is the cluster of Gatepost's gRPC server. Each request to a secured service waits for
// a check there, so its budget is large. If a check exceeds the budget, the client gets a 503, as
// for a failed check.
func grpcCluster(address, tlsDir string) (*clusterv3.Cluster, error) {
	// The ping detects a peer that disappeared without closing the connection. Gatepost's server
	// must permit one every 30 s.
	h2 := &corev3.Http2ProtocolOptions{ConnectionKeepalive: &corev3.KeepaliveSettings{
		Interval: durationpb.New(30 * time.Second),
		Timeout:  durationpb.New(5 * time.Second),
	}}
	options := &upstreamhttpv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: h2},
		},
	}}
	return gatepostCluster(ClusterGRPC, address, transport{tlsDir, "h2"}, options, budget{connections: 1024, pending: 16384, requests: 16384})
}

// httpCluster is the cluster of Gatepost's token handler. Its budget is small: a flood of logins is
// rejected here and does not affect the checks or the user service.
func httpCluster(address, tlsDir string) (*clusterv3.Cluster, error) {
	options := &upstreamhttpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(upstreamIdle)},
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
			},
		},
	}
	return gatepostCluster(ClusterHTTP, address, transport{tlsDir, "http/1.1"}, options, budget{connections: 256, pending: 256, requests: 512})
}

// budget limits the concurrent use of a cluster over all of Envoy's threads (circuit breakers).
// Retries are disabled: a check is decided once, and a login must not be sent twice.
type budget struct{ connections, pending, requests uint32 }

// transport is the TLS setup of a cluster that is not reached over a Unix socket.
type transport struct{ tlsDir, protocol string }

func gatepostCluster(name, address string, over transport, options *upstreamhttpv3.HttpProtocolOptions, b budget) (*clusterv3.Cluster, error) {
	addr, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	if err := addr.reachable(); err != nil {
		return nil, err
	}
	protocol, err := anypb.New(options)
	if err != nil {
		return nil, fmt.Errorf("building the cluster %s: %w", name, err)
	}
	c := &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addr.envoy(0)}},
			}}}},
		},
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections:     wrapperspb.UInt32(b.connections),
			MaxPendingRequests: wrapperspb.UInt32(b.pending),
			MaxRequests:        wrapperspb.UInt32(b.requests),
			MaxRetries:         wrapperspb.UInt32(0),
		}}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol,
		},
	}
	if over.tlsDir != "" && addr.path == "" {
		if c.TransportSocket, err = mutualTLS(over.tlsDir, addr, over.protocol); err != nil {
			return nil, err
		}
	}
	if addr.host == "" {
		return c, nil
	}
	byName, err := anypb.New(resolution())
	if err != nil {
		return nil, fmt.Errorf("building the cluster %s: %w", name, err)
	}
	c.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: "envoy.cluster.dns", TypedConfig: byName,
	}}
	return c, nil
}

// resolution configures DNS as STRICT_DNS would; the fields of that type are deprecated. Names are
// resolved every second, so that a recreated container with a new address is found as fast as a
// restarted one. IPv4 is preferred, because compose networks use it.
func resolution() *dnsclusterv3.DnsCluster {
	return &dnsclusterv3.DnsCluster{
		DnsLookupFamily: dnsv3.DnsLookupFamily_V4_PREFERRED,
		DnsRefreshRate:  durationpb.New(time.Second),
		DnsFailureRefreshRate: &dnsclusterv3.DnsCluster_RefreshRate{
			BaseInterval: durationpb.New(200 * time.Millisecond),
			MaxInterval:  durationpb.New(time.Second),
		},
	}
}
