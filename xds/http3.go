package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	quicv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/quic/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// http3Listener has the filter chains of the listener for TLS, for QUIC: the same certificates, routes and rules.
func (b *builder) http3Listener() *listenerv3.Listener {
	l := newListener(http3ListenerName, b.gw.TLS.Listen)
	l.GetAddress().GetSocketAddress().Protocol = corev3.SocketAddress_UDP
	http2 := http2Options()
	l.UdpListenerConfig = &listenerv3.UdpListenerConfig{
		QuicOptions: &listenerv3.QuicProtocolOptions{QuicProtocolOptions: &corev3.QuicProtocolOptions{
			MaxConcurrentStreams:        http2.GetMaxConcurrentStreams(),
			InitialStreamWindowSize:     http2.GetInitialStreamWindowSize(),
			InitialConnectionWindowSize: http2.GetInitialConnectionWindowSize(),
		}},
		DownstreamSocketConfig: &corev3.UdpSocketConfig{PreferGro: wrapperspb.Bool(true)},
	}
	l.FilterChains = b.certificateChains(b.http3Manager, b.quicFrom)
	return l
}

func (b *builder) http3Manager() *hcmv3.HttpConnectionManager {
	manager := b.httpsManager()
	manager.CodecType = hcmv3.HttpConnectionManager_HTTP3
	return manager
}

// quicFrom serves a certificate. It refuses early data (0-RTT): an attacker who recorded such a request could send it
// again.
func (b *builder) quicFrom(c Certificate) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.quic",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(&quicv3.QuicDownstreamTransport{
			DownstreamTlsContext: b.tlsContext(c, "h3"), EnableEarlyData: wrapperspb.Bool(false),
		})},
	}
}
