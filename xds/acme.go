package xds

import (
	"slices"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	"gatepost/convention"
)

// challengeTimeout is the timeout of a challenge, which reads at most one value of Redis.
const challengeTimeout = 10 * time.Second

// allows reports whether a challenge of ACME may be used.
func (b *builder) allows(challenge string) bool {
	return b.gw.TLS != nil && b.gw.TLS.ACME != nil && slices.Contains(b.gw.TLS.ACME.Challenges, challenge)
}

// challengeChain passes connections of TLS-ALPN-01 on to Gatepost, as they are. Envoy looks at the server name before
// it looks at the protocol, so the chain names the servers. It is there for every source: a CA has many.
func (b *builder) challengeChain() *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		Name: "acme",
		FilterChainMatch: &listenerv3.FilterChainMatch{
			ServerNames: b.gw.TLS.ACME.Domains, ApplicationProtocols: []string{convention.ACMEProtocol},
		},
		Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.tcp_proxy",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.pack(&tcpproxyv3.TcpProxy{
				StatPrefix:       "acme",
				ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: b.opts.HTTPCluster},
				TunnelingConfig:  &tcpproxyv3.TcpProxy_TunnelingConfig{Hostname: convention.ACMEAuthority},
			})},
		}},
	}
}

// challengeRoutes lead HTTP-01 to Gatepost, if it may be used. They are beside the version, and so on the listener that
// redirects alone.
func (b *builder) challengeRoutes() []*routev3.Route {
	if !b.allows(convention.ACMEHTTP01) {
		return nil
	}
	b.about = "acme"
	return []*routev3.Route{{
		Name:                 "acme challenge",
		Match:                prefix(convention.ACMEChallengePath),
		Action:               &routev3.Route_Route{Route: forwardTo(b.opts.HTTPCluster, "", challengeTimeout)},
		TypedPerFilterConfig: map[string]*anypb.Any{filterAuthz: b.pack(authz.Unchecked())},
	}}
}
