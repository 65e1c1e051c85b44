package xds

import (
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	"gatepost/definitions"
)

// The hosts of a scope are its virtual hosts. Envoy takes the most specific one that matches, and no other, so each has
// the services of less specific hosts behind its own. If a host has a service at "/", that one takes all other paths
// of the host, so nothing follows. Such a host also has a virtual host in each scope with services of less specific
// hosts. It has no route for the other paths, and the scope filter then finds the service at "/".

// hostRoutes is what the routes of a virtual host are made of.
type hostRoutes struct {
	domains []string
	// tokens is whether the token calls respond.
	tokens bool
	// services are in the order of matching.
	services []*service
}

func (h *hostRoutes) name() string {
	if h.domains[0] == "*" {
		return "/"
	}
	return h.domains[0]
}

// rooted returns the host patterns that have a service at "/".
func (b *builder) rooted() map[string]bool {
	out := map[string]bool{}
	for _, s := range b.gw.Services {
		for _, pattern := range s.Hosts {
			if s.Path == "/" {
				out[pattern] = true
			}
		}
	}
	return out
}

// hostsOf returns the virtual hosts of a scope. Patterns with the same routes share one.
func (s *scopes) hostsOf(scope string, services []*service) []*hostRoutes {
	slices.SortStableFunc(services, byPath)
	hasTokens := scopeOf(s.b.gw.Tokens.Path) == scope
	here := s.patterns(scope, hasTokens, services)
	var out []*hostRoutes
	alike := map[string]*hostRoutes{} // :: what the routes are made of → virtual host
	for _, pattern := range slices.Sorted(maps.Keys(here)) {
		one := &hostRoutes{tokens: hasTokens && s.b.gw.Tokens.Covers(pattern), services: s.matching(pattern, here)}
		key := ""
		if one.tokens {
			key = "/"
		}
		for _, service := range one.services {
			key += service.def.Name + "/"
		}
		if alike[key] == nil {
			alike[key] = one
			out = append(out, one)
		}
		alike[key].domains = append(alike[key].domains, domainOf(pattern))
	}
	if len(out) == 1 && slices.Contains(out[0].domains, "*") {
		out[0].domains = []string{"*"}
	}
	return out
}

func domainOf(pattern string) string {
	if pattern == definitions.EveryHost {
		return "*"
	}
	return pattern
}

// patterns returns the host patterns that have a virtual host in a scope. :: pattern → its services in the scope
func (s *scopes) patterns(scope string, hasTokens bool, services []*service) map[string][]*service {
	here := map[string][]*service{}
	switch { // the patterns of the gateway's own routes, with or without services
	case scope == scopeOf(definitions.VersionPath):
		return map[string][]*service{definitions.EveryHost: nil} // the version has no services beside it
	case scope == scopeOf("/"):
		here[definitions.EveryHost] = nil
	case hasTokens:
		for _, pattern := range s.b.gw.Tokens.Patterns() {
			here[pattern] = nil
		}
	}
	for _, one := range services {
		for _, pattern := range one.def.Patterns() {
			here[pattern] = append(here[pattern], one)
		}
	}
	for pattern := range s.rooted() {
		if _, there := here[pattern]; there {
			continue
		}
		for wider := range definitions.Wider(pattern) {
			if _, there := here[wider]; there {
				here[pattern] = nil
				break
			}
		}
	}
	return here
}

// matching returns the services that take requests for a pattern, in the order of matching.
func (s *scopes) matching(pattern string, here map[string][]*service) []*service {
	all, rooted := slices.Clone(here[pattern]), s.rooted()
	if rooted[pattern] {
		return all
	}
	for wider := range definitions.Wider(pattern) {
		all = append(all, here[wider]...)
		if rooted[wider] {
			break
		}
	}
	return all
}

// usesHosts reports whether the host of a request counts.
func (b *builder) usesHosts() bool {
	return len(b.gw.Tokens.Hosts) > 0 || slices.ContainsFunc(b.gw.Services, func(s *definitions.Service) bool { return len(s.Hosts) > 0 })
}

