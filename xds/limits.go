package xds

import (
	"cmp"
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
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/ratelimit"
)

// Rate limits are counted by two filters of the listener: before ext_authz, so that requests without a token count too,
// and after it for those by user, when the identity header has the user. The CORS filter is before both, so preflights
// do not count. The filters have no limits of their own. A scope has the buckets of all its services, and the metadata
// of a route names those that count its requests. So all routes of a service share them, under each of its hosts, and a
// change of a limit touches no other scope, no connection and no listener. (Envoy docs, "Local rate limit". Its filter
// will not read the rate_limits of routes in a later version.)
//
// Virtual hosts and routes without limits disable the filters. As with the scope filter, a request whose first
// route is found by that filter passes them, and they then read its final route. The filters are in every listener,
// although they cost each request up to 1 % of Envoy's instructions: a listener that got them with the first limit
// would close all connections, at a time when somebody needs a limit.
const (
	filterLimits     = "limits"
	filterUserLimits = "user_limits"
)

// limitFilters are the filters by the stage of their limits.
var limitFilters = [...]string{filterLimits, filterUserLimits}

// stageOf returns the stage of a limit.
func stageOf(l definitions.RateLimit) int {
	if l.By == definitions.LimitByUser {
		return 1
	}
	return 0
}

// noLimits is a filter in the listener.
func (b *builder) noLimits() *anypb.Any {
	return b.pack(&localratelimitv3.LocalRateLimit{StatPrefix: "gatepost"})
}

// addLimits sets the buckets of a scope, and disables the filters for the routes that have no limits.
func (b *builder) addLimits(scope *routev3.RouteConfiguration, services []*service) {
	for stage, filter := range limitFilters {
		buckets := b.buckets(stage, services)
		if buckets == nil {
			continue
		}
		if scope.TypedPerFilterConfig == nil {
			scope.TypedPerFilterConfig = map[string]*anypb.Any{}
		}
		scope.TypedPerFilterConfig[filter] = buckets
		for _, vhost := range scope.GetVirtualHosts() {
			delete(vhost.GetTypedPerFilterConfig(), filter)
			for _, route := range vhost.GetRoutes() {
				if route.GetMetadata().GetFilterMetadata()[filter] == nil {
					route.TypedPerFilterConfig[filter] = b.disabled()
				}
			}
		}
	}
}

// isLimitedScope reports whether a service has limits that are counted in Envoy.
func isLimitedScope(services []*service) bool {
	return slices.ContainsFunc(services, func(s *service) bool { return definitions.HasLimits(s.def.RateLimits, false) })
}

// unlimited is a bucket that is never empty. Envoy requires one for requests that no limit counts.
var unlimited = &typev3.TokenBucket{MaxTokens: 1 << 31, TokensPerFill: wrapperspb.UInt32(1 << 31), FillInterval: durationpb.New(time.Second)}

// placed is a limit of a service that Envoy counts.
type placed struct {
	definitions.RateLimit
	// name is that of the limit in its scope. Limits of other services that count the same have the same place, under
	// which the metadata of a route has the name.
	name, place string
}

// placedLimits are the limits of a service that Envoy counts in a stage.
func placedLimits(service string, limits []definitions.RateLimit, stage int) (out []placed) {
	alike := map[string]int{}
	for i, l := range limits {
		if !l.Cluster && stageOf(l) == stage {
			counts := cmp.Or(l.By, "header "+l.Header)
			out = append(out, placed{l, limitName(service, i), limitName(counts, alike[counts])})
			alike[counts]++
		}
	}
	return out
}

// nameLimits adds the names of a service's limits to the metadata of its routes, for namedByRoute.
func nameLimits(service string, limits []definitions.RateLimit, metadata map[string]*structpb.Struct) {
	for stage, filter := range limitFilters {
		for _, l := range placedLimits(service, limits, stage) {
			if metadata[filter] == nil {
				metadata[filter] = &structpb.Struct{Fields: map[string]*structpb.Value{}}
			}
			metadata[filter].Fields[l.place] = structpb.NewStringValue(l.name)
		}
	}
}

