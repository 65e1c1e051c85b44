package xds

import (
	"errors"
	"maps"
	"slices"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	quicv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/quic/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/certs"
	"gatepost/convention"
	"gatepost/definitions"
)

// Each certificate has a filter chain, which Envoy chooses by the server name, before it looks at the source of the
// connection. So each has one for trusted proxies too. The certificate itself is a secret (SDS): if it is renewed, no
// filter chain changes, and no connection is drained. If its names change, the other chains stay as they are.
//
// The listener without TLS answers the version, so Gatepost needs no certificate to ask for it.

// ClientCAs returns the name of the secret with the CAs of client certificates. Definitions with other CAs have another
// one, so they change nothing before they are served.
func ClientCAs(c *definitions.ClientCertificates) string { return "client CAs " + c.CAFile }

// Certificate is a certificate that Envoy gets as a secret.
type Certificate struct {
	// Name is the name of the secret.
	Name string
	// ServerNames are the names for which it is served: DNS names, or *. and a suffix. No other Certificate has them.
	ServerNames []string
	// Default is whether it is served for all other names too.
	Default bool
}

// ServesTLS reports whether an Envoy with these options has a listener for TLS. Envoy refuses one without a filter
// chain.
func (o Options) ServesTLS(gw *definitions.Gateway) bool {
	return gw.TLS != nil && slices.ContainsFunc(o.Certificates, func(c Certificate) bool { return c.Default || len(c.ServerNames) > 0 })
}

// httpsListener has the filter chains of all certificates. It refuses names that none has.
func (b *builder) httpsListener() *listenerv3.Listener {
	l := newListener(TLSListenerName, b.gw.TLS.Listen)
	if b.gw.ClientAddresses.ProxyProtocol {
		l.ListenerFilters = append(l.ListenerFilters, b.proxyProtocol())
	}
	l.ListenerFilters = append(l.ListenerFilters, &listenerv3.ListenerFilter{
		Name:       "tls_inspector",
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.pack(&tlsinspectorv3.TlsInspector{})},
	})
	l.FilterChains = b.certificateChains(b.httpsManager, b.tlsFrom)
	if b.allows(convention.ACMETLSALPN01) {
		l.FilterChains = append(l.FilterChains, b.challengeChain())
	}
	return l
}

// certificateChains are the filter chains of all certificates.
func (b *builder) certificateChains(manager func() *hcmv3.HttpConnectionManager, socket func(Certificate) *corev3.TransportSocket) (all []*listenerv3.FilterChain) {
	direct := b.chain(manager())
	var proxied *listenerv3.FilterChain
	if b.believesProxies() {
		proxied = b.chain(b.proxiedManager(manager()))
	}
	for _, c := range b.opts.Certificates {
		if len(c.ServerNames) > 0 {
			all = append(all, b.tlsChains(socket(c), c.Name, c.ServerNames, direct, proxied)...)
		}
		if c.Default {
			all = append(all, b.tlsChains(socket(c), "other names", nil, direct, proxied)...)
		}
	}
	return all
}

// tlsChains are the filter chains of a certificate for some server names, or for those that no other chain has.
func (b *builder) tlsChains(socket *corev3.TransportSocket, name string, serverNames []string, direct, proxied *listenerv3.FilterChain) []*listenerv3.FilterChain {
	chain := func(name string, of *listenerv3.FilterChain) *listenerv3.FilterChain {
		return &listenerv3.FilterChain{
			Name: name, FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: serverNames}, TransportSocket: socket, Filters: of.GetFilters(),
		}
	}
	all := []*listenerv3.FilterChain{chain(name, direct)}
	if proxied == nil {
		return all
	}
	ranges := cidrs(b.gw.ClientAddresses.TrustedProxies)
	behind := chain(name+" proxied", proxied)
	behind.FilterChainMatch.SourcePrefixRanges = ranges
	if b.gw.ClientAddresses.ProxyProtocol { // a peer that is no proxy has no chain, and is reset
		all[0].FilterChainMatch.DirectSourcePrefixRanges = ranges
		behind.FilterChainMatch.DirectSourcePrefixRanges = ranges
	}
	return append(all, behind)
}

// tlsFrom serves a certificate for HTTP/2 and HTTP/1.1.
func (b *builder) tlsFrom(c Certificate) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(b.tlsContext(c, "h2", "http/1.1"))},
	}
}

