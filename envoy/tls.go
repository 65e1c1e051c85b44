package envoy

import (
	"errors"
	"fmt"
	"path/filepath"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// The file names in a folder for mutual TLS, all PEM: the own certificate, its key, and the CA of
// the peer.
const (
	TLSCert = "tls.crt"
	TLSKey  = "tls.key"
	TLSCA   = "ca.crt"
)

// mutualTLS returns the transport socket with which Envoy presents its certificate to Gatepost.
// Envoy verifies that Gatepost's certificate is valid for the host of the address.
func mutualTLS(dir string, addr address, protocol string) (*corev3.TransportSocket, error) {
	if !filepath.IsAbs(dir) {
		return nil, errors.New("the folder of the TLS files must be absolute")
	}
	file := func(name string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: filepath.Join(dir, name)}}
	}
	host, kind := addr.host, tlsv3.SubjectAltNameMatcher_DNS
	if addr.ip.IsValid() {
		host, kind = addr.ip.String(), tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	context := &tlsv3.UpstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols:   []string{protocol},
			TlsParams:       &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
			TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: file(TLSCert), PrivateKey: file(TLSKey)}},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
				TrustedCa: file(TLSCA),
				MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
					SanType: kind,
					Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: host}},
				}},
			}},
		},
		Sni: addr.host,
	}
	packed, err := anypb.New(context)
	if err != nil {
		return nil, fmt.Errorf("building the TLS settings: %w", err)
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed},
	}, nil
}
