package xds

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/cel/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/definitions"
)

// A scope contains the routes of all paths with the same first segment. Envoy finds it by that segment in a hash
// table, so a request is matched against the routes of one scope only, and a change of a service is sent as a change
// of its scope. (Envoy docs, "Scoped RDS".)
//
// Envoy's comparison of the segment is case-sensitive, so a scope exists in lower case and in the spelling of the
// definitions. If the spelling differs, or no route of the scope matches, the scope filter finds the route: in the
// scope of the segment in lower case, else in the scope of all other paths, whose name is "/". Within a scope, the
// hosts are virtual hosts (hosts.go).

// scopeHeader is the request header by which Envoy finds the scope: the path without its query. The gateway sets it
// before routes are matched, over the client's value, and the strip filter removes it. No upstream receives one of a
// client, and Envoy has a place for this header. To find or remove a header without one, it would first index all
// headers of the request.
const scopeHeader = "x-forwarded-host"

// filterScope is the scope filter (findScope).
const filterScope = "scope"

// scopes builds scopes.
type scopes struct {
	b        *builder
	clusters set // the clusters that routes can lead to
	// Parts of every scope, made once: the routes for malformed paths and hosts, and the setting that disables the scope
	// filter.
	malformed, malformedHost func() *routev3.Route
	found                    func() *anypb.Any
	rooted                   func() map[string]bool
}

func (b *builder) scopes(clusters set) *scopes {
	return &scopes{
		b: b, clusters: clusters,
		malformed: sync.OnceValue(b.rejectDotParams), malformedHost: sync.OnceValue(b.rejectHost),
		found: sync.OnceValue(b.disabled), rooted: sync.OnceValue(b.rooted),
	}
}

// firstSegment returns the part of a path between its first slash and its second.
func firstSegment(path string) string {
	segment, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return segment
}

// scopeOf returns the scope of a path: its first segment in lower case.
func scopeOf(path string) string { return strings.ToLower(firstSegment(path)) }

// changed builds the scopes of removed and added services, and the other scopes in which their hosts count. Resources
// that were removed are nil. It includes the beacon's scope, without the version. :: name → scope
func (s *scopes) changed(removed, added []*definitions.Service) map[string]*resource {
	out := s.of(scopeOf(definitions.VersionPath), nil)
	services := map[string][]*service{} // :: scope → all services in it
	changed := slices.Concat(removed, added)
	for _, def := range changed {
		services[scopeOf(def.Path)] = nil
		out["/"+firstSegment(def.Path)], out["/"+scopeOf(def.Path)] = nil, nil
	}
	for _, scope := range s.b.scopesAffected(changed) {
		services[scope] = nil
	}
	for _, def := range s.b.gw.Services {
		scope := scopeOf(def.Path)
		if those, asked := services[scope]; asked {
			services[scope] = append(those, s.b.service(def))
		}
	}
	for _, scope := range slices.Sorted(maps.Keys(services)) { // sorted for the order of errors
		maps.Copy(out, s.of(scope, services[scope]))
	}
	return out
}

// routes returns the routes of a virtual host in the order of matching. Envoy uses the first route that matches: the
// gateway's own, then the services in their order, then the one for all other paths.
func (s *scopes) routes(scope string, host *hostRoutes) (routes []*routev3.Route) {
	b := s.b
	add := func(path string, there bool, more func() []*routev3.Route) {
		if there && scopeOf(path) == scope {
			routes = append(routes, more()...)
		}
	}
	add(definitions.VersionPath, true, b.beacon)
	add(definitions.VersionPath, true, b.challengeRoutes)
	add(b.gw.Tokens.Path, host.tokens, b.tokenRoutes)
	for _, one := range host.services {
		add(one.path, true, func() []*routev3.Route { return b.serviceRoutes(one) })
	}
	add("/", host.name() == "/", b.catchAll) // otherwise the host has a service at "/", which takes all paths
	return routes
}

