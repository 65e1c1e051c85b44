package xds

import (
	"cmp"
	"net"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/definitions"
)

// collectorName is the cluster that spans are sent to.
const collectorName = "spans"

// traces reports whether Envoy makes spans.
func (b *builder) traces() bool { return b.opts.Tracing != nil }

// describes reports whether a request's decision is written down: in a line of the access log, or in a span.
func (b *builder) describes() bool { return b.logs() || b.traces() }

// tracing makes a span of each sampled request, one for the upstream, and one for the check. ext_authz and the router
// send the parent along. The tags with the path would have the query, which may contain a token, so they are replaced.
func (b *builder) tracing() *hcmv3.HttpConnectionManager_Tracing {
	if !b.traces() {
		return nil
	}
	all := &typev3.Percent{Value: 100}
	return &hcmv3.HttpConnectionManager_Tracing{
		ClientSampling:    all,
		RandomSampling:    &typev3.Percent{Value: 100 * b.opts.Tracing.Sample},
		OverallSampling:   all,
		SpawnUpstreamSpan: wrapperspb.Bool(true),
		Operation:         formatMethod + " %ROUTE_NAME%",
		UpstreamOperation: formatMethod + " %ROUTE_NAME%",
		CustomTags: []*tracingv3.CustomTag{
			tag("http.url", "%REQ(:SCHEME)%://"+ofHeader(":AUTHORITY")+formatPath),
			tag("url.path", formatPath),
			tag("client.address", formatClient),
			tag("gatepost.service", formatService),
			tag("gatepost.decision", formatDecision),
			tag("gatepost.reason", formatReason),
		},
		Provider: &tracev3.Tracing_Http{
			Name: "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: b.pack(&tracev3.OpenTelemetryConfig{
				GrpcService: &corev3.GrpcService{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: collectorName}},
					Timeout:         durationpb.New(connectTimeout),
				},
				ServiceName: b.opts.Tracing.Service + "-envoy",
			})},
		},
	}
}

func tag(name, value string) *tracingv3.CustomTag {
	return &tracingv3.CustomTag{Tag: name, Type: &tracingv3.CustomTag_Value{Value: value}}
}

// untraced is the setting of a route of which no spans are made; nil if there are none anyway.
func (b *builder) untraced() *routev3.Tracing {
	if !b.traces() {
		return nil
	}
	never := &typev3.FractionalPercent{}
	return &routev3.Tracing{ClientSampling: never, RandomSampling: never, OverallSampling: never}
}

// collector is the cluster of the collector of spans.
func (b *builder) collector() *clusterv3.Cluster {
	t := b.opts.Tracing
	to := definitions.Upstream{Scheme: definitions.SchemeH2C, Host: t.Host, Port: t.Port, IsIP: net.ParseIP(t.Host) != nil}
	if t.TLS {
		to.Scheme = definitions.SchemeHTTPS
	}
	roots := b.opts.CAFile
	b.opts.CAFile = cmp.Or(t.CAFile, roots)
	c := b.upstreamsOf(&service{def: &definitions.Service{Upstreams: []definitions.Upstream{to}}})
	b.opts.CAFile = roots
	c.Name, c.AltStatName, c.CircuitBreakers = collectorName, "", nil // the limits of Envoy, not those of a service
	b.validate(c)
	return c
}
