package xds

import (
	"time"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/definitions"
)

// The names of the filters, which are also the keys of a route's settings for them.
const (
	filterCORS   = "cors"
	filterStrip  = "strip"
	filterAuthz  = "authz"
	filterRouter = "envoy.filters.http.router"
)

// authzTimeout is how long Envoy waits for a decision. Gatepost's own timeout is shorter, so that the client gets its
// response.
const authzTimeout = 2 * time.Second

// httpFilters are the filters in their order. The first one finds a route for a request without one. CORS is before
// the filters that can deny a request, so that it answers preflights without a token, and pages can read denials.
func (b *builder) httpFilters(https bool) []*hcmv3.HttpFilter {
	var all []*hcmv3.HttpFilter
	if b.describes() {
		all = append(all, b.keepPath())
	}
	all = append(all,
		httpFilter(filterScope, b.findScope()),
		httpFilter(filterCORS, b.pack(&corsv3.Cors{})),
		httpFilter(filterStrip, b.pack(&headermutationv3.HeaderMutation{Mutations: b.stripAll(https)})))
	if definitions.HasLimits(b.gw.RateLimits, false) {
		all = append(all, httpFilter(filterGatewayLimits, b.gatewayLimits()))
	}
	if definitions.HasLimits(b.gw.RateLimits, true) {
		all = append(all, httpFilter(filterGatewayClusterLimits, b.clusterLimiter("gateway", b.gw.RateLimits)))
	}
	all = append(all, httpFilter(filterLimits, b.noLimits()))
	if b.opts.ClusterLimits {
		all = append(all, httpFilter(filterClusterLimits, b.noClusterLimits()))
	}
	if b.hasModule() {
		all = append(all, b.module())
	}
	all = append(all,
		httpFilter(filterAuthz, b.pack(b.extAuthz())),
		httpFilter(filterOwnToken, b.ownTokenFilter()),
		httpFilter(filterUserLimits, b.noLimits()))
	if b.opts.ClusterLimits {
		all = append(all, httpFilter(filterClusterUserLimits, b.noClusterLimits()))
	}
	return append(all,
		// Without x-envoy-* headers, which would contain the path before the rewrite and the upstream's duration.
		httpFilter(filterRouter, b.pack(&routerv3.Router{SuppressEnvoyHeaders: true})))
}

func httpFilter(name string, config *anypb.Any) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}}
}

// disabled is the setting by which a route, or a scope, disables a filter. Envoy reads it of the route that it finds
// first, so a request whose route the scope filter has found passes the filter.
func (b *builder) disabled() *anypb.Any { return b.pack(&routev3.FilterConfig{Disabled: true}) }

// extAuthz asks the sidecar about each request, unless its route says that there is nothing to ask.
// It fails closed: no answer is 503, and an answer that Envoy cannot carry out is an error, not a pass.
// clear_route_cache stays off: a request must not come to a route that it was not checked for.
func (b *builder) extAuthz() *extauthzv3.ExtAuthz {
	config := &extauthzv3.ExtAuthz{
		Services:            &extauthzv3.ExtAuthz_GrpcService{GrpcService: b.sidecar()},
		TransportApiVersion: corev3.ApiVersion_V3,
		FailureModeAllow:    false,
		StatusOnError:       &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		ValidateMutations:   true,
		AllowedHeaders:      exactly(b.checkedHeaders()),
		// The sidecar adds and removes headers, and never a path, a method or a host. Of x-envoy-* it has one.
		DecoderHeaderMutationRules: &mutationrulesv3.HeaderMutationRules{
			AllowExpression: &matcherv3.RegexMatcher{Regex: "^" + authz.HeaderStreamDuration + "$"},
			DisallowSystem:  wrapperspb.Bool(true),
			DisallowIsError: wrapperspb.Bool(true),
		},
		MaxDeniedResponseBodyBytes: 8 << 10,
	}
	if b.hasModule() {
		config.FilterEnabledMetadata = unlessHit()
		config.Services = &extauthzv3.ExtAuthz_HttpService{HttpService: nobody()}
		config.DisallowedHeaders = exactly([]string{":method", ":path", ":authority"}) // a Check has them anyway
	}
	return config
}

// sidecar is how Envoy asks Gatepost. It leaves out the headers with Envoy's address, which nothing reads: a seventh of
// what a check makes Gatepost allocate.
func (b *builder) sidecar() *corev3.GrpcService {
	return &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: b.opts.GRPCCluster, SkipEnvoyHeaders: true,
		}},
		Timeout: durationpb.New(authzTimeout),
	}
}

// nobody is the filter's own service if there is the module. For one of gRPC Envoy would prepare a client for each
// request, although it asks about few: 9,000 instructions. So only the routes name Gatepost, and Envoy prepares the
// client for a Check. A request on a route that does not name Gatepost gets no decision here, and does not pass.
func nobody() *extauthzv3.HttpService {
	return &extauthzv3.HttpService{ServerUri: &corev3.HttpUri{
		Uri:              "http://" + blackhole,
		HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: blackhole},
		Timeout:          durationpb.New(authzTimeout),
	}}
}

func exactly(values []string) *matcherv3.ListStringMatcher {
	l := &matcherv3.ListStringMatcher{}
	for _, v := range values {
		l.Patterns = append(l.Patterns, exact(v))
	}
	return l
}

func exact(value string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}}
}
