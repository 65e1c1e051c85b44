package gateway

import (
	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// listeners returns the addresses on which Envoy accepts requests if it serves gw.
func (g *Gateway) listeners(gw *definitions.Gateway) []*gatewayv1.ListenerStatus {
	options := g.config.XDSOptions()
	plain := &gatewayv1.ListenerStatus{
		Protocol: "http", Address: options.ListenAddress(gw).String(), ProxyProtocol: gw.ClientAddresses.ProxyProtocol,
	}
	if gw.TLS == nil {
		return []*gatewayv1.ListenerStatus{plain}
	}
	plain.Redirect = gw.TLS.Redirect
	clients, problem := gw.TLS.ClientCertificates.Mode(), ""
	if options.Certificates = serving(gw.TLS, g.certificates.set); !options.ServesTLS(gw) {
		problem = "no certificate can be used"
	}
	all := []*gatewayv1.ListenerStatus{plain, {
		Protocol: "https", Address: gw.TLS.Listen.String(), MinVersion: gw.TLS.MinVersion, ClientCertificates: clients,
		ProxyProtocol: gw.ClientAddresses.ProxyProtocol, Problem: problem,
	}}
	if gw.TLS.HTTP3 { // QUIC has no older TLS, and no PROXY protocol
		all = append(all, &gatewayv1.ListenerStatus{
			Protocol: "http3", Address: gw.TLS.Listen.String(), MinVersion: definitions.TLS13, ClientCertificates: clients, Problem: problem,
		})
	}
	return all
}
