package xds

import (
	"fmt"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/definitions"
)

// service is one service of the definitions.
type service struct {
	def  *definitions.Service
	path string
	// withheld: nothing leads to its upstreams.
	withheld bool
	// cluster is the name of its cluster.
	cluster string
}

// base is the path on the upstreams, which differ only in host and port.
func (s *service) base() string { return s.def.Upstreams[0].Base }

func (s *service) String() string { return fmt.Sprintf("service %q", s.def.Name) }

// service returns what the resources of a service need.
func (b *builder) service(def *definitions.Service) *service {
	s := &service{def: def, path: def.Path, withheld: b.opts.withheld(def.Name)}
	s.cluster = b.clusterName(s)
	return s
}

// clusterName returns a name that has the base path in it, because routes rewrite to it: a change of the base is then
// another cluster, and old routes never meet the new one. If Envoy has to look up names, all of the upstreams are in it
// too: a cluster that is changed would have no host until they are looked up, another one leaves the old one as it is.
func (b *builder) clusterName(s *service) string {
	if s.withheld {
		return nowhere
	}
	name := clusterOf + s.def.Name + s.base()
	if !looksUp(s.def.Upstreams) {
		return name
	}
	content := hashed(b.opts.CAFile)
	for _, u := range s.def.Upstreams {
		content.add(fmt.Sprintf("%v %s %d", u.TLS, u.Host, u.Port))
	}
	return name + clusterHash + content.short()
}

// clusterHash is what the hash in a cluster's name comes after.
const clusterHash = "#"

// statName is the name of a cluster in Envoy's metrics if it is not its own name.
func statName(s *service) string {
	name, _, hasHash := strings.Cut(s.cluster, clusterHash)
	if !hasHash {
		return ""
	}
	return name
}

// surface is the service as clients see it.
func (s *service) surface(b *builder) surface {
	expose := b.exposed()
	if s.def.Authenticate {
		expose = b.exposed(challengeHeader)
	}
	return surface{
		name:    s.def.Name,
		at:      []*routev3.RouteMatch{atAndBelow(s.path)},
		methods: s.def.Methods,
		expose:  expose,
		hide:    []string{b.gw.Identity.UserHeader}, // an upstream that echoes its request would return the id
		rule: authz.Rule{
			Service:      s.def.Name,
			Authenticate: s.def.Authenticate,
			Scopes:       s.def.Scopes,
			ForwardToken: s.def.ForwardToken,
			Longest:      s.longest(),
		},
		forward:    s.forwards(b.gw.Tokens.Lifetime),
		keepsToken: s.def.ForwardToken,
	}
}

// longest is how long a request lasts at most, from its first byte; 0 where it may become a WebSocket, which ends when
// one of its sides ends it.
func (s *service) longest() time.Duration {
	if s.def.WebSocket {
		return 0
	}
	return requestTimeout + s.def.Timeout
}

// forwards gives the routes that a prefix needs, to come off cleanly: where nothing comes in its place two, `/orders` alone,
// and `/orders/` with what follows. One route with the prefix `/orders` would send `//5` for `/orders/5`.
func (s *service) forwards(lifetime time.Duration) []forward {
	timeout := s.def.Timeout
	to := func(rewrite string) *routev3.RouteAction {
		action := forwardTo(s.cluster, rewrite, timeout)
		if s.def.WebSocket {
			s.upgrade(action, lifetime)
		}
		return action
	}
	root := s.base()
	if s.def.KeepPrefix && s.path != "/" {
		root += s.path
	}
	switch {
	case s.path == "/":
		return []forward{{prefix("/"), to(root + "/")}}
	case root != "":
		return []forward{{atAndBelow(s.path), to(root)}}
	}
	return []forward{
		{exactPath(s.path), to("/")},
		{prefix(s.path + "/"), to("/")},
	}
}

// upgrade lets requests become WebSockets. The listener lets none, so every other route refuses them. The timeout does
// not end one: it runs from the end of the request, and an upgraded request ends with the stream. Where a token is
// needed the decision says how long the stream may live; that no token lives longer than tokens.lifetime is the
// bound behind it.
func (s *service) upgrade(action *routev3.RouteAction, lifetime time.Duration) {
	action.UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "websocket", Enabled: wrapperspb.Bool(true)}}
	if s.def.Authenticate {
		action.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(lifetime)}
	}
}

// loginTimeout is the timeout of the login: that of the user service, and some time for the rest.
func loginTimeout(a *definitions.Authenticator) time.Duration {
	return a.Timeout + 5*time.Second
}
