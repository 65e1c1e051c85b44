package xds

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
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
	// upstreams is its cluster until that is a resource. If it is nil, it has no upstreams, or they receive no requests.
	upstreams *clusterv3.Cluster
	// cluster is the name of the cluster that its routes lead to.
	cluster string
}

// hasUpstreams reports whether the service has upstreams. Otherwise it redirects.
func (s *service) hasUpstreams() bool { return s.def.Redirect == nil }

// base is the path on the upstreams, which differ only in host and port.
func (s *service) base() string { return s.def.Upstreams[0].Base }

func (s *service) String() string { return fmt.Sprintf("service %q", s.def.Name) }

// service returns what the resources of a service need.
func (b *builder) service(def *definitions.Service) *service {
	if known := b.services[def]; known != nil {
		return known
	}
	s := &service{def: def, path: def.Path, cluster: blackhole}
	b.services[def] = s
	if s.hasUpstreams() && !b.opts.withheld(def.Name) {
		s.upstreams = b.upstreamsOf(s)
		s.cluster = s.upstreams.GetName()
	}
	return s
}

// clusterHash precedes the hash in a cluster's name.
const clusterHash = "#"

// endpoints returns the endpoint group of the service.
func (s *service) endpoints(b *builder) endpointGroup {
	var own []string
	if s.def.Authenticate {
		own = append(own, challengeHeader)
	}
	if len(s.def.RateLimits) > 0 {
		own = append(own, limitHeaders...)
	}
	group := endpointGroup{
		name:    s.def.Name,
		version: b.versionOf(s.def),
		at:      []*routev3.RouteMatch{atAndBelow(s.path)},
		methods: s.def.Methods,
		expose:  b.exposed(own...),
		hide:    []string{b.gw.Identity.UserHeader}, // an upstream that echoes its request would return the id
		rule: authz.Rule{
			Service:      s.def.Name,
			Authenticate: s.def.Authenticate,
			Scopes:       s.def.Scopes,
			ForwardToken: s.def.ForwardToken,
			Longest:      s.longest(),
		},
		keepsToken:      s.def.ForwardToken,
		requestHeaders:  s.def.RequestHeaders,
		responseHeaders: s.def.ResponseHeaders,
		certificate:     s.def.ClientCertificate,
		rateLimits:      s.def.RateLimits,
		limits:          b.clusterLimits(s.def),
	}
	switch {
	case s.def.Maintenance != nil:
		group.maintenance = s.def.Maintenance
	case s.hasUpstreams():
		group.forward, group.trailers = s.forwards(b), s.protocol() != onlyHTTP1
	default:
		group.redirect = s.redirects()
	}
	return group
}

// longest is the longest duration of a request, from its first byte. It is 0 if the request can become a WebSocket or
// is a gRPC call, which only its two sides end. If an upstream begins its response before the request has arrived,
// neither requestTimeout nor the timeout of the route ends the request, so the cluster has this limit too.
func (s *service) longest() time.Duration {
	if s.def.WebSocket || s.def.GRPC {
		return 0
	}
	return requestTimeout + s.def.Timeout
}

// forwards returns the routes that remove the prefix. If nothing replaces it, there are two: `/orders` alone, and
// `/orders/` with the rest. A single route with the prefix `/orders` would turn `/orders/5` into `//5`.
func (s *service) forwards(b *builder) []forward {
	lifetime := b.gw.Tokens.Lifetime
	to := func(rewrite string) *routev3.RouteAction {
		action := forwardTo(s.cluster, rewrite, s.def.Timeout)
		action.HashPolicy = s.hashPolicy(b.gw.Identity.UserHeader)
		if s.def.WebSocket {
			s.upgrade(action)
		}
		if s.def.GRPC {
			s.stream(action, lifetime)
		}
		return action
	}
	root := s.base()
	if s.def.KeepPrefix && s.path != "/" {
		root += s.path
	}
	switch {
	case s.path == "/":
		return b.retried(s.def, forward{prefix("/"), to(root + "/")})
	case root != "":
		return b.retried(s.def, forward{atAndBelow(s.path), to(root)})
	}
	return b.retried(s.def, forward{exactPath(s.path), to("/")}, forward{prefix(s.path + "/"), to("/")})
}

// upgrade allows WebSockets on a route. The listener allows none, so all other routes refuse them. The timeout does
// not end a WebSocket: it runs from the end of the request, and an upgraded request ends with the stream. If a token
// is needed, the decision limits the stream to the lifetime of the token.
func (s *service) upgrade(action *routev3.RouteAction) {
	action.UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "websocket", Enabled: wrapperspb.Bool(true)}}
	endIdle(action, s.def.Timeout)
}

// stream makes the grpc-timeout of a call its limit. If a token is needed, tokens.lifetime is a second one, as in
// upgrade. (The route's timeout is 0: it would end streams.)
func (s *service) stream(action *routev3.RouteAction, lifetime time.Duration) {
	limit := &routev3.RouteAction_MaxStreamDuration{GrpcTimeoutHeaderMax: durationpb.New(0)} // of any length
	if s.def.Authenticate {
		limit.MaxStreamDuration, limit.GrpcTimeoutHeaderMax = durationpb.New(lifetime), durationpb.New(lifetime)
	}
	action.MaxStreamDuration = limit
	endIdle(action, s.def.Timeout)
}

// loginTimeout is the timeout of the login: that of the user service, and some time for the rest.
func loginTimeout(a *definitions.Authenticator) time.Duration {
	return a.Timeout + 5*time.Second
}