// byHost reports whether virtual hosts differ by the host.
func byHost(hosts []*hostRoutes) bool { return len(hosts) != 1 || hosts[0].name() != "/" }

// scopesAffected returns the scopes, apart from their own, that a change of services can affect: the one of all other
// paths if the services have hosts, and if some are at "/" with a host, those with services of less specific hosts.
func (b *builder) scopesAffected(changed []*definitions.Service) []string {
	var out []string
	wider := map[string]bool{}
	for _, s := range changed {
		if len(s.Hosts) > 0 {
			out = append(out, scopeOf("/"))
		}
		for _, pattern := range s.Hosts {
			if s.Path == "/" {
				for w := range definitions.Wider(pattern) {
					wider[w] = true
				}
			}
		}
	}
	add := func(path string, patterns []string) {
		if slices.ContainsFunc(patterns, func(pattern string) bool { return wider[pattern] }) {
			out = append(out, scopeOf(path))
		}
	}
	if len(wider) > 0 {
		add(b.gw.Tokens.Path, b.gw.Tokens.Patterns())
		for _, s := range b.gw.Services {
			add(s.Path, s.Patterns())
		}
	}
	return out
}

// virtualHost builds a virtual host of a scope.
func (s *scopes) virtualHost(scope string, host *hostRoutes, guarded bool) *routev3.VirtualHost {
	b := s.b
	routes := s.routes(scope, host)
	vhost := &routev3.VirtualHost{Name: host.name(), Domains: host.domains}
	if len(routes) == 0 {
		return vhost
	}
	if scope != firstSegment(definitions.OwnPath) { // the beacon's scope contains nothing else, because it is sent with each change
		own := []*routev3.Route{proto.CloneOf(s.malformed())} // the others are of this virtual host alone
		if guarded {
			own = append(own, proto.CloneOf(s.malformedHost()))
		}
		routes = append(own, routes...)
		vhost.TypedPerFilterConfig = map[string]*anypb.Any{filterScope: s.found(), filterLimits: s.found(), filterUserLimits: s.found()}
		if b.opts.ClusterLimits {
			for _, filter := range clusterLimitFilters {
				vhost.TypedPerFilterConfig[filter] = s.found()
			}
		}
		// An upstream's own CORS headers are removed. The CORS filter sets them afterwards, and the listener those of Envoy's
		// own responses. Its Server would show what runs there.
		vhost.ResponseHeadersToRemove = []string{"access-control-allow-origin", "access-control-allow-credentials", "server"}
	}
	b.about = "routes for " + strings.TrimPrefix(vhost.GetName(), "/") + "/" + scope
	if err := checkRoutes(routes, s.clusters, b.opts); err != nil {
		b.fail(err)
	}
	strip(routes, b.stripOn(endpointGroup{}, false)) // the routes of no service have the headers of the gateway
	share(vhost, routes, b.pack(authz.Unchecked()))
	lift(vhost, routes, b.gw.Identity.UserHeader)
	vhost.Routes = routes
	return vhost
}

// rejectHost refuses a host that is neither a name nor an address, with or without a port. Envoy compares a host's
// characters, ports aside, and an upstream may read another host in user@host or host:x@other. Where hosts count, such
// a request could come to a service with less rights than the host needs.
func (b *builder) rejectHost() *routev3.Route {
	b.about = "malformed hosts"
	at := prefix("/")
	at.Headers = []*routev3.HeaderMatcher{{
		Name: ":authority",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: plainHost}},
		}},
		InvertMatch:               true,
		TreatMissingHeaderAsEmpty: true,
	}}
	return b.malformed(RouteMalformedHost, at)
}

// RouteMalformedHost is the name of the route that refuses hosts.
const RouteMalformedHost = "malformed host"

// plainHost matches a name of labels, or an IPv6 address in brackets, with or without a port.
const plainHost = `([\w-]+(\.[\w-]+)*|\[[0-9A-Fa-f:.]+\])(:\d*)?`