// buckets are the token buckets of all limits of a stage in a scope; nil if there is none. The only limit needs no name
// if clients are counted apart, because other routes disable the filter. That takes a request 1,000 instructions less.
func (b *builder) buckets(stage int, services []*service) *anypb.Any {
	var all []placed
	for _, s := range services {
		all = append(all, placedLimits(s.def.Name, s.def.RateLimits, stage)...)
	}
	config, counted := b.limiter(), map[string]bool{}
	for _, l := range all {
		byRoute := namedByRoute(limitFilters[stage], l.place)
		if len(all) == 1 && l.By != definitions.LimitByService {
			l.name, byRoute = "", nil
		}
		config.Descriptors = append(config.Descriptors, b.bucketsOf(l.name, l.RateLimit)...)
		if !counted[l.place] {
			counted[l.place] = true
			config.RateLimits = append(config.RateLimits, b.countedBy(byRoute, l.RateLimit)...)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return b.pack(config)
}

// limiter is a filter that counts requests, without its buckets.
func (b *builder) limiter() *localratelimitv3.LocalRateLimit {
	always := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
	config := &localratelimitv3.LocalRateLimit{
		StatPrefix: "gatepost", FilterEnabled: always, FilterEnforced: always,
		TokenBucket: unlimited, AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false),
		// Envoy's default is 20. With more clients than that none would be limited.
		MaxDynamicDescriptors:  wrapperspb.UInt32(definitions.MaxCounters),
		EnableRetryAfterHeader: true,

		RateLimitedAsResourceExhausted: true,
	}
	if b.gw.RateLimitHeaders { // they are 1.6 % of Envoy's instructions for a warm request
		config.EnableXRatelimitHeaders = ratelimitv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03
	}
	return config
}

// filterGatewayLimits is the filter of the gateway's own limits. It is in the listener only if there are some.
const filterGatewayLimits = "gateway_limits"

// gatewayLimits is the filter of the gateway's own limits, whose buckets all scopes share. Each filter chain has its
// own buckets. Filter chains share those of a scope, but a request is in that of its path: to count it in another one,
// Envoy would have to find its route three times. (share_key in Envoy 1.40 is for connections, not for requests.)
func (b *builder) gatewayLimits() *anypb.Any {
	config := b.limiter()
	for i, l := range b.gw.RateLimits {
		if l.Cluster {
			continue
		}
		name := limitName("gateway", i)
		config.Descriptors = append(config.Descriptors, b.bucketsOf(name, l)...)
		config.RateLimits = append(config.RateLimits, b.countedBy(namedByText(name), l)...)
	}
	return b.pack(config)
}

// limitKey is the key of the entry that names the limit.
const limitKey = ratelimit.KeyLimit

// limitName names a limit within its scope.
func limitName(of string, i int) string { return of + " " + strconv.Itoa(i) }

// The keys of the second entries, which name a client. Those of other actions than by header are Envoy's.
const (
	addressKey = ratelimit.KeyAddress
	maskedKey  = "masked_remote_address"
	valueKey   = "value"
	noValueKey = "header_match"
	mapped4    = "mapped"
)

// bucketsOf are the buckets of a limit, whose name may be empty. An entry without a value is a bucket for each value.
func (b *builder) bucketsOf(name string, l definitions.RateLimit) (out []*ratelimitv3.LocalRateLimitDescriptor) {
	type entry = ratelimitv3.RateLimitDescriptor_Entry
	add := func(entries ...*entry) {
		if name != "" {
			entries = append([]*entry{{Key: limitKey, Value: name}}, entries...)
		}
		out = append(out, &ratelimitv3.LocalRateLimitDescriptor{
			Entries: entries,
			TokenBucket: &typev3.TokenBucket{
				MaxTokens: uint32(l.Burst), TokensPerFill: wrapperspb.UInt32(uint32(l.Requests)), FillInterval: durationpb.New(l.Per),
			},
		})
	}
	switch l.By {
	case definitions.LimitByService, definitions.LimitByGateway:
		add()
	case definitions.LimitByAddress:
		if b.onlyIPv4() {
			add(&entry{Key: addressKey})
			break
		}
		if !b.believesProxies() {
			add(&entry{Key: maskedKey})
			break
		}
		add(&entry{Key: noValueKey, Value: mapped4}, &entry{Key: maskedKey})
		add(&entry{Key: noValueKey, Value: mapped4}, &entry{Key: valueKey})
	case definitions.LimitByUser:
		add(&entry{Key: valueKey})
	default:
		add(&entry{Key: valueKey})
		add(&entry{Key: noValueKey, Value: noValueKey})
	}
	return out
}

// action is a part of the name of a bucket.
type action = routev3.RateLimit_Action

// namedByText names a limit.
func namedByText(limit string) *action {
	return &action{ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{
		GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorKey: limitKey, DescriptorValue: limit},
	}}
}

// namedByRoute names the limit that the route has at a place of its metadata. If it has none there, there is no bucket.
func namedByRoute(filter, place string) *action {
	return &action{ActionSpecifier: &routev3.RateLimit_Action_Metadata{Metadata: &routev3.RateLimit_Action_MetaData{
		DescriptorKey: limitKey,
		Source:        routev3.RateLimit_Action_MetaData_ROUTE_ENTRY,
		MetadataKey: &metadatav3.MetadataKey{Key: filter, Path: []*metadatav3.MetadataKey_PathSegment{{
			Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: place},
		}}},
	}}}
}

