package xds

import (
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The limits at the edge.
const (
	requestHeadersTimeout = 10 * time.Second
	requestTimeout        = 300 * time.Second // a body of any size, as long as it arrives within this time
	streamIdleTimeout     = 300 * time.Second
	connectionIdleTimeout = 300 * time.Second
	maxConnectionDuration = time.Hour
	maxHeadersKiB         = 16
	maxHeaders            = 64
	bufferLimit           = 32 << 10 // for backpressure; bodies are streamed and can be larger
)

// listeners are the one without TLS and, if it is set, the one with. They depend on the addresses, the origins, the
// places of tokens, the access log, the trusted proxies, the module, and the names of the certificates. Everything that
// changes with a service is in the routes, so that connections survive a change of services.
func (b *builder) listeners() []*listenerv3.Listener {
	b.about = "listener"
	plain := newListener(ListenerName, b.opts.ListenAddress(b.gw))
	all := []*listenerv3.Listener{plain}
	switch tls := b.gw.TLS; {
	case tls != nil && tls.Redirect:
		plain.FilterChains = []*listenerv3.FilterChain{b.chain(b.redirectManager())}
		if b.gw.ClientAddresses.ProxyProtocol {
			plain.ListenerFilters = []*listenerv3.ListenerFilter{b.proxyProtocol()}
		}
	default:
		plain.FilterChains = []*listenerv3.FilterChain{b.chain(b.connectionManager())}
		b.trustProxies(plain)
	}
	if b.opts.ServesTLS(b.gw) {
		all = append(all, b.httpsListener())
		if b.gw.TLS.HTTP3 {
			all = append(all, b.http3Listener())
		}
	}
	return all
}

func newListener(name string, addr netip.AddrPort) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: name,
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address:       addr.Addr().String(),
			PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(addr.Port())},
			Ipv4Compat:    addr.Addr() == addr.Addr().Unmap() && addr.Addr().Is6() && addr.Addr().IsUnspecified(),
		}}},
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
	}
}

// chain is a filter chain that serves HTTP. For QUIC, Envoy compares the whole URL of the type of its last filter.
func (b *builder) chain(manager *hcmv3.HttpConnectionManager) *listenerv3.FilterChain {
	packed := b.pack(manager)
	packed.TypeUrl = wholeTypeURL + string(packed.MessageName())
	return &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{
		Name:       "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed},
	}}}
}

// connectionManager follows Envoy's advice for an edge proxy. It is stricter about what no API client needs: escaped
// slashes and underscores in header names are refused. (Envoy docs, "Configuring Envoy as an edge proxy".)
func (b *builder) connectionManager() *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:       "gatepost",
		RouteSpecifier:   scopedRoutes(),
		HttpFilters:      b.httpFilters(false),
		LocalReplyConfig: b.localReplies(),
		// Without `server: envoy`, which definitions could not change. Virtual hosts remove that of an upstream.
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,

		AccessLog:                    b.accessLog(),
		AlwaysSetRequestIdInResponse: b.logs(), // so that a client can name the line

		Tracing: b.tracing(),

		// The client's own claims about its address and request are not trusted (x-envoy-*, x-request-id).
		UseRemoteAddress:              wrapperspb.Bool(true),
		EarlyHeaderMutationExtensions: b.stripEarly(),

		// The path that is matched is the path that is forwarded.
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		StripTrailingHostDot:         true,

		// Limits of connections, streams and memory per client.
		RequestHeadersTimeout:          durationpb.New(requestHeadersTimeout),
		RequestTimeout:                 durationpb.New(requestTimeout),
		StreamIdleTimeout:              durationpb.New(0), // see endIdle
		StreamFlushTimeout:             durationpb.New(streamIdleTimeout),
		MaxRequestHeadersKb:            wrapperspb.UInt32(maxHeadersKiB),
		Http1SafeMaxConnectionDuration: true,
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  durationpb.New(connectionIdleTimeout),
			MaxConnectionDuration:        durationpb.New(maxConnectionDuration),
			MaxHeadersCount:              wrapperspb.UInt32(maxHeaders),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		Http2ProtocolOptions: http2Options(),
	}
}

// http2Options bound the memory of HTTP/2 connections, of clients and to upstreams.
func http2Options() *corev3.Http2ProtocolOptions {
	return &corev3.Http2ProtocolOptions{
		MaxConcurrentStreams:        wrapperspb.UInt32(100),
		InitialStreamWindowSize:     wrapperspb.UInt32(64 << 10),
		InitialConnectionWindowSize: wrapperspb.UInt32(1 << 20),
	}
}

// managerOf unpacks the connection manager of a filter chain.
func managerOf(chain *listenerv3.FilterChain) (*hcmv3.HttpConnectionManager, error) {
	hcm := new(hcmv3.HttpConnectionManager)
	err := chain.GetFilters()[0].GetTypedConfig().UnmarshalTo(hcm)
	return hcm, err
}