// spellings returns the spellings of a scope's segment: those of the definitions, and the one in lower case.
func (s *scopes) spellings(scope string, services []*service) (all []string) {
	paths := []string{definitions.VersionPath, s.b.gw.Tokens.Path, "/"}
	for _, one := range services {
		paths = append(paths, one.path)
	}
	for _, path := range paths {
		if scopeOf(path) == scope {
			all = append(all, firstSegment(path), scope)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// serviceRoutes are the routes of a service.
func (b *builder) serviceRoutes(s *service) []*routev3.Route {
	b.about = s.String()
	return b.groupRoutes(s.endpoints(b))
}

// of builds the resources of a scope with these services, one for each spelling. A scope without routes has none. Each
// is a scope with buckets of its own, so if there are rate limits, only the one in lower case is there, and the others
// are nil: they may have been there before. :: name → scope
func (s *scopes) of(scope string, services []*service) map[string]*resource {
	spellings := s.spellings(scope, services)
	if len(spellings) == 0 {
		return nil
	}
	hosts := s.hostsOf(scope, services)
	differ := byHost(hosts)
	guarded := differ || scope == scopeOf("/") && s.b.usesHosts()
	config := &routev3.RouteConfiguration{
		// Otherwise Envoy would reject all scopes if one route names a cluster that it does not have yet.
		ValidateClusters:         wrapperspb.Bool(false),
		IgnorePortInHostMatching: differ,
	}
	for _, host := range hosts {
		config.VirtualHosts = append(config.VirtualHosts, s.virtualHost(scope, host, guarded))
	}
	s.b.addLimits(config, services)
	out, limited := make(map[string]*resource, len(spellings)), isLimitedScope(services)
	for _, segment := range spellings {
		name := "/" + segment
		if limited && segment != scope {
			out[name] = nil
			continue
		}
		out[name] = s.b.finish(&routev3.ScopedRouteConfiguration{
			Name: name,
			Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
				Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: segment},
			}}},
			RouteConfiguration: config,
		})
	}
	return out
}

// share moves filter settings that all routes of a scope have in common to the scope. CORS settings only count on
// routes that forward.
func share(scope *routev3.VirtualHost, routes []*routev3.Route, unchecked *anypb.Any) {
	alike := func(filter string, asked []*routev3.Route) *anypb.Any {
		if len(asked) == 0 {
			return nil
		}
		first := asked[0].GetTypedPerFilterConfig()[filter]
		for _, r := range asked[1:] {
			if !proto.Equal(first, r.GetTypedPerFilterConfig()[filter]) {
				return nil
			}
		}
		return first
	}
	var forwarding []*routev3.Route
	for _, r := range routes {
		if r.GetRoute() != nil {
			forwarding = append(forwarding, r)
		}
	}
	shared := map[string]*anypb.Any{}
	if cors := alike(filterCORS, forwarding); cors != nil {
		shared[filterCORS] = cors
	}
	// Envoy merges a rule with that of the scope, so only the setting that disables the check can be shared.
	if rule := alike(filterAuthz, routes); rule != nil && proto.Equal(rule, unchecked) {
		shared[filterAuthz] = rule
	}
	for _, r := range routes {
		for filter := range shared {
			delete(r.GetTypedPerFilterConfig(), filter)
		}
	}
	maps.Copy(shared, scope.GetTypedPerFilterConfig())
	scope.TypedPerFilterConfig = shared
}

// lift moves what all routes to upstreams do alike to their virtual host: the headers that they remove, and their
// retries. With ten thousand services, each copy in a route takes megabytes of Envoy. Envoy applies the changes of a
// route before those of its virtual host, so routes that add headers, or remove others than identity, keep theirs.
func lift(vhost *routev3.VirtualHost, routes []*routev3.Route, identity string) {
	var alike []*routev3.Route
	for _, r := range routes {
		if to := r.GetRoute(); to == nil || to.GetCluster() == blackhole {
			continue
		}
		alike = append(alike, r)
		if len(r.GetRequestHeadersToAdd())+len(r.GetResponseHeadersToAdd()) > 0 ||
			!slices.Equal(r.GetRequestHeadersToRemove(), alike[0].GetRequestHeadersToRemove()) ||
			!slices.Equal(r.GetResponseHeadersToRemove(), []string{identity}) ||
			!proto.Equal(r.GetRoute().GetRetryPolicy(), alike[0].GetRoute().GetRetryPolicy()) {
			return
		}
	}
	for i, r := range alike {
		to := proto.CloneOf(r.GetRoute()) // other virtual hosts share it
		if i == 0 {
			vhost.RetryPolicy, vhost.RequestBodyBufferLimit = to.GetRetryPolicy(), r.GetRequestBodyBufferLimit()
			vhost.RequestHeadersToRemove = r.GetRequestHeadersToRemove()
			vhost.ResponseHeadersToRemove = append(vhost.GetResponseHeadersToRemove(), identity)
		}
		to.RetryPolicy, r.RequestBodyBufferLimit, r.RequestHeadersToRemove, r.ResponseHeadersToRemove = nil, nil, nil, nil
		r.Action = &routev3.Route_Route{Route: to}
	}
}

