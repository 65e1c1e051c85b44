package xds

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/ratelimit"
)

// Rate limits are counted by two filters of the listener: before ext_authz, so that requests without a token count too,
// and after it for those by user, when the identity header has the user. The CORS filter is before both, so preflights
// do not count. The filters have no limits of their own. A scope has the buckets of all its services, and a route names
// those that count its requests. So all routes of a service share them, under each of its hosts, and a change of a
// limit touches no other scope, no connection and no listener. (Envoy docs, "Local rate limit".)
//
// Virtual hosts and routes without limits disable the filters. As with the scope filter, a request whose first
// route is found by that filter passes them, and they then read its final route. The filters are in every listener,
// although they cost each request up to 1 % of Envoy's instructions: a listener that got them with the first limit
// would close all connections, at a time when somebody needs a limit.
const (
	filterLimits     = "limits"
	filterUserLimits = "user_limits"
)

// limitFilters are the filters with their stages. A route's limits name the stage that counts them.
var limitFilters = []struct {
	name  string
	stage uint32
}{{filterLimits, 0}, {filterUserLimits, 1}}

// stageOf returns the stage of a limit.
func stageOf(l definitions.RateLimit) uint32 {
	if l.By == definitions.LimitByUser {
		return 1
	}
	return 0
}

// noLimits is a filter in the listener.
func (b *builder) noLimits(stage uint32) *anypb.Any {
	return b.pack(&localratelimitv3.LocalRateLimit{StatPrefix: "gatepost", Stage: stage})
}

// addLimits sets the buckets of a scope, and disables the filters for the routes that have no limits.
func (b *builder) addLimits(scope *routev3.RouteConfiguration, services []*service) {
	for _, filter := range limitFilters {
		buckets := b.buckets(filter.stage, services)
		if buckets == nil {
			continue
		}
		if scope.TypedPerFilterConfig == nil {
			scope.TypedPerFilterConfig = map[string]*anypb.Any{}
		}
		scope.TypedPerFilterConfig[filter.name] = buckets
		for _, vhost := range scope.GetVirtualHosts() {
			delete(vhost.GetTypedPerFilterConfig(), filter.name)
			for _, route := range vhost.GetRoutes() {
				if !isLimited(route, filter.stage) {
					route.TypedPerFilterConfig[filter.name] = b.disabled()
				}
			}
		}
	}
}

func isLimited(route *routev3.Route, stage uint32) bool {
	for _, l := range route.GetRoute().GetRateLimits() {
		if l.GetStage().GetValue() == stage {
			return true
		}
	}
	return false
}

// isLimitedScope reports whether a service has limits that are counted in Envoy.
func isLimitedScope(services []*service) bool {
	return slices.ContainsFunc(services, func(s *service) bool { return hasLimits(s.def.RateLimits, false) })
}

// hasLimits reports whether there are limits of the cluster, or others.
func hasLimits(limits []definitions.RateLimit, cluster bool) bool {
	return slices.ContainsFunc(limits, func(l definitions.RateLimit) bool { return l.Cluster == cluster })
}

// unlimited is a bucket that is never empty. Envoy requires one for requests that no limit counts.
var unlimited = &typev3.TokenBucket{MaxTokens: 1 << 31, TokensPerFill: wrapperspb.UInt32(1 << 31), FillInterval: durationpb.New(time.Second)}

