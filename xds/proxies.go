package xds

import (
	"net/netip"
	"slices"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlymutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	xffv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/original_ip_detection/xff/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/definitions"
)

// A connection from a trusted proxy has a filter chain of its own, because trust is a setting of the connection
// manager: one that takes the client's address from X-Forwarded-For also keeps X-Forwarded-Proto and X-Request-Id.
// Envoy chooses the chain by the address of the peer, so no header can choose it.
//
// With the PROXY protocol, two addresses count: that of the peer, and the one that the peer names. A peer that is no
// proxy may name any, so only a chain that serves nothing but the version takes its connections. A proxy that names
// another proxy, or sends no PROXY header, is followed to X-Forwarded-For.
//
// In every chain Envoy writes the address into a header, over the client's: ext_authz would only receive the peer's.
// (Envoy docs, "HTTP header manipulation", x-forwarded-for, and "Proxy Protocol".)

// believesProxies reports whether clients may come through trusted proxies.
func (b *builder) believesProxies() bool { return len(b.gw.ClientAddresses.TrustedProxies) > 0 }

// trustProxies adds the filter chains for trusted proxies to a listener. The first chain remains the one for
// connections whose headers are not trusted.
func (b *builder) trustProxies(l *listenerv3.Listener) {
	if !b.believesProxies() {
		return
	}
	ranges := cidrs(b.gw.ClientAddresses.TrustedProxies)
	direct, proxied := l.GetFilterChains()[0], b.chain(b.proxiedManager(b.connectionManager()))
	direct.Name, proxied.Name = "direct", "proxied"
	proxied.FilterChainMatch = &listenerv3.FilterChainMatch{SourcePrefixRanges: ranges}
	if b.gw.ClientAddresses.ProxyProtocol {
		direct.FilterChainMatch = &listenerv3.FilterChainMatch{DirectSourcePrefixRanges: ranges}
		proxied.FilterChainMatch.DirectSourcePrefixRanges = ranges
		l.DefaultFilterChain = b.chain(b.strangersManager())
		l.DefaultFilterChain.Name = "not a proxy"
		l.ListenerFilters = []*listenerv3.ListenerFilter{b.proxyProtocol()}
	}
	l.FilterChains = append(l.FilterChains, proxied)
}

// proxiedManager turns a connection manager into one that serves the connections of trusted proxies.
func (b *builder) proxiedManager(manager *hcmv3.HttpConnectionManager) *hcmv3.HttpConnectionManager {
	ranges := cidrs(b.gw.ClientAddresses.TrustedProxies)
	manager.UseRemoteAddress = nil // Envoy refuses both
	manager.OriginalIpDetectionExtensions = []*corev3.TypedExtensionConfig{{
		Name: convention.HeaderForwardedFor,
		TypedConfig: b.pack(&xffv3.XffConfig{
			XffTrustedCidrs: &xffv3.XffTrustedCidrs{Cidrs: slices.Concat(ranges, mapped(b.gw.ClientAddresses.TrustedProxies))},
			SkipXffAppend:   wrapperspb.Bool(false), // upstreams receive the whole chain
		}),
	}}
	return manager
}

// strangersManager serves the version, and answers everything else 403. Gatepost asks for the version from an address
// that need not be one of the proxies'. It logs nothing: the address of a line could be the invention of the peer.
func (b *builder) strangersManager() *hcmv3.HttpConnectionManager {
	manager := b.versionManager()
	notProxy := reply{status: 404, as: 403, text: "Connect to the load balancer."}
	manager.LocalReplyConfig = &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{notProxy.mapper(nil, nil), versionReply()}}
	return manager
}

// versionManager serves the version, and has no route for anything else.
func (b *builder) versionManager() *hcmv3.HttpConnectionManager {
	manager := b.connectionManager()
	manager.AccessLog, manager.AlwaysSetRequestIdInResponse, manager.Tracing = nil, false, nil
	manager.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{{
		Name: filterStrip,
		TypedConfig: b.pack(&earlymutationv3.HeaderMutation{Mutations: []*mutationrulesv3.HeaderMutation{
			overwrite(scopeHeader, definitions.VersionPath),
		}}),
	}}
	manager.HttpFilters = []*hcmv3.HttpFilter{httpFilter(filterRouter, b.pack(&routerv3.Router{SuppressEnvoyHeaders: true}))}
	return manager
}

// proxyProtocol reads a PROXY header if there is one. Those of peers that are no proxies choose no other filter chain.
func (b *builder) proxyProtocol() *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: "proxy_protocol", ConfigType: &listenerv3.ListenerFilter_TypedConfig{
		TypedConfig: b.pack(&proxyprotocolv3.ProxyProtocol{AllowRequestsWithoutProxyProtocol: true}),
	}}
}

// checkedHeaders are the request headers that Envoy sends with a Check.
func (b *builder) checkedHeaders() []string {
	headers := authz.CheckedHeaders(b.gw.Tokens.Cookie, b.gw.Tokens.Subprotocol)
	if b.believesProxies() {
		headers = append(headers, convention.HeaderClientAddress)
	}
	return headers
}

// nameClient sets the header with the client's address. (By itself Envoy sets it in the first chain only.)
func (b *builder) nameClient() []*mutationrulesv3.HeaderMutation {
	if !b.believesProxies() {
		return nil
	}
	return []*mutationrulesv3.HeaderMutation{overwrite(convention.HeaderClientAddress, formatClient)}
}

// mapped returns the IPv4 ranges as IPv6 (RFC 4291 §2.5.5.2): a proxy that listens on both writes addresses like that.
func mapped(prefixes []netip.Prefix) []*corev3.CidrRange {
	var out []netip.Prefix
	for _, p := range prefixes {
		if p.Addr().Is4() {
			out = append(out, netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), 96+p.Bits()))
		}
	}
	return cidrs(out)
}

func cidrs(prefixes []netip.Prefix) []*corev3.CidrRange {
	out := make([]*corev3.CidrRange, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))})
	}
	return out
}
