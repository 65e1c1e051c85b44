package xds

import (
	"cmp"
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
)

// checked holds routes against Envoy's rules.
func (b *builder) checked(routes []*routev3.Route) []*routev3.Route {
	for _, r := range routes {
		b.validate(r)
	}
	return routes
}

// byPath orders services for matching: longest path first. The order of the definitions never matters.
func byPath(a, b *service) int {
	return cmp.Or(cmp.Compare(len(b.path), len(a.path)), strings.Compare(strings.ToLower(a.path), strings.ToLower(b.path)))
}

// surface is a part of the gateway that takes some methods at some paths: a service, or an endpoint of the
// gateway's own.
type surface struct {
	name    string
	at      []*routev3.RouteMatch // the paths where it answers preflights and refuses other methods
	methods []string
	expose  []string // answer headers that a page may read
	hide    []string // answer headers that no client gets
	rule    authz.Rule
	forward []forward
	// keepsToken says that what is behind it gets Authorization with a token of this gateway.
	keepsToken bool
}

// forward says how requests for a path go on.
type forward struct {
	at *routev3.RouteMatch
	to *routev3.RouteAction
}

// surface makes the routes: preflights first, then the refusal of methods that are not in the list (before any
// token is asked for), then what is forwarded.
func (b *builder) surface(s surface) []*routev3.Route {
	cors := b.corsPolicy(s.methods, s.expose)
	s.rule = b.identify(s.rule)
	rule, open := b.gate(s.rule), b.gate(authz.Rule{Service: s.rule.Service})
	var out []*routev3.Route
	for _, at := range s.at {
		out = append(out,
			preflight(s.name, at, cors, open),
			answer(s.name+" 405", with(at, noneOf(s.methods)...), 405, open, allowed(s.methods)))
	}
	perFilter := map[string]*anypb.Any{filterCORS: cors, filterAuthz: rule}
	if on := b.moduleOn(s.rule); on != nil {
		perFilter[filterModule] = on
	}
	if s.keepsToken {
		perFilter[filterOwnToken] = b.keepsToken()
	}
	for _, f := range s.forward {
		route := &routev3.Route{
			Name:                    s.name,
			Match:                   f.at,
			Action:                  &routev3.Route_Route{Route: f.to},
			TypedPerFilterConfig:    perFilter,
			RequestHeadersToAdd:     connection(f.to),
			RequestHeadersToRemove:  b.claims(s, f.to),
			ResponseHeadersToRemove: s.hide,
			Metadata:                upgrades(f.to),
		}
		if b.mayOfferToken(s) && takesUpgrades(f.to) {
			out = append(out, b.offersToken(route, s.rule))
		}
		out = append(out, route)
	}
	return out
}

// mayOfferToken reports whether requests for s reach an upstream unchecked, and may contain a token in a subprotocol that
// the upstream is not to get.
func (b *builder) mayOfferToken(s surface) bool {
	return b.gw.Tokens.Subprotocol != "" && !b.checks(s.rule) && !s.keepsToken
}

// offersToken is a copy of a public route for handshakes that offer the subprotocol of a token. Only these are checked:
// Gatepost removes the token from the list and leaves the other subprotocols.
func (b *builder) offersToken(route *routev3.Route, rule authz.Rule) *routev3.Route {
	twin := proto.CloneOf(route)
	twin.Match = with(route.GetMatch(), contains(headerSubprotocols, b.gw.Tokens.Subprotocol))
	twin.TypedPerFilterConfig[filterAuthz] = b.pack(rule.With(b.shared()))
	return twin
}

// claims are what a route takes out of requests: the client's own copy of the header that bears the user's id. Where a token
// is needed the decision writes over it. It travels with the routes, as the rule does that names this header: a change
// of the name is one step, with no moment in between. A public route without upgrades also removes a list of subprotocols: only
// a handshake has a use for it, and it may contain a token.
func (b *builder) claims(s surface, to *routev3.RouteAction) []string {
	if s.rule.Authenticate {
		return nil
	}
	remove := []string{b.gw.Identity.UserHeader}
	if b.mayOfferToken(s) && !takesUpgrades(to) {
		remove = append(remove, headerSubprotocols)
	}
	return remove
}