// buckets are the token buckets of all limits of a stage in a scope; nil if there is none.
func (b *builder) buckets(stage uint32, services []*service) *anypb.Any {
	var all []*ratelimitv3.LocalRateLimitDescriptor
	for _, s := range services {
		for i, l := range s.def.RateLimits {
			if !l.Cluster && stageOf(l) == stage {
				all = append(all, b.bucketsOf(limitName(s.def.Name, i), l)...)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	return b.pack(limiter(stage, all))
}

// limiter is a filter that counts requests in the buckets.
func limiter(stage uint32, all []*ratelimitv3.LocalRateLimitDescriptor) *localratelimitv3.LocalRateLimit {
	always := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
	return &localratelimitv3.LocalRateLimit{
		StatPrefix: "gatepost", Stage: stage, FilterEnabled: always, FilterEnforced: always,
		TokenBucket: unlimited, AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false), Descriptors: all,
		// Envoy's default is 20. With more clients than that none would be limited.
		MaxDynamicDescriptors: wrapperspb.UInt32(definitions.MaxCounters),
		// They are 2 % of Envoy's instructions for a warm request. With them a client can slow down before it gets 429.
		EnableXRatelimitHeaders: ratelimitv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03,
		EnableRetryAfterHeader:  true,

		RateLimitedAsResourceExhausted: true,
	}
}

// filterGatewayLimits is the filter of the gateway's own limits. It is in the listener only if there are some.
const filterGatewayLimits = "gateway_limits"

// gatewayLimits is the filter of the gateway's own limits, whose buckets all scopes share.
func (b *builder) gatewayLimits() *anypb.Any {
	config := limiter(0, nil)
	for i, l := range b.gw.RateLimits {
		if l.Cluster {
			continue
		}
		name := limitName("gateway", i)
		config.Descriptors = append(config.Descriptors, b.bucketsOf(name, l)...)
		config.RateLimits = append(config.RateLimits, b.countedBy(name, l)...)
	}
	for _, l := range config.GetRateLimits() {
		l.Stage = nil // which this form does not support
	}
	return b.pack(config)
}

// limitKey is the key of the entry that names the limit.
const limitKey = ratelimit.KeyLimit

// limitName names a limit within its scope.
func limitName(of string, i int) string { return of + " " + strconv.Itoa(i) }

// The keys of the second entries, which name a client. Those of other actions than by header are Envoy's.
const (
	addressKey = "masked_remote_address"
	valueKey   = "value"
	noValueKey = "header_match"
	mapped4    = "mapped"
)

// bucketsOf are the buckets of a limit. A further entry without a value is a bucket for each value.
func (b *builder) bucketsOf(name string, l definitions.RateLimit) (out []*ratelimitv3.LocalRateLimitDescriptor) {
	type entry = ratelimitv3.RateLimitDescriptor_Entry
	of := func(more ...*entry) {
		out = append(out, &ratelimitv3.LocalRateLimitDescriptor{
			Entries: append([]*entry{{Key: limitKey, Value: name}}, more...),
			TokenBucket: &typev3.TokenBucket{
				MaxTokens: uint32(l.Burst), TokensPerFill: wrapperspb.UInt32(uint32(l.Requests)), FillInterval: durationpb.New(l.Per),
			},
		})
	}
	switch l.By {
	case definitions.LimitByService, definitions.LimitByGateway:
		of()
	case definitions.LimitByAddress:
		if !b.believesProxies() {
			of(&entry{Key: addressKey})
			break
		}
		of(&entry{Key: noValueKey, Value: mapped4}, &entry{Key: addressKey})
		of(&entry{Key: noValueKey, Value: mapped4}, &entry{Key: valueKey})
	case definitions.LimitByUser:
		of(&entry{Key: valueKey})
	default:
		of(&entry{Key: valueKey})
		of(&entry{Key: noValueKey, Value: noValueKey})
	}
	return out
}

// rateLimits name the buckets that count the requests of a service's routes.
func (b *builder) rateLimits(s *service) (out []*routev3.RateLimit) {
	for i, l := range s.def.RateLimits {
		if !l.Cluster {
			out = append(out, b.countedBy(limitName(s.def.Name, i), l)...)
		}
	}
	return out
}

// countedBy names the bucket of a limit that counts a request.
func (b *builder) countedBy(name string, l definitions.RateLimit) (out []*routev3.RateLimit) {
	of := func(more ...*routev3.RateLimit_Action) {
		named := &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{
			GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorKey: limitKey, DescriptorValue: name},
		}}
		out = append(out, &routev3.RateLimit{Stage: wrapperspb.UInt32(stageOf(l)), Actions: append([]*routev3.RateLimit_Action{named}, more...)})
	}
	switch l.By {
	case definitions.LimitByService, definitions.LimitByGateway:
		of()
	case definitions.LimitByAddress:
		if !b.believesProxies() {
			of(countAddress())
			break
		}
		of(countMapped(false), countAddress())
		of(countMapped(true), countHeader(authz.HeaderClientAddress))
	case definitions.LimitByUser:
		of(countHeader(b.gw.Identity.UserHeader))
	default:
		of(b.countValue(l.Header))
		of(countMissing(l.Header))
	}
	return out
}

