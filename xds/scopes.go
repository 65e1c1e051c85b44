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

// endpoint is what the gateway has at a path and below it.
type endpoint struct {
	// made names what the routes are made of.
	made   string
	routes func() []*routev3.Route
}

// scope is one of the scopes that are being made.
type scope struct {
	key       string     // the segment in small letters
	spellings []string   // the segment as it is spelled, sorted; key is among them
	endpoints []endpoint // in the order of matching
}

// scopes are all scopes that are being made.
type scopes struct {
	b        *builder
	clusters set // of those that routes may lead to
	byKey    map[string]*scope
	// What every scope has, made once: the route for malformed paths, and what turns the filter of scope.lua off.
	malformed func() *routev3.Route
	found     func() *anypb.Any
}

// scopes shares the services out among scopes. In each, Envoy takes the first route that matches: the gateway's own, then
// the services from the longest path to the shortest, then what answers for all the rest.
func (b *builder) scopes(services []*service, clusters set) *scopes {
	s := &scopes{
		b: b, clusters: clusters, byKey: map[string]*scope{},
		malformed: sync.OnceValue(b.dressedDots), found: sync.OnceValue(b.found),
	}
	s.add(VersionPath, b.common, func() []*routev3.Route { return []*routev3.Route{b.beacon()} })
	s.add(b.gw.GetTokens().GetPath(), b.common, b.tokenRoutes)
	for _, one := range services {
		s.add(one.path, one.made, func() []*routev3.Route { return b.serviceRoutes(one) })
	}
	s.add("/", b.common, b.catchAll)
	return s
}

// serviceRoutes are the routes of a service.
func (b *builder) serviceRoutes(s *service) []*routev3.Route {
	b.about = s.String()
	return b.checked(b.surface(s.surface(b)))
}

// at is the scope of a path, spelled like this.
func (s *scopes) at(path string) *scope {
	segment := firstSegment(path)
	key := strings.ToLower(segment)
	one := s.byKey[key]
	if one == nil {
		one = &scope{key: key, spellings: []string{key}}
		s.byKey[key] = one
	}
	if at, there := slices.BinarySearch(one.spellings, segment); !there {
		one.spellings = slices.Insert(one.spellings, at, segment)
	}
	return one
}

func (s *scopes) add(path, made string, routes func() []*routev3.Route) {
	one := s.at(path)
	one.endpoints = append(one.endpoints, endpoint{made, routes})
}

// firstSegment is what stands between the first slash of a path and the second.
func firstSegment(path string) string {
	segment, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return segment
}

// all are the resources of all scopes.
func (s *scopes) all() []named {
	out := make([]named, 0, len(s.byKey))
	for key := range s.byKey {
		out = append(out, s.of(key)...)
	}
	return out
}

// of are the resources of one scope, one for each spelling: those of the last time where they would be the same.
func (s *scopes) of(key string) []named {
	one, b := s.byKey[key], s.b
	h := hashed(append([]string{b.common, b.version}, one.spellings...)...)
	for _, e := range one.endpoints {
		h.add(e.made)
	}
	made := h.key()
	out, known := b.last.scopes[made]
	if !known {
		out = s.make(one)
	}
	b.next.scopes[made] = out
	return out
}

// make makes the resources of a scope.
func (s *scopes) make(one *scope) (out []named) {
	b := s.b
	var routes []*routev3.Route
	for _, e := range one.endpoints {
		routes = append(routes, e.routes()...)
	}
	vhost := &routev3.VirtualHost{Name: "/", Domains: []string{"*"}}
	if one.key != firstSegment(ownPath) { // the beacon's scope has no more than it, for it is sent with each change
		routes = append([]*routev3.Route{proto.CloneOf(s.malformed())}, routes...) // the others are of this scope alone
		vhost.TypedPerFilterConfig = map[string]*anypb.Any{filterScope: s.found()}
		// What an upstream says of origins is not its to say: the CORS filter says it afterwards, and of what Envoy answers
		// by itself the listener does.
		vhost.ResponseHeadersToRemove = []string{"access-control-allow-origin", "access-control-allow-credentials"}
	}
	b.about = "routes for /" + one.key
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
	for _, segment := range one.spellings {
		name := "/" + segment
		out = append(out, named{name, b.finish(&routev3.ScopedRouteConfiguration{
			Name: name,
			Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
				Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: segment},
			}}},
			RouteConfiguration: config,
		})})
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
