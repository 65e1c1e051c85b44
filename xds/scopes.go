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

// A scope is the routes of all paths that begin with the same segment. Envoy finds it by that segment in a hash table, so
// that a request is held against the routes of one scope, however many services there are, and a change of a service
// is sent as a change of its scope. (Envoy docs, "Scoped RDS".)
//
// Envoy compares the segment to the letter. A scope is therefore there in small letters and as the definitions spell it. What
// is spelled in yet another way, and what no route of a scope takes, gets its route by the filter of scope.lua: in the
// scope of the segment in small letters, else in that of all other paths, whose name is "/".

// scopeHeader is the request header by which Envoy looks for the scope: the path without its query. It is written before
// routes are looked for, over what a client says, and goes no further than the strip filter.
const scopeHeader = "x-gatepost-scope"

// filterScope is the filter that looks again.
const filterScope = "scope"

//go:embed scope.lua
var scopeScript string

// scopes makes scopes.
type scopes struct {
	b        *builder
	clusters set // those that routes may lead to
	// What every scope has, made once: the route for malformed paths, and what turns the filter of scope.lua off.
	malformed func() *routev3.Route
	found     func() *anypb.Any
}

func (b *builder) scopes(clusters set) *scopes {
	return &scopes{b: b, clusters: clusters, malformed: sync.OnceValue(b.dressedDots), found: sync.OnceValue(b.found)}
}

// firstSegment is what stands between the first slash of a path and the second.
func firstSegment(path string) string {
	segment, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return segment
}

// scopeOf is the scope of a path: its first segment in small letters.
func scopeOf(path string) string { return strings.ToLower(firstSegment(path)) }

// changed makes each scope from which a service has gone or to which one has come. Resources that are no more are nil, by
// name. The beacon's is among them, and tells no version yet.
func (s *scopes) changed(gone, come []*definitions.Service) map[string]*resource {
	out := s.of(scopeOf(VersionPath), nil)
	services := map[string][]*service{} // :: scope → all services in it
	for _, def := range slices.Concat(gone, come) {
		services[scopeOf(def.Path)] = nil
		out["/"+firstSegment(def.Path)], out["/"+scopeOf(def.Path)] = nil, nil
	}
	for _, def := range s.b.gw.Services {
		scope := scopeOf(def.Path)
		if those, asked := services[scope]; asked {
			services[scope] = append(those, s.b.service(def))
		}
	}
	for _, scope := range slices.Sorted(maps.Keys(services)) { // what is wrong is told in order
		maps.Copy(out, s.of(scope, services[scope]))
	}
	return out
}

// routes are the routes of a scope, in the order of matching, and the ways in which its segment is spelled. Envoy takes the
// first route that matches: the gateway's own, then the services from the longest path to the shortest, then what answers
// for all the rest.
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
	return b.checked(b.surface(s.surface(b)))
}

// of makes the resources of a scope with these services, one for each spelling, by name; none where nothing is there.
func (s *scopes) of(scope string, services []*service) map[string]*resource {
	b := s.b
	routes, spellings := s.routes(scope, services)
	if len(routes) == 0 {
		return nil
	}
	vhost := &routev3.VirtualHost{Name: "/", Domains: []string{"*"}}
	if scope != firstSegment(definitions.OwnPath) { // the beacon's scope has no more than it, for it is sent with each change
		routes = append([]*routev3.Route{proto.CloneOf(s.malformed())}, routes...) // the others are of this scope alone
		vhost.TypedPerFilterConfig = map[string]*anypb.Any{filterScope: s.found()}
		// What an upstream says of origins is not its to say: the CORS filter says it afterwards, and of what Envoy answers
		// by itself the listener does.
		vhost.ResponseHeadersToRemove = []string{"access-control-allow-origin", "access-control-allow-credentials"}
	}
	b.about = "routes for /" + scope
	if err := checkRoutes(routes, s.clusters, b.opts); err != nil {
		b.fail(err)
	}
	config := &routev3.RouteConfiguration{
		VirtualHosts: []*routev3.VirtualHost{vhost},
		// Else Envoy refuses all scopes where one route names a cluster that it does not have yet; so it answers 503 there.
		ValidateClusters: wrapperspb.Bool(false),
	}
	b.validate(config) // each route has been validated by itself, so that an error names the service
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

// share has a scope say once what all of its routes say alike, and takes it from them. What a route says of CORS counts only
// where it forwards.
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
	// A rule is merged with what the scope says of it; only that there is nothing to ask stands for itself.
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

// scopedRoutes is how the listener comes to its routes.
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

// nameScope has Envoy write the path, without its query, where the scope is looked for.
func nameScope() *mutationrulesv3.HeaderMutation {
	return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: scopeHeader, Value: "%PATH(NQ:PATH)%"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}
}

// findScope is the filter in the listener. Every scope but the beacon's turns it off, so a request with a route passes by. It comes
// before all that decides anything, so that nothing is decided by another route than the one that is taken.
func (b *builder) findScope() *anypb.Any {
	return b.pack(&luav3.Lua{
		DefaultSourceCode: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: scopeScript}},
		StatPrefix:        filterScope,
	})
}

// found turns it off.
func (b *builder) found() *anypb.Any { return b.pack(&routev3.FilterConfig{Disabled: true}) }