// countedBy names the bucket of a limit that counts a request. The limit may have no name.
func (b *builder) countedBy(limit *action, l definitions.RateLimit) (out []*routev3.RateLimit) {
	add := func(actions ...*action) {
		if limit != nil {
			actions = append([]*action{limit}, actions...)
		}
		out = append(out, &routev3.RateLimit{Actions: actions})
	}
	switch l.By {
	case definitions.LimitByService, definitions.LimitByGateway:
		add()
	case definitions.LimitByAddress:
		if b.onlyIPv4() {
			add(wholeAddress())
			break
		}
		if !b.believesProxies() {
			add(countAddress())
			break
		}
		add(countMapped(false), countAddress())
		add(countMapped(true), countHeader(convention.HeaderClientAddress))
	case definitions.LimitByUser:
		add(countHeader(b.gw.Identity.UserHeader))
	default:
		add(b.countValue(l.Header))
		add(countMissing(l.Header))
	}
	return out
}

// onlyIPv4 reports whether all clients have IPv4 addresses.
func (b *builder) onlyIPv4() bool {
	return !b.believesProxies() && b.opts.ListenAddress(b.gw).Addr().Is4() && (b.gw.TLS == nil || b.gw.TLS.Listen.Addr().Is4())
}

// wholeAddress names the client's address as it is, which takes 1,600 instructions less than with a mask.
func wholeAddress() *action {
	return &action{ActionSpecifier: &routev3.RateLimit_Action_RemoteAddress_{RemoteAddress: new(routev3.RateLimit_Action_RemoteAddress)}}
}

// countAddress names the client's address. A client with IPv6 has a whole /64, as in the limits of failed logins.
func countAddress() *action {
	return &action{ActionSpecifier: &routev3.RateLimit_Action_MaskedRemoteAddress_{
		MaskedRemoteAddress: &routev3.RateLimit_Action_MaskedRemoteAddress{V4PrefixMaskLen: wrapperspb.UInt32(32), V6PrefixMaskLen: wrapperspb.UInt32(64)},
	}}
}

// countMapped names the requests of all clients with an IPv4 address in IPv6, or of all others. Only trusted proxies
// write such addresses, and all of them are in one /64. The header is that of nameClient.
func countMapped(is bool) *action {
	return &action{ActionSpecifier: &routev3.RateLimit_Action_HeaderValueMatch_{
		HeaderValueMatch: &routev3.RateLimit_Action_HeaderValueMatch{
			DescriptorValue: mapped4, ExpectMatch: wrapperspb.Bool(is),
			Headers: []*routev3.HeaderMatcher{{
				Name: convention.HeaderClientAddress,
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
					MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "::ffff:"},
				}},
			}},
		},
	}}
}

// countHeader names the value of a header that the gateway sets. Without the header there is no such bucket.
func countHeader(name string) *action {
	return &action{ActionSpecifier: &routev3.RateLimit_Action_RequestHeaders_{
		RequestHeaders: &routev3.RateLimit_Action_RequestHeaders{HeaderName: name, DescriptorKey: valueKey},
	}}
}

// countValue is countHeader for a header of clients. All requests with several values of it, in one line or more, are
// counted as one value: Envoy's own action takes the first line. An upstream that takes another would not be protected.
func (b *builder) countValue(name string) *action {
	value := fmt.Sprintf("request.headers[%q]", name) // without the header an error, and no such bucket
	return &action{ActionSpecifier: &routev3.RateLimit_Action_Extension{
		Extension: &corev3.TypedExtensionConfig{Name: "value", TypedConfig: b.pack(&exprv3.Descriptor{
			DescriptorKey: valueKey,
			ExprSpecifier: &exprv3.Descriptor_Text{Text: fmt.Sprintf("%[1]s.contains(',') ? ',' : %[1]s", value)},
		})},
	}}
}

// countMissing names all requests without a header.
func countMissing(name string) *action {
	return &action{ActionSpecifier: &routev3.RateLimit_Action_HeaderValueMatch_{
		HeaderValueMatch: &routev3.RateLimit_Action_HeaderValueMatch{
			DescriptorValue: noValueKey,
			ExpectMatch:     wrapperspb.Bool(false),
			Headers:         []*routev3.HeaderMatcher{{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}},
		},
	}}
}

// repeatsLimitHeaders reports whether several filters add X-RateLimit-* to responses of a service with these limits.
func (b *builder) repeatsLimitHeaders(of []definitions.RateLimit) bool {
	type filter struct {
		gateway, cluster bool
		stage            int
	}
	filters := map[filter]bool{}
	for _, l := range of {
		filters[filter{false, l.Cluster, stageOf(l)}] = true
	}
	for _, l := range b.gw.RateLimits {
		filters[filter{true, l.Cluster, 0}] = true
	}
	return b.gw.RateLimitHeaders && len(filters) > 1
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
var limitHeaders = []string{"retry-after", ratelimit.HeaderLimit, ratelimit.HeaderRemaining, ratelimit.HeaderReset}
