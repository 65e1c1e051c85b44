package xds

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/definitions"
)

// byPath orders services for matching: longest path first. The order in the definitions has no effect.
func byPath(a, b *service) int {
	return cmp.Or(cmp.Compare(len(b.path), len(a.path)), strings.Compare(strings.ToLower(a.path), strings.ToLower(b.path)))
}

// endpointGroup accepts some methods at some paths: a service, or one of the gateway's own endpoints.
type endpointGroup struct {
	name    string
	version string                // of its definitions, for the access log and spans
	at      []*routev3.RouteMatch // the paths whose preflights it answers, and whose other methods it refuses
	methods []string
	expose  []string // response headers that a page can read
	hide    []string // response headers that are removed
	rule    authz.Rule
	forward []forward
	// redirect are the routes of a service without upstreams.
	redirect []redirect
	// certificate is whether a request needs a client certificate.
	certificate bool
	// maintenance is the response instead of all of these; nil if there is none.
	maintenance *definitions.Maintenance
	// requestHeaders are changes for the upstreams, responseHeaders changes of every response.
	requestHeaders, responseHeaders definitions.Headers
	// rateLimits are the limits of the service.
	rateLimits []definitions.RateLimit
	// limits are the settings of the routes for filters of limits. :: filter → setting
	limits map[string]*anypb.Any
	// keepsToken is whether the upstream receives a token of this gateway in Authorization.
	keepsToken bool
	// trailers is whether the upstream would receive trailers of requests.
	trailers bool
}

// forward is a match and its upstream.
type forward struct {
	at *routev3.RouteMatch
	to *routev3.RouteAction
}

// groupRoutes makes the routes of a group: first preflights, then 405 for other methods (before a token is checked),
// then the routes to the upstream.
func (b *builder) groupRoutes(s endpointGroup) []*routev3.Route {
	cors := b.corsPolicy(s.methods, s.expose)
	s.rule = b.identify(s.rule)
	rule, open := b.extAuthzPerRoute(s.rule), b.extAuthzPerRoute(authz.Rule{Service: s.rule.Service})
	var out []*routev3.Route
	for _, at := range s.at {
		out = append(out,
			b.logged(preflight(s.name, at, cors, open), s, decidedPreflight),
			b.logged(answer(s.name+" 405", with(at, noneOf(s.methods)...), 405, open, allowed(s.methods)), s, decidedMethod))
	}
	if s.maintenance != nil {
		return strip(append(out, b.maintenance(s, open)...), b.stripOn(s, false))
	}
	if s.certificate {
		for _, at := range s.at {
			out = append(out, b.logged(answer(s.name+" certificate", withoutCertificate(at), StatusNoCertificate, open), s, decidedCertificate))
		}
	}
	perFilter := b.filterSettings(s, cors, rule)
	for _, f := range s.forward {
		route := b.forwardRoute(s, f, perFilter)
		if b.mayOfferToken(s) && takesUpgrades(f.to) {
			out = append(out, b.logged(b.offersToken(route, s.rule), s, decides(s.rule)))
		}
		out = append(out, b.logged(route, s, decides(s.rule)))
	}
	for _, r := range s.redirect {
		out = append(out, b.logged(&routev3.Route{
			Name: s.name, Match: r.at, Action: &routev3.Route_Redirect{Redirect: r.to}, TypedPerFilterConfig: perFilter,
		}, s, decides(s.rule)))
	}
	return strip(out, b.stripOn(s, false))
}

// filterSettings returns the settings of the filters on the routes to the upstreams of s. :: filter → setting
func (b *builder) filterSettings(s endpointGroup, cors, rule *anypb.Any) map[string]*anypb.Any {
	perFilter := map[string]*anypb.Any{filterCORS: cors, filterAuthz: rule}
	maps.Copy(perFilter, s.limits)
	stripOn := b.stripOn(s, s.trailers)
	if stripOn != nil {
		perFilter[filterStrip] = stripOn
	}
	strips := stripOn == nil && b.stripsAlike()
	if on := b.moduleOn(s.rule, strips); on != nil {
		perFilter[filterModule] = on
		if strips {
			perFilter[filterStrip] = b.disabled()
		}
		if b.describes() {
			perFilter[keptPath] = b.disabled() // the module keeps the path
		}
	}
	switch {
	case s.keepsToken:
		perFilter[filterOwnToken] = b.keepsToken()
	case s.rule.Authenticate:
		perFilter[filterOwnToken] = b.disabled() // the decision has removed the token
	}
	return perFilter
}

