package envoy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/convention"
	"gatepost/yamlof"
)

// Defaults of BootstrapOptions.
const (
	DefaultNodeID         = "gatepost-envoy"
	DefaultMaxConnections = 50_000
	DefaultMaxHeap        = 1 << 30
)

// nodeCluster is the service cluster name of every Envoy that belongs to a Gatepost.
const nodeCluster = "gatepost"

// BootstrapOptions are the settings that differ between Envoys.
type BootstrapOptions struct {
	// GRPC is the address of Gatepost's gRPC server (ADS and ext_authz) as seen by Envoy: host:port
	// or unix:/path. Required.
	GRPC string
	// HTTP is the address of Gatepost's token handler as seen by Envoy: host:port or unix:/path.
	// Required.
	HTTP string
	// TLS is the folder, as seen by Envoy, of its certificate and key and of the CA of Gatepost's
	// certificate (TLSCert, TLSKey, TLSCA). It applies to those of the two addresses that are not
	// Unix sockets. If it is empty, there is no TLS.
	TLS string
	// Admin is the address of Envoy's admin interface: a loopback ip:port or unix:/path, which the
	// group of the socket may use too. If it is empty, there is no admin interface.
	Admin string
	// NameServer is the ip:port of a name server that Envoy asks over TCP about all names. If it is empty, Envoy asks
	// those of the system.
	NameServer string
	// NodeID identifies this Envoy to Gatepost. The default is DefaultNodeID.
	NodeID string
	// Metadata is sent to Gatepost with the node id.
	Metadata map[string]string
	// MaxConnections limits the client connections; Envoy closes new ones above it. The default is
	// DefaultMaxConnections. Envoy's file limit must be about twice as high, because each request
	// can need an upstream connection.
	MaxConnections int64
	// MaxHeap limits Envoy's heap, in bytes. At 95 % Envoy releases memory to the system, at 98 %
	// it answers new requests with 503. The default is DefaultMaxHeap.
	MaxHeap uint64
}

// Bootstrap returns the static configuration that connects Envoy to Gatepost; everything else comes
// over ADS. Bootstrap returns an error if Envoy cannot use one of the
// addresses.
func Bootstrap(opts BootstrapOptions) (*bootstrapv3.Bootstrap, error) {
	static, err := staticClusters(opts)
	if err != nil {
		return nil, err
	}
	admin, err := adminInterface(opts.Admin, sharedSocket)
	if err != nil {
		return nil, err
	}
	overload, err := overloadManager(orDefault(opts.MaxConnections, DefaultMaxConnections), orDefault(opts.MaxHeap, DefaultMaxHeap))
	if err != nil {
		return nil, err
	}
	resolver, err := resolver(opts.NameServer)
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{
		Node:                   node(opts),
		Admin:                  admin,
		StaticResources:        &bootstrapv3.Bootstrap_StaticResources{Clusters: static},
		DynamicResources:       fromGatepost(),
		OverloadManager:        overload,
		TypedDnsResolverConfig: resolver,
		StatsConfig:            keptStats(),
		InlineHeaders:          inlineHeaders(),
		// Services without traffic then use almost no memory.
		DeferredStatOptions: &bootstrapv3.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
	}
	return b, nil
}

// inlineHeaders give the identity header a place of its own in Envoy's responses, from which the gateway removes it. To
// look for a header without one, Envoy first indexes all headers of the response, for 2,500 instructions. If the
// definitions name another header, it still does. (In requests only public services would gain.)
func inlineHeaders() []*bootstrapv3.CustomInlineHeader {
	return []*bootstrapv3.CustomInlineHeader{{
		InlineHeaderName: convention.HeaderIdentity, InlineHeaderType: bootstrapv3.CustomInlineHeader_RESPONSE_HEADER,
	}}
}

func node(opts BootstrapOptions) *corev3.Node {
	out := &corev3.Node{Id: orDefault(opts.NodeID, DefaultNodeID), Cluster: nodeCluster}
	if len(opts.Metadata) > 0 {
		out.Metadata = &structpb.Struct{Fields: make(map[string]*structpb.Value, len(opts.Metadata))}
		for key, value := range opts.Metadata {
			out.Metadata.Fields[key] = structpb.NewStringValue(value)
		}
	}
	return out
}

// resolver makes Envoy ask one name server. It still searches the domains of resolv.conf, and reads /etc/hosts first.
func resolver(nameServer string) (*corev3.TypedExtensionConfig, error) {
	if nameServer == "" {
		return nil, nil
	}
	addr, err := parseAddress(nameServer)
	if err != nil {
		return nil, fmt.Errorf("the address of the name server: %w", err)
	}
	config, err := anypb.New(&caresv3.CaresDnsResolverConfig{
		Resolvers:          []*corev3.Address{addr.envoy(0)},
		DnsResolverOptions: &corev3.DnsResolverOptions{UseTcpForDnsLookups: true},
	})
	if err != nil {
		return nil, err
	}
	return &corev3.TypedExtensionConfig{Name: "envoy.network.dns_resolver.cares", TypedConfig: config}, nil
}

func staticClusters(opts BootstrapOptions) ([]*clusterv3.Cluster, error) {
	grpc, err := grpcCluster(opts.GRPC, opts.TLS)
	if err != nil {
		return nil, fmt.Errorf("the address of Gatepost's gRPC server: %w", err)
	}
	http, err := httpCluster(opts.HTTP, opts.TLS)
	if err != nil {
		return nil, fmt.Errorf("the address of Gatepost's token handler: %w", err)
	}
	return []*clusterv3.Cluster{grpc, http}, nil
}

