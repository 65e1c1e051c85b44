package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"golang.org/x/net/http/httpguts"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// checkDefinitions refuses what the definitions' own checks should have refused before: configuration that
// would be ambiguous, or that would open what is to be closed, is never built. Of the services, come are those that were not
// checked before.
func checkDefinitions(gw *gatewayv1.Gateway, come []*gatewayv1.Service, opts Options) error {
	return errors.Join(checkGateway(gw, opts), checkServices(gw, come))
}

func checkGateway(gw *gatewayv1.Gateway, opts Options) error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if opts.GRPCCluster == "" || opts.HTTPCluster == "" {
		refuse("options: the clusters of Gatepost itself have no names")
	}
	if gw.GetTokens().GetPath() == "" || gw.GetIdentity().GetUserHeader() == "" || gw.GetListen() == "" {
		refuse("the definitions are not complete: their defaults were not filled in")
	}
	if path := gw.GetTokens().GetPath(); path == "/" || !plainPath(path) || within(path, ownPath) {
		refuse("tokens.path %q cannot be used", path)
	}
	if h := gw.GetIdentity().GetUserHeader(); reservedHeader(h) || !httpguts.ValidHeaderFieldName(h) {
		refuse("identity.user_header %q cannot be used", h)
	}
	if gw.GetCors().GetAllowCredentials() && len(gw.GetOrigins()) == 0 {
		refuse("cors.allow_credentials needs origins: else every site could act as its visitor")
	}
	if gw.GetTokens().GetCookie() != "" && len(gw.GetOrigins()) == 0 {
		refuse("tokens.cookie needs origins: else every site could act as its visitor")
	}
	for _, o := range gw.GetOrigins() {
		// A matcher that matches the word * allows every origin (CORS filter of Envoy).
		if o == "" || o == "*" || o == "null" || strings.ContainsAny(o, " ,%\t") {
			refuse("origin %q cannot be used", o)
		}
	}
	return errors.Join(errs...)
}

func checkServices(gw *gatewayv1.Gateway, come []*gatewayv1.Service) error {
	var errs []error
	taken := make(map[string]bool, len(come)) // :: name of one that has come → whether a service has it that was looked at
	for _, s := range come {
		taken[s.GetName()] = false
		if err := checkService(s, gw.GetTokens().GetPath()); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", s.GetName(), err))
		}
	}
	for _, s := range gw.GetServices() {
		name := s.GetName()
		already, asked := taken[name]
		if already {
			errs = append(errs, fmt.Errorf("service %q: there are two of this name", name))
		}
		if asked {
			taken[name] = true
		}
	}
	return errors.Join(errs...)
}

// checkPaths refuses services at the same path. They are sorted by it.
func checkPaths(services []*service) error {
	var errs []error
	for i := 1; i < len(services); i++ {
		if one, other := services[i], services[i-1]; strings.EqualFold(one.path, other.path) {
			errs = append(errs, fmt.Errorf("%v: its path %q is that of %v", one, one.path, other))
		}
	}
	return errors.Join(errs...)
}

func checkService(s *gatewayv1.Service, tokens string) error {
	switch path := s.GetPath(); {
	case s.GetName() == "", strings.ContainsAny(s.GetName(), "/"+clusterHash): // what comes after the name in a cluster's
		return errors.New("the name cannot be used")
	case !plainPath(path):
		return fmt.Errorf("the path %q cannot be used", path)
	case within(path, tokens), within(path, ownPath):
		return fmt.Errorf("the gateway keeps the path %q for itself", path)
	case s.Authenticate == nil || len(s.GetAllowedMethods()) == 0 || len(s.GetUpstreams()) == 0 || s.GetTimeout() == nil:
		return errors.New("its defaults were not filled in")
	case slices.ContainsFunc(s.GetAllowedMethods(), notAMethod):
		return fmt.Errorf("the methods %q cannot be used", s.GetAllowedMethods())
	case len(s.GetScopes()) > 0 && !s.GetAuthenticate():
		return errors.New("scopes need a token")
	case s.GetWebsocket() && !slices.Contains(s.GetAllowedMethods(), "GET"):
		return errors.New("a WebSocket begins with GET")
	}
	return nil
}

// plainPath says whether a path can be matched as it stands: absolute, without a slash at its end (but for the
// root), and made of nothing that normalisation would change.
func plainPath(path string) bool {
	if path == "/" {
		return true
	}
	if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") {
		return false
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, notInPath) {
			return false
		}
	}
	return true
}

// notInPath is every character that ends a path, escapes one or changes what is matched.
func notInPath(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`?#%\;`, r) }

// within says whether path is dir or below it, without regard to case.
func within(path, dir string) bool {
	path, dir = strings.ToLower(path), strings.ToLower(dir)
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// notAMethod says whether a method is written in a way that no client and no service uses. (In the Allow header
// of an answer it stands in a format string of Envoy's.)
func notAMethod(m string) bool {
	return m == "" || m == "CONNECT" || strings.Trim(m, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != ""
}

// reservedHeader says whether a header cannot bear the user's id, because the proxy or the decision reads it.
func reservedHeader(name string) bool {
	switch strings.ToLower(name) {
	case "authorization", "origin", "host", "cookie", "connection", "content-length", "content-type",
		"transfer-encoding", "te", "upgrade", "expect", "x-request-id", "x-forwarded-for", "x-forwarded-proto":
		return true
	}
	return strings.Contains(name, "_") || strings.HasPrefix(strings.ToLower(name), "x-envoy-")
}

// listenAddress reads host:port; Envoy takes an address, not a name.
func listenAddress(listen string) (netip.AddrPort, error) {
	if strings.HasPrefix(listen, ":") {
		listen = "0.0.0.0" + listen
	}
	addr, err := netip.ParseAddrPort(listen)
	if err != nil {
		return addr, fmt.Errorf("listen %q is no ip:port", listen)
	}
	if addr.Port() == 0 {
		return addr, fmt.Errorf("listen %q has no port", listen)
	}
	return addr, nil
}

// checkNames refuses a cluster that would take the place of one of the bootstrap's.
func checkNames(clusters set, opts Options) error {
	var errs []error
	for _, static := range []string{opts.GRPCCluster, opts.HTTPCluster} {
		if clusters.get(static) != nil {
			errs = append(errs, fmt.Errorf("cluster %q is also one of the bootstrap's", static))
		}
	}
	return errors.Join(errs...)
}

// checkRoutes follows every reference in finished routes. Envoy takes a route to a cluster that is not there, and
// answers 503.
func checkRoutes(routes []*routev3.Route, clusters set, opts Options) error {
	var errs []error
	for _, route := range routes {
		to := route.GetRoute()
		if to != nil && clusters.get(to.GetCluster()) == nil && to.GetCluster() != opts.HTTPCluster {
			errs = append(errs, fmt.Errorf("route %q: there is no cluster %q", route.GetName(), to.GetCluster()))
		}
		if route.GetTypedPerFilterConfig()[filterAuthz] == nil {
			errs = append(errs, fmt.Errorf("route %q: it bears no rule", route.GetName()))
		}
		if route.GetName() == "" {
			errs = append(errs, errors.New("a route has no name")) // scope.lua asks for it
		}
	}
	return errors.Join(errs...)
}