// scopedRoutes is the configuration by which the listener gets its routes.
func scopedRoutes() *hcmv3.HttpConnectionManager_ScopedRoutes {
	source := fromADS()
	// No timeout: a listener without routes must not open.
	source.InitialFetchTimeout = durationpb.New(0)
	return &hcmv3.HttpConnectionManager_ScopedRoutes{ScopedRoutes: &hcmv3.ScopedRoutes{
		Name: "gatepost",
		ScopeKeyBuilder: &hcmv3.ScopedRoutes_ScopeKeyBuilder{Fragments: []*hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder{{
			Type: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_{
				HeaderValueExtractor: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor{
					Name:             scopeHeader,
					ElementSeparator: "/",
					ExtractType:      &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_Index{Index: 1},
				},
			},
		}}},
		RdsConfigSource: source,
		ConfigSpecifier: &hcmv3.ScopedRoutes_ScopedRds{ScopedRds: &hcmv3.ScopedRds{ScopedRdsConfigSource: source}},
	}}
}

// fromADS has Envoy get resources on its stream to Gatepost.
func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// nameScope sets scopeHeader to the path without its query.
func nameScope() *mutationrulesv3.HeaderMutation {
	return overwrite(scopeHeader, "%PATH(NQ:PATH)%")
}

// findScope is the filter that looks for a route again: in the scope of the path in lower case, and if it has none, in
// the scope of all other paths. Every scope except the beacon's disables it, so a request with a route skips it. It is
// the first filter, so that all filters use the final route.
//
// Its parts are one chain, so that a request with a route skips them in one step. None of them is a script: Envoy has
// 90 KiB of Lua for each script, filter chain and worker thread.
func (b *builder) findScope() *anypb.Any {
	lowerCase := fmt.Sprintf("%%CEL(request.headers['%s'].lowerAscii())%%", scopeHeader)
	otherPaths := fmt.Sprintf("%%CEL(has(xds.route_name) ? request.headers['%s'] : '/')%%", scopeHeader)
	part := func(name string, config proto.Message) *corev3.TypedExtensionConfig {
		return &corev3.TypedExtensionConfig{Name: name, TypedConfig: b.pack(config)}
	}
	forgetRoute := part("forget route", &setfilterstatev3.Config{ClearRouteCache: true})
	return b.pack(&filterchainv3.FilterChainConfig{DefaultFilterChain: &filterchainv3.FilterChain{Filters: []*corev3.TypedExtensionConfig{
		part("lower case", b.renameScope(lowerCase)),
		forgetRoute,
		part("find route", &setfilterstatev3.Config{}), // route_name is that of the route that was last asked for
		part("other paths", b.renameScope(otherPaths)),
		forgetRoute,
		part("upgrades", allowUpgrades()),
	}}})
}

// renameScope sets scopeHeader to the value of a format with CEL.
func (b *builder) renameScope(format string) *headermutationv3.HeaderMutation {
	return &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationrulesv3.HeaderMutation{overwrite(scopeHeader, format)},
		Formatters: []*corev3.TypedExtensionConfig{{
			Name:        "envoy.formatter.cel",
			TypedConfig: b.pack(&celv3.Cel{CelConfig: &corev3.CelExpressionConfig{EnableStringFunctions: true}}),
		}},
	}}
}

// allowUpgrades refuses each upgrade except one to a WebSocket on a route that has them. Envoy itself refuses upgrades
// by the route that it finds first. If it found none, it has refused nothing.
func allowUpgrades() *rbacv3.RBAC {
	type permission = rbacconfigv3.Permission
	upgrade := func(header *routev3.HeaderMatcher) *permission {
		header.Name = "upgrade"
		return &permission{Rule: &rbacconfigv3.Permission_Header{Header: header}}
	}
	none := upgrade(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: false}})
	webSocket := exact("websocket")
	webSocket.IgnoreCase = true
	toWebSocket := upgrade(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: webSocket}})
	served := &permission{Rule: &rbacconfigv3.Permission_SourcedMetadata{SourcedMetadata: &rbacconfigv3.SourcedMetadata{
		MetadataSource: rbacconfigv3.MetadataSource_ROUTE,
		MetadataMatcher: &matcherv3.MetadataMatcher{
			Filter: filterScope,
			Path:   []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: metadataWebSocket}}},
			Value:  &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_BoolMatch{BoolMatch: true}},
		},
	}}}
	both := &permission{Rule: &rbacconfigv3.Permission_AndRules{AndRules: &rbacconfigv3.Permission_Set{Rules: []*permission{toWebSocket, served}}}}
	return &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{Policies: map[string]*rbacconfigv3.Policy{"upgrade": {
		Permissions: []*permission{none, both},
		Principals:  []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_Any{Any: true}}},
	}}}}
}

// disabled is the setting by which a route, or a scope, disables a filter. Envoy reads it of the route that it finds
// first, so a request whose route the scope filter has found passes the filter.
func (b *builder) disabled() *anypb.Any { return b.pack(&routev3.FilterConfig{Disabled: true}) }
