package xds

import (
	"cmp"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/definitions"
)

// hostKey is the key of an endpoint's metadata that selects the TLS settings of its host.
const hostKey = "host"

// secure sets TLS for a cluster. Each host is verified by its own name, so the certificate of one upstream is invalid
// for another. If there are several names, the endpoint's metadata selects the settings. An endpoint without a match
// gets those of the first name, and never plain text.
func (b *builder) secure(c *clusterv3.Cluster, s *service) {
	hosts := tlsHosts(s.def)
	c.TransportSocket = b.tlsTo(hosts[0], s)
	if len(hosts) == 1 {
		return
	}
	for _, u := range hosts {
		c.TransportSocketMatches = append(c.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{
			Name:            u.Host,
			Match:           hostStruct(u.Host),
			TransportSocket: b.tlsTo(u, s),
		})
	}
}

// tlsHosts returns the upstreams of a service that have TLS and are verified by different names.
func tlsHosts(def *definitions.Service) []definitions.Upstream {
	targets := slices.Collect(def.AllUpstreams())
	if len(targets) == 0 || !targets[0].TLS() {
		return nil
	}
	if def.UpstreamTLS != nil && def.UpstreamTLS.ServerName != "" {
		return targets[:1]
	}
	slices.SortStableFunc(targets, func(a, b definitions.Upstream) int { return strings.Compare(a.Host, b.Host) }) // a canary's are last
	return slices.CompactFunc(targets, func(a, b definitions.Upstream) bool { return a.Host == b.Host })
}

// tlsTo requires a certificate that the CAs of the service or the system's roots verify, and that contains the name of
// the service's upstreams or the host. Envoy checks neither by default ("Server certificate verification is not enabled
// by default").
func (b *builder) tlsTo(u definitions.Upstream, s *service) *corev3.TransportSocket {
	own := cmp.Or(s.def.UpstreamTLS, &definitions.UpstreamTLS{})
	name, isIP := u.Host, u.IsIP
	if own.ServerName != "" {
		name, isIP = own.ServerName, own.IsIP
	}
	san := &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exact(name)}
	config := &tlsv3.UpstreamTlsContext{Sni: name}
	if isIP { // SNI has no IP addresses (RFC 6066 §3)
		config.Sni, san.SanType = "", tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	config.CommonTlsContext = &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, // the default is 1.2
		},
	}
	b.verify(config.CommonTlsContext, own.CAName(), san)
	if own.PairName() != "" {
		config.CommonTlsContext.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{upstreamSecret(own.PairName())}
	}
	if s.protocol() == onlyHTTP1 { // otherwise Envoy offers what httpOptions allows
		config.CommonTlsContext.AlpnProtocols = []string{onlyHTTP1}
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(config)},
	}
}

// verify sets the CAs, which are a secret with a name or the system's, and the name in the certificate.
func (b *builder) verify(c *tlsv3.CommonTlsContext, cas string, san *tlsv3.SubjectAltNameMatcher) {
	context := &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san}}
	if cas == "" {
		context.TrustedCa = &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: b.opts.CAFile}}
		c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: context}
		return
	}
	c.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext: context, ValidationContextSdsSecretConfig: upstreamSecret(cas),
		},
	}
}

// upstreamSecret is a secret of a cluster. A file that could not be read yet delays the start of Envoy no longer than
// this; until it is read, the upstreams get no connection.
func upstreamSecret(name string) *tlsv3.SdsSecretConfig {
	source := fromADS()
	source.InitialFetchTimeout = durationpb.New(5 * time.Second)
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: source}
}

func hostMetadata(host string) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"envoy.transport_socket_match": hostStruct(host),
	}}
}

func hostStruct(host string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{hostKey: structpb.NewStringValue(host)}}
}

// withStaticUpstreamSecrets has clusters take their secrets from the bootstrap, and returns the names of those that are
// certificates and of those that are CAs.
func withStaticUpstreamSecrets(clusters []*clusterv3.Cluster) (pairs, cas []string, err error) {
	for _, c := range clusters {
		sockets := []*corev3.TransportSocket{c.GetTransportSocket()}
		for _, match := range c.GetTransportSocketMatches() {
			sockets = append(sockets, match.GetTransportSocket())
		}
		for _, socket := range slices.DeleteFunc(sockets, func(s *corev3.TransportSocket) bool { return s == nil }) {
			ofPair, ofCA, err := withStaticSecretsOf(socket)
			if err != nil {
				return nil, nil, err
			}
			pairs, cas = append(pairs, ofPair...), append(cas, ofCA...)
		}
	}
	return pairs, cas, nil
}

// withStaticSecretsOf is [withStaticUpstreamSecrets] for one socket.
func withStaticSecretsOf(socket *corev3.TransportSocket) (pairs, cas []string, err error) {
	config := new(tlsv3.UpstreamTlsContext)
	if err := socket.GetTypedConfig().UnmarshalTo(config); err != nil {
		return nil, nil, err
	}
	for _, secret := range config.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs() {
		pairs, secret.SdsConfig = append(pairs, secret.GetName()), nil
	}
	if secret := config.GetCommonTlsContext().GetCombinedValidationContext().GetValidationContextSdsSecretConfig(); secret != nil {
		cas, secret.SdsConfig = append(cas, secret.GetName()), nil
	}
	return pairs, cas, socket.GetTypedConfig().MarshalFrom(config)
}
