package xds

import (
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/definitions"
)

// tokenTimeout is how long an endpoint of the token handler may take, but for the login. It covers a revoke
// that waits until no gateway can accept the token.
const tokenTimeout = 10 * time.Second

// commonMethods are those that a preflight is granted where nothing is, so that the page may read the 404.
var commonMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

// tokenRoutes are the gateway's own endpoints under tokens.path. They ask for an origin where origins are
// listed, and for no token: the handler reads the one that is shown. All else below the path is 404.
func (b *builder) tokenRoutes() []*routev3.Route {
	b.about = "tokens"
	path := b.gw.Tokens.Path
	authenticator := b.gw.Tokens.Authenticator
	if authenticator == nil {
		authenticator = new(definitions.Authenticator)
	}
	login := loginTimeout(authenticator)
	var out []*routev3.Route
	add := func(name string, at *routev3.RouteMatch, rewrite string, timeout time.Duration, methods ...string) {
		out = append(out, b.surface(surface{
			name:    name,
			at:      []*routev3.RouteMatch{at},
			methods: methods,
			expose:  b.exposed("token", "expires_in", authenticator.UserHeader, challengeHeader),
			rule:    authz.Rule{Service: "token"},
			forward: []forward{{at, forwardTo(b.opts.HTTPCluster, rewrite, timeout)}},

			keepsToken: rewrite != convention.PathLogin, // a page sends its old token along; the user service has no use for it
		})...)
	}
	add("token revoke", exactPath(path+"/revoke"), convention.PathRevoke, tokenTimeout, "POST")
	add("token refresh", exactPath(path+"/refresh"), convention.PathRefresh, tokenTimeout, "POST")
	add("token introspect", exactPath(path+"/introspect"), convention.PathIntrospect, tokenTimeout, "POST")
	add("token sessions", exactPath(path+"/sessions"), convention.PathSessions, tokenTimeout, "GET", "DELETE")
	add("token session", prefix(path+"/sessions/"), convention.PathSessions+"/", tokenTimeout, "DELETE")
	add("token", exactPath(path), convention.PathLogin, login, "POST")
	add("token", exactPath(path+"/"), convention.PathLogin, login, "POST")
	return b.checked(append(out, b.nothing("token", atAndBelow(path))...))
}

// catchAll answers for every path that nobody has.
func (b *builder) catchAll() []*routev3.Route {
	b.about = "routes"
	return b.checked(b.nothing("unknown", prefix("/")))
}

// nothing answers 404, and preflights so that the page that asked can read the 404.
func (b *builder) nothing(name string, at *routev3.RouteMatch) []*routev3.Route {
	open := b.gate(authz.Rule{Service: name})
	return []*routev3.Route{
		preflight(name, at, b.corsPolicy(commonMethods, b.gw.Cors.ExposeHeaders), open),
		answer(name+" 404", at, 404, open),
	}
}

// dressedDots refuses a path in which a dot segment bears a parameter: /items/..;/admin. Envoy resolves those as
// they stand, and then unescapes %2e, which makes new ones of /items/%2e%2e;/admin. A server that drops
// parameters from a path, as those of Java do, would take what is left of it for a way up and out of the
// service, to what may need a token there. Nobody means such a path.
func (b *builder) dressedDots() *routev3.Route {
	b.about = "malformed paths"
	at := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{ // of the path without its query
		SafeRegex: &matcherv3.RegexMatcher{Regex: `.*/\.\.?(;|%3[bB]).*`},
	}}
	return b.checked([]*routev3.Route{answer("malformed", at, 400, b.gate(authz.Rule{Service: "malformed"}))})[0]
}

// beacon is the route that tells which version Envoy serves. It is asked about in no case: it must tell the
// truth also while Gatepost is away.
func (b *builder) beacon() []*routev3.Route {
	b.about = "version"
	return b.checked([]*routev3.Route{{
		Name:  "version",
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: VersionPath}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 200,
			Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: jsonString(b.version)}},
		}},
		TypedPerFilterConfig: map[string]*anypb.Any{filterAuthz: b.pack(authz.Unchecked())},
	}})
}