// forwardRoute is a route to an upstream of s.
func (b *builder) forwardRoute(s endpointGroup, f forward, perFilter map[string]*anypb.Any) *routev3.Route {
	route := &routev3.Route{
		Name:                    s.name,
		Match:                   f.at,
		Action:                  &routev3.Route_Route{Route: f.to},
		TypedPerFilterConfig:    perFilter,
		RequestHeadersToAdd:     append(connection(f.to), setHeaders(s.requestHeaders)...),
		RequestHeadersToRemove:  b.requestHeadersToRemove(s, f.to),
		ResponseHeadersToRemove: s.hide,
		Metadata:                metadataOf(s, f.to),
	}
	if f.to.GetRetryPolicy() != nil {
		route.RequestBodyBufferLimit = wrapperspb.UInt64(retryBody)
	}
	return route
}

// mayOfferToken reports whether requests for s reach an upstream unchecked, and can contain a token in a subprotocol
// that the upstream must not receive.
func (b *builder) mayOfferToken(s endpointGroup) bool {
	return b.gw.Tokens.Subprotocol != "" && !b.checks(s.rule) && !s.keepsToken
}

// offersToken is a copy of a public route for handshakes that offer the subprotocol of a token. Only these are checked:
// Gatepost removes the token from the list and leaves the other subprotocols.
func (b *builder) offersToken(route *routev3.Route, rule authz.Rule) *routev3.Route {
	twin := proto.CloneOf(route)
	twin.Match = with(route.GetMatch(), contains(headerSubprotocols, b.gw.Tokens.Subprotocol))
	twin.TypedPerFilterConfig[filterAuthz] = b.asking(rule)
	return twin
}

// requestHeadersToRemove returns the request headers that a route removes: the client's copy of the identity header.
// If a token is needed, the decision overwrites it instead. The header is in the route, like the rule that names it,
// so a change of its name is atomic. A public route without upgrades also removes the list of subprotocols: only a
// handshake needs it, and it can contain a token.
func (b *builder) requestHeadersToRemove(s endpointGroup, to *routev3.RouteAction) []string {
	if s.rule.Authenticate {
		return s.requestHeaders.Remove
	}
	remove := append([]string{b.gw.Identity.UserHeader}, s.requestHeaders.Remove...)
	if b.mayOfferToken(s) && !takesUpgrades(to) {
		remove = append(remove, headerSubprotocols)
	}
	return remove
}

// headerSubprotocols lists the subprotocols that a WebSocket's client offers (RFC 6455 §11.3.4).
const headerSubprotocols = "sec-websocket-protocol"

func takesUpgrades(to *routev3.RouteAction) bool { return len(to.GetUpgradeConfigs()) > 0 }

