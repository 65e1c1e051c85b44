package envoytest

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gatepost/envoy"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// unusedAddress is an address on which nothing listens: a reserved port of loopback.
const unusedAddress = "127.0.0.1:1"

// Bootstrap returns the project's own bootstrap for these options. If there are Resources, they
// replace ADS, and scoped routes are inlined into the listeners that subscribe to them (SRDS).
func Bootstrap(t testing.TB, opts Options) *bootstrapv3.Bootstrap {
	t.Helper()
	b, err := envoy.Bootstrap(envoy.BootstrapOptions{GRPC: or(opts.GRPC, unusedAddress), HTTP: or(opts.HTTP, unusedAddress), NodeID: opts.NodeID, NameServer: opts.NameServerTCP})
	if err != nil {
		t.Fatal(err)
	}
	if opts.NameServer != "" {
		b.TypedDnsResolverConfig = resolver(t, opts.NameServer)
	}
	if len(opts.Resources) == 0 {
		return b
	}
	b.DynamicResources = nil
	scopes := &hcmv3.ScopedRouteConfigurationsList{}
	for _, r := range opts.Resources {
		switch r := r.(type) {
		case *listenerv3.Listener:
			b.StaticResources.Listeners = append(b.StaticResources.Listeners, proto.CloneOf(r))
		case *clusterv3.Cluster:
			b.StaticResources.Clusters = append(b.StaticResources.Clusters, r)
		case *routev3.ScopedRouteConfiguration:
			scopes.ScopedRouteConfigurations = append(scopes.ScopedRouteConfigurations, r)
		default:
			t.Fatalf("a bootstrap cannot contain a %T", r)
		}
	}
	for _, l := range b.StaticResources.Listeners {
		inlineRoutes(t, l, scopes)
	}
	return b
}

// resolver makes Envoy use a single name server.
func resolver(t testing.TB, address string) *corev3.TypedExtensionConfig {
	t.Helper()
	config, err := anypb.New(&caresv3.CaresDnsResolverConfig{Resolvers: []*corev3.Address{socket(t, address)}})
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.TypedExtensionConfig{Name: "envoy.network.dns_resolver.cares", TypedConfig: config}
}

// inlineRoutes puts the routes that a listener subscribes to into the listener.
func inlineRoutes(t testing.TB, l *listenerv3.Listener, scopes *hcmv3.ScopedRouteConfigurationsList) {
	t.Helper()
	chains := l.GetFilterChains()
	if l.GetDefaultFilterChain() != nil {
		chains = append(chains, l.GetDefaultFilterChain())
	}
	for _, chain := range chains {
		for _, filter := range chain.GetFilters() {
			var hcm hcmv3.HttpConnectionManager
			if !filter.GetTypedConfig().MessageIs(&hcm) {
				continue
			}
			if err := filter.GetTypedConfig().UnmarshalTo(&hcm); err != nil {
				t.Fatal(err)
			}
			if hcm.GetScopedRoutes().GetScopedRds() == nil {
				continue
			}
			hcm.GetScopedRoutes().ConfigSpecifier = &hcmv3.ScopedRoutes_ScopedRouteConfigurationsList{ScopedRouteConfigurationsList: scopes}
			config, err := anypb.New(&hcm)
			if err != nil {
				t.Fatal(err)
			}
			filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: config}
		}
	}
}

// Validate makes Envoy validate a bootstrap (--mode validate) and returns its errors, or "".
func Validate(t testing.TB, b *bootstrapv3.Bootstrap) string {
	t.Helper()
	path := Require(t)
	text, err := envoy.YAML(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	// Warnings count as errors: a deprecated or ineffective setting is a bug.
	out, err := exec.Command(path, "--mode", "validate", "-c", file, "--log-level", "warning", "--log-format", "%v").CombinedOutput()
	verdict := strings.TrimSpace(routeLimits.ReplaceAllString(string(out), ""))
	if err == nil && verdict == "configuration '"+file+"' OK" {
		return ""
	}
	return verdict
}

// routeLimits matches a warning of Envoy about a scope with the buckets of limits that its routes name. The form that
// it recommends has no stages, and would count requests of one route in the buckets of all.
var routeLimits = regexp.MustCompile(`(?m)^'descriptors' is set but only used by route configuration.*\n`)

// ValidateResources is Validate for resources of a control plane: listeners, scoped routes,
// clusters.
func ValidateResources(t testing.TB, resources ...proto.Message) string {
	t.Helper()
	return Validate(t, Bootstrap(t, Options{Resources: resources}))
}

// Forward returns resources for an Envoy that listens on an address and forwards every request to
// an upstream. It is for tests that do not depend on routes. Both addresses are ip:port.
func Forward(t testing.TB, listen, upstream string) []proto.Message {
	t.Helper()
	const cluster = "upstream"
	config := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix: "test",
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config(&routerv3.Router{})},
		}},
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}},
			}}}},
		}},
	}
	return []proto.Message{
		&listenerv3.Listener{
			Name:    "test",
			Address: socket(t, listen),
			FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
				Name:       "envoy.filters.network.http_connection_manager",
				ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config(hcm)},
			}}}},
		},
		&clusterv3.Cluster{
			Name:                 cluster,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: cluster, Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
					Endpoint: &endpointv3.Endpoint{Address: socket(t, upstream)},
				}}},
			}}},
		},
	}
}

func socket(t testing.TB, addr string) *corev3.Address {
	t.Helper()
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       ap.Addr().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(ap.Port())},
	}}}
}

// listenAddresses returns the TCP addresses of a bootstrap's static listeners.
func listenAddresses(b *bootstrapv3.Bootstrap) []string {
	var addrs []string
	for _, l := range b.GetStaticResources().GetListeners() {
		if s := l.GetAddress().GetSocketAddress(); s != nil {
			addrs = append(addrs, join(s.GetAddress(), s.GetPortValue()))
		}
	}
	return addrs
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
