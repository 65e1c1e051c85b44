package xds

import (
	"maps"
	"slices"
	"strings"
	"sync"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
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

// nameScope sets scopeHeader to the path without its query.
func nameScope() *mutationrulesv3.HeaderMutation {
	return overwrite(scopeHeader, "%PATH(NQ:PATH)%")
}
