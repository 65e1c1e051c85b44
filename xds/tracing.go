package xds

import (
	"cmp"
	"fmt"
	"net"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/tracing"
)

// The clusters that spans and the access log are sent to.
const (
	spansCluster = "spans"
	logsCluster  = "logs"
)

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
			tag("http.url", "%REQ(:SCHEME)%://"+plainText.header(":AUTHORITY")+plainText.path),
			tag("url.path", plainText.path),
			tag("user_agent", plainTag("USER-AGENT")),
			tag("guid:x-request-id", plainTag(convention.HeaderRequestID)),
			tag("client.address", formatClient),
			tag(authz.AttributeService, formatService),
			tag(authz.AttributeDecision, refused.decision),
			tag(authz.AttributeReason, refused.reason),
			tag("gatepost.version", formatVersion),
		},
		Provider: &tracev3.Tracing_Http{
			Name: "envoy.tracers.opentelemetry",
			ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: b.pack(&tracev3.OpenTelemetryConfig{
				GrpcService: collectorService(spansCluster),
				ServiceName: serviceName(b.opts.Tracing),
			})},
		},
	}
}

// plainTag replaces Envoy's own tag with a header. If its value is not ASCII, the tag is "not ASCII": without a value
// Envoy would keep its own tag, and a collector would refuse the whole batch, with the spans of other clients.
func plainTag(header string) string {
	value := "request.headers['" + strings.ToLower(header) + "']"
	return one(operator{Command: "CEL", Param: fmt.Sprintf("%[1]s.matches('^[ -~]*$') ? %[1]s : 'not ASCII'", value)})
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

// serviceName is Envoy's name in what it sends to a collector.
func serviceName(s *tracing.Settings) string { return s.Service + "-envoy" }

// collectorService is how Envoy calls the collector of a cluster.
func collectorService(cluster string) *corev3.GrpcService {
	return &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cluster}},
		Timeout:         durationpb.New(connectTimeout),
	}
}

// collectors are the clusters of the collectors of spans and of the access log, by name.
func (b *builder) collectors() map[string]*resource {
	all := map[string]*resource{}
	if b.traces() {
		all[spansCluster] = b.finish(b.collector(spansCluster, b.opts.Tracing))
	}
	if b.exportsLog() && b.opts.Logs != nil {
		all[logsCluster] = b.finish(b.collector(logsCluster, b.opts.Logs))
	}
	return all
}

func (b *builder) collector(name string, s *tracing.Settings) *clusterv3.Cluster {
	to := definitions.Upstream{Scheme: definitions.SchemeH2C, Host: s.Host, Port: s.Port, IsIP: net.ParseIP(s.Host) != nil}
	if s.TLS {
		to.Scheme = definitions.SchemeHTTPS
	}
	roots := b.opts.CAFile
	b.opts.CAFile = cmp.Or(s.CAFile, roots)
	c := b.upstreamsOf(&service{def: &definitions.Service{Upstreams: []definitions.Upstream{to}}})
	b.opts.CAFile = roots
	c.Name, c.AltStatName, c.CircuitBreakers = name, "", nil // the limits of Envoy, not those of a service
	return c
}
