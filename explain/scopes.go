package explain

import (
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"gatepost/definitions"
)

// readScopes reads the scoped routes and the rule that selects a scope.
func (e *Explainer) readScopes(all map[string]proto.Message) error {
	e.scopes, e.services = map[string]*hosts{}, map[*routev3.Route]int{}
	byName := map[string]int{} // :: name → index
	for i, s := range e.served.Services {
		byName[s.Name] = i
	}
	for name, r := range all {
		scope, ok := r.(*routev3.ScopedRouteConfiguration)
		fragments := scope.GetKey().GetFragments()
		if !ok || len(fragments) != 1 {
			return fmt.Errorf("%w: the scope %s", ErrNotModelled, name)
		}
		hosts, err := readHosts(scope.GetRouteConfiguration())
		if err != nil {
			return fmt.Errorf("%w: the scope %s", err, name)
		}
		e.scopes[fragments[0].GetStringKey()] = hosts
		for _, vhost := range hosts.all {
			for _, route := range vhost.GetRoutes() {
				service, _, _ := strings.Cut(route.GetName(), " ")
				if i, known := byName[service]; known && isOf(e.served.Services[i], vhost, route) {
					e.services[route] = i
				}
			}
		}
	}
	builder := e.manager.GetScopedRoutes().GetScopeKeyBuilder().GetFragments()
	if len(builder) != 1 {
		return fmt.Errorf("%w: how a scope is found", ErrNotModelled)
	}
	e.scopeKey = builder[0].GetHeaderValueExtractor()
	return nil
}

// isOf reports whether a route with the name of a service was built for it. The gateway's own routes can have the same
// name, with another path or under other hosts.
func isOf(s *definitions.Service, vhost *routev3.VirtualHost, route *routev3.Route) bool {
	m := route.GetMatch()
	path := m.GetPath() + m.GetPrefix() + m.GetPathSeparatedPrefix()
	if path != "/" {
		path = strings.TrimSuffix(path, "/")
	}
	pattern := vhost.GetDomains()[0]
	if pattern == "*" {
		pattern = definitions.EveryHost
	}
	return strings.EqualFold(s.Path, path) && s.Covers(pattern)
}

// find selects the scope and the virtual host by the headers, and takes the first matching route.
func (e *Explainer) find(x *exchange) {
	x.vhost, x.route = nil, nil
	parts := strings.Split(x.header.value(e.scopeKey.GetName()), e.scopeKey.GetElementSeparator())
	if int(e.scopeKey.GetIndex()) >= len(parts) {
		return
	}
	vhost := e.scopes[parts[e.scopeKey.GetIndex()]].find(x.host)
	for _, route := range vhost.GetRoutes() {
		if matches(route.GetMatch(), x) {
			x.vhost, x.route = vhost, route
			return
		}
	}
}

// findScope is the filter that searches again if no route matched (xds.findScope): first in the
// scope of the segment in lower case, then in the scope of all other paths.
type findScope struct{ e *Explainer }

func (f findScope) request(x *exchange) {
	if x.route != nil {
		return
	}
	path, _, _ := strings.Cut(x.path, "?")
	segment, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	for _, scope := range []string{lowerASCII(segment), ""} {
		x.header.set(f.e.scopeKey.GetName(), "/"+scope)
		if f.e.find(x); x.route != nil {
			break
		}
	}
	x.rerouted = true
	x.refuseUpgrade()
}

func (findScope) response(*exchange) {}

// lowerASCII converts A to Z to lower case, as CEL's lowerAscii does.
func lowerASCII(s string) string {
	lower := []byte(s)
	for i, c := range lower {
		if c >= 'A' && c <= 'Z' {
			lower[i] = c + 'a' - 'A'
		}
	}
	return string(lower)
}

// scopeKeyOf abbreviates the name of an Envoy type.
type scopeKeyOf = hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor
