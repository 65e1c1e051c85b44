package xds

import (
	_ "embed"
	"maps"
	"slices"
	"strings"
	"sync"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/definitions"
)

// A scope contains the routes of all paths with the same first segment. Envoy finds it by that segment in a hash
// table, so a request is matched against the routes of one scope only, and a change of a service is sent as a change
// of its scope. (Envoy docs, "Scoped RDS".)
//
// Envoy's comparison of the segment is case-sensitive, so a scope exists in lower case and in the spelling of the
// definitions. If the spelling differs, or no route of the scope matches, the filter of scope.lua finds the route: in
// the scope of the segment in lower case, else in the scope of all other paths, whose name is "/".

// scopeHeader is the request header by which Envoy finds the scope: the path without its query. The gateway sets it
// before routes are matched, over the client's value, and the strip filter removes it.
const scopeHeader = "x-gatepost-scope"

// filterScope is the filter of scope.lua.
const filterScope = "scope"

//go:embed scope.lua
var scopeScript string

// scopes builds scopes.
type scopes struct {
	b        *builder
	clusters set // the clusters that routes can lead to
	// Parts of every scope, made once: the route for malformed paths, and the setting that disables the filter of
	// scope.lua.
	malformed func() *routev3.Route
	found     func() *anypb.Any
}

func (b *builder) scopes(clusters set) *scopes {
	return &scopes{b: b, clusters: clusters, malformed: sync.OnceValue(b.rejectDotParams), found: sync.OnceValue(b.disabled)}
}

// firstSegment returns the part of a path between its first slash and its second.
func firstSegment(path string) string {
	segment, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return segment
}

// scopeOf returns the scope of a path: its first segment in lower case.
func scopeOf(path string) string { return strings.ToLower(firstSegment(path)) }

// changed builds the scopes of removed and added services. Resources that were removed are nil. It includes the
// beacon's scope, without the version. :: name → scope
func (s *scopes) changed(removed, added []*definitions.Service) map[string]*resource {
	out := s.of(scopeOf(VersionPath), nil)
	services := map[string][]*service{} // :: scope → all services in it
	for _, def := range slices.Concat(removed, added) {
		services[scopeOf(def.Path)] = nil
		out["/"+firstSegment(def.Path)], out["/"+scopeOf(def.Path)] = nil, nil
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

// routes returns the routes of a scope in the order of matching, and the spellings of its segment. Envoy uses the
// first route that matches: the gateway's own, then the services from the longest path to the shortest, then the one
// for all other paths.
func (s *scopes) routes(scope string, services []*service) (routes []*routev3.Route, spellings []string) {
	b := s.b
	slices.SortStableFunc(services, byPath)
	add := func(path string, more func() []*routev3.Route) {
		if scopeOf(path) == scope {
			spellings = append(spellings, firstSegment(path), scope)
			routes = append(routes, more()...)
		}
	}
	add(VersionPath, b.beacon)
	add(b.gw.Tokens.Path, b.tokenRoutes)
	for _, one := range services {
		add(one.path, func() []*routev3.Route { return b.serviceRoutes(one) })
	}
	add("/", b.catchAll)
	slices.Sort(spellings)
	return routes, slices.Compact(spellings)
}

// serviceRoutes are the routes of a service.
func (b *builder) serviceRoutes(s *service) []*routev3.Route {
	b.about = s.String()
	return b.checked(b.groupRoutes(s.endpoints(b)))
}

// of builds the resources of a scope with these services, one for each spelling. A scope without routes has none.
// :: name → scope
func (s *scopes) of(scope string, services []*service) map[string]*resource {
	b := s.b
	routes, spellings := s.routes(scope, services)
	if len(routes) == 0 {
		return nil
	}
	vhost := &routev3.VirtualHost{Name: "/", Domains: []string{"*"}}
	if scope != firstSegment(definitions.OwnPath) { // the beacon's scope contains nothing else, because it is sent with each change
		routes = append([]*routev3.Route{proto.CloneOf(s.malformed())}, routes...) // the others are of this scope alone
		vhost.TypedPerFilterConfig = map[string]*anypb.Any{filterScope: s.found()}
		// An upstream's own CORS headers are removed. The CORS filter sets them afterwards, and the listener those of Envoy's
		// own responses.
		vhost.ResponseHeadersToRemove = []string{"access-control-allow-origin", "access-control-allow-credentials"}
	}
	b.about = "routes for /" + scope
	if err := checkRoutes(routes, s.clusters, b.opts); err != nil {
		b.fail(err)
	}
	config := &routev3.RouteConfiguration{
		VirtualHosts: []*routev3.VirtualHost{vhost},
		// Otherwise Envoy would reject all scopes if one route names a cluster that it does not have yet.
		ValidateClusters: wrapperspb.Bool(false),
	}
	b.validate(config) // routes are validated one by one, so that an error names the service
	share(vhost, routes, b.pack(authz.Unchecked()))
	vhost.Routes = routes
	out := make(map[string]*resource, len(spellings))
	for _, segment := range spellings {
		name := "/" + segment
		out[name] = b.finish(&routev3.ScopedRouteConfiguration{
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

// scopedRoutes is the configuration by which the listener gets its routes.
func scopedRoutes() *hcmv3.HttpConnectionManager_ScopedRoutes {
	fromADS := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		// No timeout: a listener without routes must not open.
		InitialFetchTimeout: durationpb.New(0),
	}
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
		RdsConfigSource: fromADS,
		ConfigSpecifier: &hcmv3.ScopedRoutes_ScopedRds{ScopedRds: &hcmv3.ScopedRds{ScopedRdsConfigSource: fromADS}},
	}}
}

// nameScope sets scopeHeader to the path without its query.
func nameScope() *mutationrulesv3.HeaderMutation {
	return overwrite(scopeHeader, "%PATH(NQ:PATH)%")
}

// findScope is the filter of scope.lua in the listener. Every scope except the beacon's disables it, so a request
// with a route skips it. It is the first filter, so that all filters use the final route.
func (b *builder) findScope() *anypb.Any {
	return b.pack(&luav3.Lua{
		DefaultSourceCode: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: scopeScript}},
		StatPrefix:        filterScope,
	})
}

// disabled is the setting by which a route, or a scope, disables a filter. Envoy reads it of the route that it finds
// first, so a request whose route scope.lua has found passes the filter.
func (b *builder) disabled() *anypb.Any { return b.pack(&routev3.FilterConfig{Disabled: true}) }
