package xds

import (
	_ "embed"
	"maps"
	"slices"
	"strings"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// A scope is the routes of all paths that begin with the same segment. Envoy finds it by that segment in a hash table, so
// that a request is held against the routes of one scope, however many services there are, and a change of a service
// is sent as a change of its scope. (Envoy docs, "Scoped RDS".)
//
// Envoy compares the segment to the letter. A scope is therefore there in small letters and as the definitions spell it, and for
// what is spelled in yet another way, or is nobody's path, the filter of scope.lua looks again.

// scopeHeader is the request header by which Envoy looks for the scope: the path without its query. It is written before
// routes are looked for, over what a client says, and goes no further than the strip filter.
const scopeHeader = "x-gatepost-scope"

// filterScope is the filter that looks again.
const filterScope = "scope"

//go:embed scope.lua
var scopeScript string

// endpoint is what the gateway has at a path and below it.
type endpoint struct {
	path   string
	routes []*routev3.Route
	// whole: no request at the path or below it goes past these routes.
	whole bool
}

// scopes are all routes. In each, Envoy takes the first that matches: the gateway's own, then the services
// from the longest path to the shortest, then what answers for all the rest. The version is not in them yet.
func (b *builder) scopes(services []*service) []*routev3.ScopedRouteConfiguration {
	own := []endpoint{
		{path: VersionPath, routes: []*routev3.Route{b.beacon()}},
		{path: b.gw.GetTokens().GetPath(), routes: b.tokenRoutes(), whole: true},
	}
	rest := b.catchAll()
	bySegment := map[string][]endpoint{}       // :: first segment in small letters → in the order of matching
	spellings := map[string][]string{"": {""}} // :: the same → as it is spelled
	add := func(e endpoint) {
		segment := firstSegment(e.path)
		key := strings.ToLower(segment)
		bySegment[key] = append(bySegment[key], e)
		spellings[key] = append(spellings[key], segment, key)
	}
	for _, e := range own {
		add(e)
	}
	for _, s := range services {
		b.about = s.String()
		routes := b.checked(b.surface(s.surface(b)))
		if s.path == "/" {
			rest = routes
			continue
		}
		add(endpoint{path: s.path, routes: routes, whole: true})
	}
	frame, malformed := b.frame(), b.dressedDots()
	var out []*routev3.ScopedRouteConfiguration
	for _, key := range slices.Sorted(maps.Keys(spellings)) {
		routes := []*routev3.Route{malformed}
		covered := false
		for _, e := range bySegment[key] {
			routes = append(routes, e.routes...)
			covered = covered || e.whole && strings.EqualFold(e.path, "/"+key)
		}
		if !covered {
			routes = append(routes, rest...)
		}
		all := spellings[key]
		slices.Sort(all)
		for _, segment := range slices.Compact(all) {
			out = append(out, b.scope(segment, frame, routes))
		}
	}
	return out
}

// firstSegment is what stands between the first slash of a path and the second.
func firstSegment(path string) string {
	segment, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return segment
}

// frame is what all scopes say for all of their routes.
func (b *builder) frame() map[string]*anypb.Any {
	b.about = "routes"
	return map[string]*anypb.Any{
		filterStrip: b.strip(),
		filterAuthz: b.pack(b.shared().Extensions()),
		filterScope: b.pack(&routev3.FilterConfig{Disabled: true}),
	}
}

// scope is the routes for the paths that begin with a segment.
func (b *builder) scope(segment string, frame map[string]*anypb.Any, routes []*routev3.Route) *routev3.ScopedRouteConfiguration {
	name := "/" + segment
	scope := &routev3.ScopedRouteConfiguration{
		Name: name,
		Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
			Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: segment},
		}}},
		RouteConfiguration: &routev3.RouteConfiguration{
			Name:         name,
			VirtualHosts: []*routev3.VirtualHost{{Name: name, Domains: []string{"*"}, TypedPerFilterConfig: frame}},
		},
	}
	b.about = "routes for " + name
	b.validate(scope) // each route has been validated by itself, so that an error names the service
	scope.GetRouteConfiguration().GetVirtualHosts()[0].Routes = routes
	return scope
}

// routesOf are the routes of a scope of ours.
func routesOf(scope *routev3.ScopedRouteConfiguration) []*routev3.Route {
	return scope.GetRouteConfiguration().GetVirtualHosts()[0].GetRoutes()
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

// findScope is the filter in the listener. Every scope turns it off, so only a request without a route passes it. It comes
// before all that decides anything, so that nothing is decided by another route than the one that is taken.
func (b *builder) findScope() *anypb.Any {
	return b.pack(&luav3.Lua{
		DefaultSourceCode: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: scopeScript}},
		StatPrefix:        filterScope,
	})
}
