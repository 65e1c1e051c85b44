package explain

import (
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
)

// readScopes reads the scoped routes and the rule that selects a scope.
func (e *Explainer) readScopes(all map[string]proto.Message) error {
	e.scopes = map[string]*routev3.VirtualHost{}
	for name, r := range all {
		scope, ok := r.(*routev3.ScopedRouteConfiguration)
		vhosts := scope.GetRouteConfiguration().GetVirtualHosts()
		fragments := scope.GetKey().GetFragments()
		if !ok || len(fragments) != 1 || len(vhosts) != 1 || len(vhosts[0].GetDomains()) != 1 || vhosts[0].GetDomains()[0] != "*" {
			return fmt.Errorf("%w: the scope %s", ErrNotModelled, name)
		}
		e.scopes[fragments[0].GetStringKey()] = vhosts[0]
	}
	builder := e.manager.GetScopedRoutes().GetScopeKeyBuilder().GetFragments()
	if len(builder) != 1 {
		return fmt.Errorf("%w: how a scope is found", ErrNotModelled)
	}
	e.scopeKey = builder[0].GetHeaderValueExtractor()
	return nil
}

// find selects the scope by the headers and takes the first matching route in it.
func (e *Explainer) find(x *exchange) {
	x.vhost, x.route = nil, nil
	parts := strings.Split(x.header.value(e.scopeKey.GetName()), e.scopeKey.GetElementSeparator())
	if int(e.scopeKey.GetIndex()) >= len(parts) {
		return
	}
	vhost := e.scopes[parts[e.scopeKey.GetIndex()]]
	for _, route := range vhost.GetRoutes() {
		if matches(route.GetMatch(), x) {
			x.vhost, x.route = vhost, route
			return
		}
	}
}

// findScope is the filter that searches again if no route matched (xds/scope.lua): first in the
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

// lowerASCII converts A to Z to lower case, as Envoy's Lua scripts do.
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