// connection overwrites the client's Connection header on routes with upgrades. Envoy removes it, and the headers
// that it names, from other requests. It forwards the one of an upgrade, and if that named the identity header, a
// proxy further up would remove the user's id.
func connection(to *routev3.RouteAction) []*corev3.HeaderValueOption {
	if !takesUpgrades(to) {
		return nil
	}
	return []*corev3.HeaderValueOption{{
		Header:       &corev3.HeaderValue{Key: "connection", Value: "upgrade"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS,
	}}
}

// metadataWebSocket is the key, in the metadata of filterScope, of whether a route has WebSockets.
const metadataWebSocket = "websocket"

// metadataOf is the metadata of a route to an upstream: the names of its limits, and that by which the scope filter
// recognizes a route with WebSockets.
func metadataOf(s endpointGroup, to *routev3.RouteAction) *corev3.Metadata {
	all := map[string]*structpb.Struct{}
	nameLimits(s.name, s.rateLimits, all)
	if takesUpgrades(to) {
		all[filterScope] = &structpb.Struct{Fields: map[string]*structpb.Value{metadataWebSocket: structpb.NewBoolValue(true)}}
	}
	if len(all) == 0 {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: all}
}

// preflight is a route on which the CORS filter responds. It has no upstream.
func preflight(name string, at *routev3.RouteMatch, cors, rule *anypb.Any) *routev3.Route {
	return &routev3.Route{
		Name:                 name + " preflight",
		Match:                with(at, preflightHeaders()...),
		Action:               &routev3.Route_Route{Route: toCluster(blackhole)},
		TypedPerFilterConfig: map[string]*anypb.Any{filterCORS: cors, filterAuthz: rule},
	}
}

// answer is a route with a direct response. The listener sets its body and its CORS headers (replies).
func answer(name string, at *routev3.RouteMatch, status uint32, rule *anypb.Any, headers ...*corev3.HeaderValueOption) *routev3.Route {
	return &routev3.Route{
		Name:                 name,
		Match:                at,
		Action:               &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: status}},
		ResponseHeadersToAdd: headers,
		TypedPerFilterConfig: map[string]*anypb.Any{filterAuthz: rule},
	}
}

// allowed is the Allow header (RFC 9110 §15.5.6).
func allowed(methods []string) *corev3.HeaderValueOption {
	return setHeader("allow", strings.Join(methods, ", "))
}

// envoysTimeout is the default timeout of a route.
const envoysTimeout = 15 * time.Second

func toCluster(name string) *routev3.RouteAction {
	return &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}
}

// forwardTo forwards a request with the matched part of its path replaced. An empty rewrite keeps the path. The query
// is always kept.
func forwardTo(cluster, rewrite string, timeout time.Duration) *routev3.RouteAction {
	to := toCluster(cluster)
	to.PrefixRewrite = rewrite
	if timeout != envoysTimeout {
		to.Timeout = durationpb.New(timeout)
	}
	return to
}

// endIdle ends idle streams of a route whose timeout ends none that has become a WebSocket or a call of gRPC. A slow
// upstream looks like an idle stream, but the timeout of the service must end that.
//
// No other route needs it. A request must have arrived within requestTimeout, and the timeout of the route ends the
// response. The longest duration of both ends a request that its response overtakes. A client must take what Envoy
// holds for it within the flush timeout. A timer for idle streams would cost every request two percent of Envoy's
// instructions: each part of a request and of a response sets it again.
func endIdle(to *routev3.RouteAction, timeout time.Duration) {
	to.IdleTimeout = durationpb.New(max(streamIdleTimeout, timeout+5*time.Second))
}

// Paths are matched without their query. Case is ignored.

func exactPath(path string) *routev3.RouteMatch {
	return &routev3.RouteMatch{
		PathSpecifier: &routev3.RouteMatch_Path{Path: path},
		CaseSensitive: wrapperspb.Bool(false),
	}
}

func prefix(path string) *routev3.RouteMatch {
	return &routev3.RouteMatch{
		PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: path},
		CaseSensitive: wrapperspb.Bool(false),
	}
}

// atAndBelow matches a path and the paths below it, but not a path that only starts with the same letters.
func atAndBelow(path string) *routev3.RouteMatch {
	if path == "/" {
		return prefix("/")
	}
	return &routev3.RouteMatch{
		PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: path},
		CaseSensitive: wrapperspb.Bool(false),
	}
}

// with returns a match with more header matchers.
func with(m *routev3.RouteMatch, headers ...*routev3.HeaderMatcher) *routev3.RouteMatch {
	return &routev3.RouteMatch{
		PathSpecifier: m.GetPathSpecifier(),
		CaseSensitive: m.GetCaseSensitive(),
		Headers:       slices.Concat(m.GetHeaders(), headers),
	}
}