// tlsContext serves a certificate for some protocols. The cipher suites are Envoy's: without CBC, and with forward
// secrecy.
func (b *builder) tlsContext(c Certificate, protocols ...string) *tlsv3.DownstreamTlsContext {
	oldest := tlsv3.TlsParameters_TLSv1_2
	if b.gw.TLS.MinVersion == definitions.TLS13 {
		oldest = tlsv3.TlsParameters_TLSv1_3
	}
	config := &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		AlpnProtocols:                  protocols,
		TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: oldest, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: c.Name, SdsConfig: fromADS()}},
	}}
	if clients := b.gw.TLS.ClientCertificates; clients != nil {
		config.RequireClientCertificate = wrapperspb.Bool(clients.Required)
		config.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: ClientCAs(clients), SdsConfig: fromADS()},
		}
	}
	return config
}

// httpsManager is the connection manager of connections with TLS.
func (b *builder) httpsManager() *hcmv3.HttpConnectionManager {
	manager := b.connectionManager()
	if b.gw.TLS.HSTS > 0 || b.gw.TLS.HTTP3 {
		manager.HttpFilters = b.httpFilters(true)
	}
	if b.gw.TLS.ClientCertificates != nil { // otherwise Envoy removes the header
		manager.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
		manager.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Uri: true, Dns: true,
		}
	}
	return manager
}

// redirectManager answers every request with a redirect to HTTPS, apart from that for the version. The client repeats a
// request as it was (308). Like every answer of Envoy's own, it needs no route.
func (b *builder) redirectManager() *hcmv3.HttpConnectionManager {
	manager := b.versionManager()
	manager.StripPortMode = &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true}
	port := ""
	if listen := b.gw.TLS.Listen.Port(); listen != 443 {
		port = ":" + strconv.Itoa(int(listen))
	}
	toHTTPS := reply{status: 404, as: 308, text: "Use HTTPS."}
	location := setHeader("location", "https://%REQ(:AUTHORITY)%"+port+"%REQ(:PATH)%")
	manager.LocalReplyConfig = b.localReplies()
	manager.LocalReplyConfig.Mappers = append([]*hcmv3.ResponseMapper{toHTTPS.mapper(nil, []*corev3.HeaderValueOption{location})},
		manager.GetLocalReplyConfig().GetMappers()...)
	return manager
}

// Secrets returns certificates and CAs in the form in which Envoy gets them.
func Secrets(pairs map[string]certs.Pair, roots map[string]certs.Roots) []*tlsv3.Secret {
	out := make([]*tlsv3.Secret, 0, len(pairs)+len(roots))
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		out = append(out, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(pairs[name].Chain), PrivateKey: inline(pairs[name].Key.PEM()),
		}}})
	}
	for _, name := range slices.Sorted(maps.Keys(roots)) {
		out = append(out, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(roots[name].PEM)},
		}})
	}
	return out
}

func inline(text []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: text}}
}

// withStaticSecrets has a listener take its secrets from the bootstrap, and returns their names: those of certificates,
// and those of lists of CAs.
func withStaticSecrets(l *listenerv3.Listener) (pairs, roots []string, err error) {
	for _, chain := range l.GetFilterChains() {
		if chain.GetTransportSocket() == nil {
			continue
		}
		config, quic := chain.GetTransportSocket().GetTypedConfig(), new(quicv3.QuicDownstreamTransport)
		if !config.MessageIs(quic) {
			quic.DownstreamTlsContext = new(tlsv3.DownstreamTlsContext)
			err = config.UnmarshalTo(quic.GetDownstreamTlsContext())
		} else {
			err = config.UnmarshalTo(quic)
		}
		for _, secret := range quic.GetDownstreamTlsContext().GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs() {
			pairs, secret.SdsConfig = append(pairs, secret.GetName()), nil
		}
		if clients := quic.GetDownstreamTlsContext().GetCommonTlsContext().GetValidationContextSdsSecretConfig(); clients != nil {
			roots, clients.SdsConfig = append(roots, clients.GetName()), nil
		}
		if config.MessageIs(quic) {
			err = errors.Join(err, config.MarshalFrom(quic))
		} else {
			err = errors.Join(err, config.MarshalFrom(quic.GetDownstreamTlsContext()))
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return pairs, roots, nil
}
