package xds

import (
	"cmp"
	"time"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	ratelimitconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/ratelimit/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"gatepost/definitions"
	"gatepost/ratelimit"
)

// Limits that all gateways count together are counted by Gatepost, in Redis (package ratelimit). The listener has two
// filters for them if there is a Redis, beside those of Envoy's own limits. A route brings what they run, so that
// a change of a service touches no listener, and what becomes of a request that cannot be counted can differ. (Envoy
// docs, "Composite filter" and "Rate limit".)
//
// The filters are in every listener of a gateway with Redis, for the reason that those of Envoy's own limits are. They
// cost each request 0.5 % of Envoy's instructions. Virtual hosts disable them, and routes with such limits enable them.
// As with the scope filter, a request whose first route is found by that filter passes them, and they then read its
// final route.
const (
	filterClusterLimits     = "cluster_limits"
	filterClusterUserLimits = "cluster_user_limits"
	// filterGatewayClusterLimits is in the listener only if the gateway has such limits.
	filterGatewayClusterLimits = "gateway_cluster_limits"
)

// clusterLimitFilters are the filters by the stage of their limits.
var clusterLimitFilters = [...]string{filterClusterLimits, filterClusterUserLimits}

// clusterTimeout is how long Envoy waits for Gatepost to count a request. Gatepost's own timeout for Redis is shorter.
const clusterTimeout = 250 * time.Millisecond

// noClusterLimits is a filter in the listener.
func (b *builder) noClusterLimits() *anypb.Any { return b.pack(new(compositev3.Composite)) }

// clusterLimits are the settings of a service's routes for the filters of its limits. :: filter → setting
func (b *builder) clusterLimits(s *definitions.Service) map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	for stage, filter := range clusterLimitFilters {
		var limits []definitions.RateLimit
		for _, l := range s.RateLimits {
			if stageOf(l) == stage {
				limits = append(limits, l)
			}
		}
		if definitions.HasLimits(limits, true) {
			out[filter] = b.pack(&compositev3.CompositePerRoute{Matcher: b.run(filter, b.clusterLimiter("service "+s.Name, limits))})
		}
	}
	return out
}

// run is the matcher by which a filter runs another one for each request.
func (b *builder) run(name string, config *anypb.Any) *xdsmatcherv3.Matcher {
	return &xdsmatcherv3.Matcher{OnNoMatch: &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
		Action: &xdscorev3.TypedExtensionConfig{Name: "run", TypedConfig: b.pack(&compositev3.ExecuteFilterAction{
			TypedConfig: &corev3.TypedExtensionConfig{Name: name, TypedConfig: config},
		})},
	}}}
}

// clusterLimiter is a filter that has Gatepost count requests for the limits of the cluster among these. domain names
// what has the limits.
func (b *builder) clusterLimiter(domain string, limits []definitions.RateLimit) *anypb.Any {
	if !b.opts.ClusterLimits {
		b.fail(errNoClusterLimits)
	}
	config := &ratelimitv3.RateLimit{
		Domain:  domain,
		Timeout: durationpb.New(cmp.Or(b.opts.ClusterTimeout, clusterTimeout)),
		RateLimitService: &ratelimitconfigv3.RateLimitServiceConfig{
			TransportApiVersion: corev3.ApiVersion_V3,
			GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: b.opts.GRPCCluster},
			}},
		},
		StatusOnError:                  &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		RateLimitedAsResourceExhausted: true,
		DisableXEnvoyRatelimitedHeader: true, // Gatepost returns the headers that Envoy's own limits set
	}
	for _, l := range limits {
		if !l.Cluster {
			continue
		}
		config.FailureModeDeny = config.FailureModeDeny || l.RefuseWithoutRedis
		config.RateLimits = append(config.RateLimits, b.countedByCluster(l)...)
	}
	return b.pack(config)
}

// countedByCluster names the counter of a limit that counts a request.
func (b *builder) countedByCluster(l definitions.RateLimit) []*routev3.RateLimit {
	by := l.By
	if l.Header != "" { // a header can be called user, and clients choose its value
		by = "header:" + l.Header
	}
	text := ratelimit.Limit{Requests: l.Requests, Per: l.Per, Burst: l.Burst, By: by, Refuse: l.RefuseWithoutRedis, Headers: b.gw.RateLimitHeaders}.String()
	if l.By == definitions.LimitByAddress {
		// Gatepost takes the /64 of an IPv6 address by itself, and IPv4 in IPv6 for IPv4.
		return []*routev3.RateLimit{{Actions: []*action{namedByText(text), wholeAddress()}}}
	}
	return b.countedBy(namedByText(text), l)
}