// fromGatepost makes Envoy fetch listeners and clusters, and what they refer to, over one delta ADS
// stream. Delta xDS does not resend a rejected update again and again.
func fromGatepost() *bootstrapv3.Bootstrap_DynamicResources {
	return &bootstrapv3.Bootstrap_DynamicResources{
		LdsConfig: overADS(),
		CdsConfig: overADS(),
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
					ClusterName: ClusterGRPC,
					// Envoy's default backoff grows to 30 s, but a restarted Gatepost must be found
					// at once.
					RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
						BaseInterval: durationpb.New(100 * time.Millisecond),
						MaxInterval:  durationpb.New(time.Second),
					}},
				}},
			}},
		},
	}
}

// overADS waits for the first configuration without a timeout. With one (initial_fetch_timeout; 0
// disables it), Envoy would report itself ready without any listener when it expires.
func overADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		InitialFetchTimeout:   durationpb.New(0),
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// overloadManager makes Envoy reject work before it runs out of memory or files (Envoy docs,
// "Configuring Envoy as an edge proxy").
func overloadManager(connections int64, heap uint64) (*overloadv3.OverloadManager, error) {
	const heapMonitor = "envoy.resource_monitors.fixed_heap"
	heapConfig, err := anypb.New(&heapv3.FixedHeapConfig{MaxHeapSizeBytes: heap})
	if err != nil {
		return nil, fmt.Errorf("building the overload manager: %w", err)
	}
	connectionsConfig, err := anypb.New(&connectionsv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: connections})
	if err != nil {
		return nil, fmt.Errorf("building the overload manager: %w", err)
	}
	at := func(action string, share float64) *overloadv3.OverloadAction {
		return &overloadv3.OverloadAction{Name: action, Triggers: []*overloadv3.Trigger{{
			Name:         heapMonitor,
			TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{Value: share}},
		}}}
	}
	return &overloadv3.OverloadManager{
		RefreshInterval: durationpb.New(250 * time.Millisecond),
		ResourceMonitors: []*overloadv3.ResourceMonitor{
			{Name: heapMonitor, ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: heapConfig}},
			{Name: "envoy.resource_monitors.global_downstream_max_connections", ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: connectionsConfig}},
		},
		Actions: []*overloadv3.OverloadAction{
			at("envoy.overload_actions.shrink_heap", 0.95),
			at("envoy.overload_actions.stop_accepting_requests", 0.98),
		},
	}, nil
}

// keptStats drops the statistics that exist once per service or thread and that Gatepost does not
// use.
func keptStats() *metricsv3.StatsConfig {
	exclude := func(re string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: re}}}
	}
	return &metricsv3.StatsConfig{StatsMatcher: &metricsv3.StatsMatcher{StatsMatcher: &metricsv3.StatsMatcher_ExclusionList{
		ExclusionList: &matcherv3.ListStringMatcher{Patterns: []*matcherv3.StringMatcher{
			exclude(`cluster\..*\.(internal|external)\.upstream_rq_.*`), // a second copy of upstream_rq_*
			exclude(`cluster\..*\.circuit_breakers\.high\..*`),          // no route has high priority
			exclude(`cluster\..*\.(lb_subsets|lb_zone|retry_or_shadow)_.*`),
			exclude(`listener\..*\.worker_\d+\..*`),
		}},
	}}}
}

// The paths of the admin interface that are served. None of them stops or changes a running Envoy,
// because a page in a browser on the same machine can post to a loopback port.
var (
	adminReads = []string{"/ready", "/stats", "/server_info", "/config_dump", "/clusters", "/listeners", "/memory", "/certs"}
	// adminDrains are served on a Unix socket only, so that just the Runner can start a drain.
	adminDrains = []string{"/healthcheck/fail", "/drain_listeners"}
)

// The modes of a Unix socket of the admin interface. An Envoy that Gatepost starts has the same
// user; another one often has not, and shares a group with it.
const (
	privateSocket = 0o600
	sharedSocket  = 0o660
)

// adminInterface returns the admin interface for an address, or nil if the address is empty. A TCP
// address must be loopback, because every client can read the whole configuration. socketMode is the
// file mode of a Unix socket.
func adminInterface(address string, socketMode uint32) (*bootstrapv3.Admin, error) {
	if address == "" {
		return nil, nil
	}
	addr, err := parseAddress(address)
	if err != nil {
		return nil, fmt.Errorf("the address of Envoy's admin interface: %w", err)
	}
	paths := adminReads
	switch {
	case addr.path != "":
		paths = append(paths[:len(paths):len(paths)], adminDrains...)
	case !addr.ip.IsLoopback():
		return nil, fmt.Errorf("the address of Envoy's admin interface: %q is no loopback address and no unix socket, and it would be open to everyone", address)
	}
	admin := &bootstrapv3.Admin{Address: addr.envoy(socketMode), IgnoreGlobalConnLimit: true}
	for _, p := range paths {
		admin.AllowPaths = append(admin.AllowPaths, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}})
	}
	return admin, nil
}

// YAML renders a bootstrap as a YAML file for Envoy. Equal bootstraps have equal text.
func YAML(b *bootstrapv3.Bootstrap) ([]byte, error) {
	out, err := yamlof.Message(b)
	if err != nil {
		return nil, fmt.Errorf("writing the bootstrap as YAML: %w", err)
	}
	return out, nil
}

// JSON renders a bootstrap as JSON. Equal bootstraps have equal text.
func JSON(b *bootstrapv3.Bootstrap) ([]byte, error) {
	out, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("writing the bootstrap as JSON: %w", err)
	}
	var indented bytes.Buffer // protojson varies its spaces between builds, on purpose
	if err := json.Indent(&indented, out, "", "  "); err != nil {
		return nil, fmt.Errorf("writing the bootstrap as JSON: %w", err)
	}
	indented.WriteByte('\n')
	return indented.Bytes(), nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
