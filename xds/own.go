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

// tokenTimeout is the timeout of the token handler's endpoints except the login. A revoke can wait until no gateway
// accepts the token any more.
const tokenTimeout = 10 * time.Second

// commonMethods are the methods that preflights of unknown paths allow, so that the page can read the 404.
var commonMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

// tokenRoutes are the gateway's own endpoints under tokens.path. They need an origin if origins are listed, but no
// token, because the handler checks it. Every other path below is 404.
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
		out = append(out, b.groupRoutes(endpointGroup{
			name:    name,
			version: b.versionOf(nil),
			at:      []*routev3.RouteMatch{at},
			methods: methods,
			expose:  b.exposed("token", "expires_in", authenticator.UserHeader, challengeHeader),
			rule:    authz.Rule{Service: "token"},
			forward: []forward{{at, forwardTo(b.opts.HTTPCluster, rewrite, timeout)}},

			keepsToken: rewrite != convention.PathLogin, // a page also sends its old token, which the user service does not need
		})...)
	}
	add("token revoke", exactPath(path+convention.BelowRevoke), convention.PathRevoke, tokenTimeout, "POST")
	add("token refresh", exactPath(path+convention.BelowRefresh), convention.PathRefresh, tokenTimeout, "POST")
	add("token introspect", exactPath(path+convention.BelowIntrospect), convention.PathIntrospect, tokenTimeout, "POST")
	add("token sessions", exactPath(path+convention.BelowSessions), convention.PathSessions, tokenTimeout, "GET", "DELETE")
	add("token session", prefix(path+convention.BelowSessions+"/"), convention.PathSessions+"/", tokenTimeout, "DELETE")
	add("token", exactPath(path), convention.PathLogin, login, "POST")
	add("token", exactPath(path+"/"), convention.PathLogin, login, "POST")
	return append(out, b.nothing("token", atAndBelow(path))...)
}

// catchAll responds to requests for unknown paths.
func (b *builder) catchAll() []*routev3.Route {
	b.about = "routes"
	return b.nothing("unknown", prefix("/"))
}

// nothing responds 404, and allows preflights so that the page can read the 404.
func (b *builder) nothing(name string, at *routev3.RouteMatch) []*routev3.Route {
	open := b.extAuthzPerRoute(authz.Rule{Service: name})
	return []*routev3.Route{
		b.logged(preflight(name, at, b.corsPolicy(commonMethods, b.gw.Cors.ExposeHeaders), open), endpointGroup{}, decidedPreflight),
		b.logged(answer(name+" 404", at, 404, open), endpointGroup{}, decidedNotFound),
	}
}

// rejectDotParams refuses a path in which a dot segment has a parameter: /items/..;/admin. Envoy resolves such a
// segment, but unescapes %2e only afterwards, so /items/%2e%2e;/admin becomes another one. A server that removes
// parameters from a path, as Java's do, would resolve it to a path outside the service, which may need a token. No
// client needs such a path.
func (b *builder) rejectDotParams() *routev3.Route {
	b.about = "malformed paths"
	at := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{ // of the path without its query
		SafeRegex: &matcherv3.RegexMatcher{Regex: `.*/\.\.?(;|%3[bB]).*`},
	}}
	return b.malformed("malformed", at)
}

// malformed responds 400.
func (b *builder) malformed(name string, at *routev3.RouteMatch) *routev3.Route {
	route := answer(name, at, 400, b.extAuthzPerRoute(authz.Rule{Service: "malformed"}))
	return b.logged(route, endpointGroup{}, decidedMalformed)
}

// beacon is the route that responds with the version of the routes. It is never checked, so that it also works while
// Gatepost is down.
func (b *builder) beacon() []*routev3.Route {
	b.about = "version"
	return []*routev3.Route{{
		Name:    "version",
		Tracing: b.untraced(),
		Match:   &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: definitions.VersionPath}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 200,
			Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: jsonString(b.version)}},
		}},
		// Shorter than [authz.Unchecked], because the beacon is sent with each change. It is found without the scope
		// filter, or not at all, since the case of its path counts.
		TypedPerFilterConfig: b.uncounted(map[string]*anypb.Any{filterAuthz: b.disabled()}),
	}}
}

// uncounted excepts a route from the gateway's limits: Gatepost itself asks for the version.
func (b *builder) uncounted(perFilter map[string]*anypb.Any) map[string]*anypb.Any {
	if definitions.HasLimits(b.gw.RateLimits, false) {
		perFilter[filterGatewayLimits] = b.disabled()
	}
	if definitions.HasLimits(b.gw.RateLimits, true) {
		perFilter[filterGatewayClusterLimits] = b.disabled()
	}
	return perFilter
}