// headerSubprotocols lists the subprotocols that a WebSocket's client offers (RFC 6455 §11.3.4).
const headerSubprotocols = "sec-websocket-protocol"

func takesUpgrades(to *routev3.RouteAction) bool { return len(to.GetUpgradeConfigs()) > 0 }

// connection keeps what a client says of the connection from the upstream of a route that takes upgrades. Of other
// requests Envoy drops it and each header that it names; of an upgrade it passes it on, and a proxy further up would
// drop the user's id that it names.
func connection(to *routev3.RouteAction) []*corev3.HeaderValueOption {
	if !takesUpgrades(to) {
		return nil
	}
	return []*corev3.HeaderValueOption{{
		Header:       &corev3.HeaderValue{Key: "connection", Value: "upgrade"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS,
	}}
}

// upgrades tells the filter of scope.lua that a route takes WebSockets.
func upgrades(to *routev3.RouteAction) *corev3.Metadata {
	if !takesUpgrades(to) {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		filterScope: {Fields: map[string]*structpb.Value{"websocket": structpb.NewBoolValue(true)}},
	}}
}

// preflight is a route on which the CORS filter answers; behind it is nothing.
func preflight(name string, at *routev3.RouteMatch, cors, rule *anypb.Any) *routev3.Route {
	return &routev3.Route{
		Name:                 name + " preflight",
		Match:                with(at, preflightHeaders()...),
		Action:               &routev3.Route_Route{Route: toCluster(nowhere)},
		TypedPerFilterConfig: map[string]*anypb.Any{filterCORS: cors, filterAuthz: rule},
	}
}

// answer is a route on which Envoy answers by itself. What it says and who may read it is the listener's (replies).
func answer(name string, at *routev3.RouteMatch, status uint32, rule *anypb.Any, headers ...*corev3.HeaderValueOption) *routev3.Route {
	return &routev3.Route{
		Name:                 name,
		Match:                at,
		Action:               &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: status}},
		ResponseHeadersToAdd: headers,
		TypedPerFilterConfig: map[string]*anypb.Any{filterAuthz: rule},
	}
}

// allowed lists the methods that are allowed (RFC 9110 §15.5.6).
func allowed(methods []string) *corev3.HeaderValueOption {
	return setHeader("allow", strings.Join(methods, ", "))
}

// envoysTimeout is the timeout of a route that says nothing of it.
const envoysTimeout = 15 * time.Second

func toCluster(name string) *routev3.RouteAction {
	return &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}
}

// forwardTo sends a request on with the matched part of its path replaced; an empty rewrite leaves the path as
// it is. The query is kept as it is.
func forwardTo(cluster, rewrite string, timeout time.Duration) *routev3.RouteAction {
	to := toCluster(cluster)
	to.PrefixRewrite = rewrite
	if timeout != envoysTimeout {
		to.Timeout = durationpb.New(timeout)
	}
	if timeout >= streamIdleTimeout {
		// A slow upstream looks like an idle stream; the service's own timeout is to end it.
		to.IdleTimeout = durationpb.New(timeout + 5*time.Second)
	}
	return to
}

// The ways in which a path is matched: without regard to case, and without the query.

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

// atAndBelow matches a path and what lies below it, but not a path that only starts with the same letters.
func atAndBelow(path string) *routev3.RouteMatch {
	if path == "/" {
		return prefix("/")
	}
	return &routev3.RouteMatch{
		PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: path},
		CaseSensitive: wrapperspb.Bool(false),
	}
}

// with is the same match with more headers asked for.
func with(m *routev3.RouteMatch, headers ...*routev3.HeaderMatcher) *routev3.RouteMatch {
	return &routev3.RouteMatch{
		PathSpecifier: m.GetPathSpecifier(),
		CaseSensitive: m.GetCaseSensitive(),
		Headers:       slices.Concat(m.GetHeaders(), headers),
	}
}