// countAddress names the client's address. A client with IPv6 has a whole /64, as in the limits of failed logins.
func countAddress() *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_MaskedRemoteAddress_{
		MaskedRemoteAddress: &routev3.RateLimit_Action_MaskedRemoteAddress{V4PrefixMaskLen: wrapperspb.UInt32(32), V6PrefixMaskLen: wrapperspb.UInt32(64)},
	}}
}

// countMapped names the requests of all clients with an IPv4 address in IPv6, or of all others. Only trusted proxies
// write such addresses, and all of them are in one /64. The header is that of nameClient.
func countMapped(is bool) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_HeaderValueMatch_{
		HeaderValueMatch: &routev3.RateLimit_Action_HeaderValueMatch{
			DescriptorValue: mapped4, ExpectMatch: wrapperspb.Bool(is),
			Headers: []*routev3.HeaderMatcher{{
				Name: authz.HeaderClientAddress,
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
					MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "::ffff:"},
				}},
			}},
		},
	}}
}

// countHeader names the value of a header that the gateway sets. Without the header there is no such bucket.
func countHeader(name string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_RequestHeaders_{
		RequestHeaders: &routev3.RateLimit_Action_RequestHeaders{HeaderName: name, DescriptorKey: valueKey},
	}}
}

// countValue is countHeader for a header of clients. All requests with several values of it, in one line or more, are
// counted as one value: Envoy's own action takes the first line. An upstream that takes another would not be protected.
func (b *builder) countValue(name string) *routev3.RateLimit_Action {
	value := fmt.Sprintf("request.headers[%q]", name) // without the header an error, and no such bucket
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Extension{
		Extension: &corev3.TypedExtensionConfig{Name: "value", TypedConfig: b.pack(&exprv3.Descriptor{
			DescriptorKey: valueKey,
			ExprSpecifier: &exprv3.Descriptor_Text{Text: fmt.Sprintf("%[1]s.contains(',') ? ',' : %[1]s", value)},
		})},
	}}
}

// countMissing names all requests without a header.
func countMissing(name string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_HeaderValueMatch_{
		HeaderValueMatch: &routev3.RateLimit_Action_HeaderValueMatch{
			DescriptorValue: noValueKey,
			ExpectMatch:     wrapperspb.Bool(false),
			Headers:         []*routev3.HeaderMatcher{{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}},
		},
	}}
}

// repeatsLimitHeaders reports whether several filters count the requests of a service with these limits. Each adds its
// own X-RateLimit-* to the response.
func (b *builder) repeatsLimitHeaders(of []definitions.RateLimit) bool {
	type filter struct {
		gateway, cluster bool
		stage            uint32
	}
	filters := map[filter]bool{}
	for _, l := range of {
		filters[filter{false, l.Cluster, stageOf(l)}] = true
	}
	for _, l := range b.gw.RateLimits {
		filters[filter{true, l.Cluster, 0}] = true
	}
	return len(filters) > 1
}

// firstLimit keeps the first value of each X-RateLimit-*: RESP is the first one. It is that of the last filter that
// counted the request. If the response is a 429, that is the filter that refused it.
func firstLimit() (out []*mutationrulesv3.HeaderMutation) {
	for _, name := range limitHeaders[1:] { // not retry-after, which only a 429 has
		out = append(out, &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: name, Value: "%RESP(" + name + ")%"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS,
		}}})
	}
	return out
}

// limitHeaders are the response headers about rate limits.
var limitHeaders = []string{"retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
