// Package xds decides how definitions become Envoy configuration, and whether Envoy has taken it: it builds
// the listener, the routes and the clusters, pushes them over delta ADS and hears what each Envoy says of them.
package xds

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// The names of the resources that there is one of.
const (
	listenerName = "gatepost"
	routesName   = "gatepost"
	// nowhere is a cluster without an endpoint. Preflight routes name it: the CORS filter answers before a
	// cluster is asked for, and were it ever not to, nothing would reach an upstream.
	nowhere = "gatepost-nowhere"
)

// VersionPath is where Envoy answers with the version of the routes that it serves, as a JSON string. It is
// public and tells a hash, nothing else.
const VersionPath = ownPath + "/version"

// ownPath is the path that the gateway keeps for itself, with all below it.
const ownPath = "/.gatepost"

// Options is what the configuration needs to know of its surroundings.
type Options struct {
	// GRPCCluster is the static cluster, from Envoy's bootstrap, of Gatepost's gRPC server. Required.
	GRPCCluster string
	// HTTPCluster is the static cluster, from Envoy's bootstrap, of Gatepost's token handler. Required.
	HTTPCluster string
	// CAFile is the file, as Envoy sees it, of the roots that https upstreams are verified against.
	// Empty: DefaultCAFile.
	CAFile string
}

// DefaultCAFile is where Debian, Ubuntu, Alpine and the official Envoy images keep the system's roots.
const DefaultCAFile = "/etc/ssl/certs/ca-certificates.crt"

// Build makes Envoy's configuration from definitions in which every default is filled in. It is pure and
// deterministic: the same definitions, in whatever order their services are, make the same Snapshot. What it
// returns is valid and every reference in it leads somewhere; else it returns all that is wrong at once.
func Build(gw *gatewayv1.Gateway, opts Options) (*Snapshot, error) {
	if opts.CAFile == "" {
		opts.CAFile = DefaultCAFile
	}
	if err := checkDefinitions(gw, opts); err != nil {
		return nil, fmt.Errorf("building the Envoy configuration: %w", err)
	}
	b := &builder{gw: gw, opts: opts, policies: map[string]*anypb.Any{}}
	services := b.services()
	listener := b.listener()
	routes := b.routes(services)
	clusters := b.clusters(services)
	if len(b.errs) > 0 {
		return nil, fmt.Errorf("building the Envoy configuration: %w", errors.Join(b.errs...))
	}
	if err := checkReferences(listener, routes, clusters, opts); err != nil {
		return nil, fmt.Errorf("building the Envoy configuration: %w", err)
	}
	return b.snapshot(listener, routes, clusters)
}

// builder holds what one Build goes through. It collects what is wrong rather than stop at the first.
type builder struct {
	gw   *gatewayv1.Gateway
	opts Options
	// about is what is being built, for errors.
	about string
	errs  []error
	// policies are the CORS policies made so far; services with the same methods share one.
	policies map[string]*anypb.Any // :: methods and exposed headers → policy
}

func (b *builder) fail(err error) {
	b.errs = append(b.errs, fmt.Errorf("%s: %w", b.about, err))
}

// validated is a message that knows its own rules (protoc-gen-validate).
type validated interface {
	proto.Message
	ValidateAll() error
}

// pack wraps a message that Envoy takes as an Any, and validates it: the validation of the message around it
// does not look inside.
func (b *builder) pack(m validated) *anypb.Any {
	if err := m.ValidateAll(); err != nil {
		b.fail(err)
	}
	packed := new(anypb.Any)
	if err := anypb.MarshalFrom(packed, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		b.fail(err)
	}
	return packed
}

// validate holds a finished resource, or a part of one, against Envoy's rules.
func (b *builder) validate(m validated) {
	if err := m.ValidateAll(); err != nil {
		b.fail(err)
	}
}

// checkDefinitions refuses what the definitions' own checks should have refused before: configuration that
// would be ambiguous, or that would open what is to be closed, is never built.
func checkDefinitions(gw *gatewayv1.Gateway, opts Options) error {
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
	for _, o := range gw.GetOrigins() {
		// A matcher that matches the word * allows every origin (CORS filter of Envoy).
		if o == "" || o == "*" || o == "null" || strings.ContainsAny(o, " ,%\t") {
			refuse("origin %q cannot be used", o)
		}
	}
	names, paths := map[string]bool{}, map[string]string{}
	for _, s := range gw.GetServices() {
		name, path := s.GetName(), s.GetPath()
		key := strings.ToLower(path)
		switch {
		case name == "":
			refuse("a service at %q has no name", path)
		case names[name]:
			refuse("service %q: there are two of this name", name)
		case !plainPath(path):
			refuse("service %q: the path %q cannot be used", name, path)
		case paths[key] != "":
			refuse("service %q: its path %q is that of service %q", name, path, paths[key])
		case within(path, gw.GetTokens().GetPath()), within(path, ownPath):
			refuse("service %q: the gateway keeps the path %q for itself", name, path)
		case s.Authenticate == nil || len(s.GetAllowedMethods()) == 0 || len(s.GetUpstreams()) == 0 || s.GetTimeout() == nil:
			refuse("service %q: its defaults were not filled in", name)
		case slices.ContainsFunc(s.GetAllowedMethods(), notAMethod):
			refuse("service %q: the methods %q cannot be used", name, s.GetAllowedMethods())
		case len(s.GetScopes()) > 0 && !s.GetAuthenticate():
			refuse("service %q: scopes need a token", name)
		}
		names[name], paths[key] = true, name
	}
	return errors.Join(errs...)
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

// checkReferences follows every reference in the finished resources. Envoy takes a route to a cluster that is
// not there, and answers 503.
func checkReferences(listener *listenerv3.Listener, routes *routev3.RouteConfiguration, clusters clusterSet, opts Options) error {
	var errs []error
	for _, static := range []string{opts.GRPCCluster, opts.HTTPCluster} {
		if _, taken := clusters[static]; taken {
			errs = append(errs, fmt.Errorf("cluster %q is also one of the bootstrap's", static))
		}
	}
	known := func(name string) bool { return clusters[name] != nil || name == opts.HTTPCluster }
	for _, vhost := range routes.GetVirtualHosts() {
		for _, route := range vhost.GetRoutes() {
			if to := route.GetRoute(); to != nil && !known(to.GetCluster()) {
				errs = append(errs, fmt.Errorf("route %q: there is no cluster %q", route.GetName(), to.GetCluster()))
			}
			if len(route.GetTypedPerFilterConfig()) == 0 || route.GetTypedPerFilterConfig()[filterAuthz] == nil {
				errs = append(errs, fmt.Errorf("route %q: it bears no rule", route.GetName()))
			}
		}
	}
	if named := rdsName(listener); named != routes.GetName() {
		errs = append(errs, fmt.Errorf("listener %q: there is no route configuration %q", listener.GetName(), named))
	}
	return errors.Join(errs...)
}

// gate is what a route carries for ext_authz. A route that needs neither a token nor an origin is not asked
// about, so that public services go on while Gatepost is away.
func (b *builder) gate(rule authz.Rule) *anypb.Any {
	if !rule.Authenticate && len(b.gw.GetOrigins()) == 0 {
		return b.pack(authz.Unchecked())
	}
	return b.pack(rule.Extensions())
}
