package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	gatewayv1 "gatepost/proto/gatepost/v1"
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
func (b *builder) clusters(gone, come []*gatewayv1.Service) map[string]*resource {
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
	targets, err := upstreams(s.def.GetUpstreams())
	if err != nil {
		b.fail(err)
		return &resource{}
	}
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
	if targets[0].tls {
		b.secure(c, targets)
	}
	b.validate(c)
	return b.finish(c)
}

// discover says how Envoy comes to addresses: they are written down, or names are looked up again and again.
func discover(c *clusterv3.Cluster, targets []upstream) {
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
func looksUp(targets []upstream) bool {
	return slices.ContainsFunc(targets, func(u upstream) bool { return !u.ip })
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

func endpoints(targets []upstream) *endpointv3.ClusterLoadAssignment {
	group := &endpointv3.LocalityLbEndpoints{}
	several := len(tlsHosts(targets)) > 1
	for _, u := range targets {
		e := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address:       u.host,
				PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: u.port},
			}}},
		}}}
		if several {
			e.Metadata = hostMetadata(u.host)
		}
		group.LbEndpoints = append(group.LbEndpoints, e)
	}
	return &endpointv3.ClusterLoadAssignment{ClusterName: ofNoUse, Endpoints: []*endpointv3.LocalityLbEndpoints{group}}
}

// upstream is one address of a service.
type upstream struct {
	tls  bool
	host string // lower case; an address without brackets
	ip   bool
	port uint32
	base string // the path, without a slash at its end
}

func (u upstream) String() string {
	return fmt.Sprintf("%v %s %d", u.tls, u.host, u.port)
}

// upstreams reads a service's addresses, which may differ in host and port alone. They come back sorted: the
// order in which they are written down means nothing.
func upstreams(raw []string) ([]upstream, error) {
	var out []upstream
	var errs []error
	for _, r := range raw {
		u, err := parseUpstream(r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(out) > 0 && (u.tls != out[0].tls || u.base != out[0].base) {
			errs = append(errs, fmt.Errorf("upstream %q differs from the first in more than host and port", r))
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b upstream) int {
		return strings.Compare(a.host+":"+strconv.Itoa(int(a.port)), b.host+":"+strconv.Itoa(int(b.port)))
	})
	return slices.Compact(out), errors.Join(errs...)
}

func parseUpstream(raw string) (upstream, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return upstream{}, fmt.Errorf("upstream: %w", err)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return upstream{}, fmt.Errorf("upstream %q is neither http nor https", raw)
	case u.Hostname() == "", strings.ContainsAny(u.Hostname(), "%* "):
		return upstream{}, fmt.Errorf("upstream %q has no host that can be called", raw)
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return upstream{}, fmt.Errorf("upstream %q has more than a host, a port and a path", raw)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return upstream{}, fmt.Errorf("upstream %q has a port that is none", raw)
	}
	base := strings.TrimRight(u.EscapedPath(), "/")
	if base != "" && !plainPath(strings.ReplaceAll(base, "%", "")) {
		return upstream{}, fmt.Errorf("upstream %q has a path that cannot be put before another", raw)
	}
	_, notIP := netip.ParseAddr(u.Hostname())
	return upstream{
		tls:  u.Scheme == "https",
		host: strings.ToLower(u.Hostname()),
		ip:   notIP == nil,
		port: uint32(number),
		base: base,
	}, nil
}
