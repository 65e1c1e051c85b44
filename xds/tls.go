package xds

import (
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/definitions"
)

// hostKey is the key of an endpoint's metadata that selects the TLS settings of its host.
const hostKey = "host"

// secure sets TLS for a cluster. Each host is verified by its own name, so the certificate of one upstream is invalid
// for another. If there are several names, the endpoint's metadata selects the settings. An endpoint without a match
// gets those of the first name, and never plain text.
func (b *builder) secure(c *clusterv3.Cluster, targets []definitions.Upstream, protocol string) {
	hosts := tlsHosts(targets)
	c.TransportSocket = b.tlsTo(hosts[0], protocol)
	if len(hosts) == 1 {
		return
	}
	for _, u := range hosts {
		c.TransportSocketMatches = append(c.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{
			Name:            u.Host,
			Match:           hostStruct(u.Host),
			TransportSocket: b.tlsTo(u, protocol),
		})
	}
}

// tlsHosts returns the distinct hosts of targets with TLS.
func tlsHosts(targets []definitions.Upstream) []definitions.Upstream {
	if len(targets) == 0 || !targets[0].TLS() {
		return nil
	}
	targets = slices.Clone(targets)
	slices.SortStableFunc(targets, func(a, b definitions.Upstream) int { return strings.Compare(a.Host, b.Host) }) // a canary's are last
	return slices.CompactFunc(targets, func(a, b definitions.Upstream) bool { return a.Host == b.Host })
}

// tlsTo requires a certificate that the system's roots verify and that contains the host. Envoy checks neither by
// default ("Server certificate verification is not enabled by default").
func (b *builder) tlsTo(u definitions.Upstream, protocol string) *corev3.TransportSocket {
	san := &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exact(u.Host)}
	config := &tlsv3.UpstreamTlsContext{Sni: u.Host}
	if u.IsIP { // SNI has no IP addresses (RFC 6066 §3)
		config.Sni, san.SanType = "", tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	config.CommonTlsContext = &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, // the default is 1.2
		},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa:                 &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: b.opts.CAFile}},
			MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san},
		}},
	}
	if protocol == onlyHTTP1 { // otherwise Envoy offers what httpOptions allows
		config.CommonTlsContext.AlpnProtocols = []string{onlyHTTP1}
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.pack(config)},
	}
}

func hostMetadata(host string) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"envoy.transport_socket_match": hostStruct(host),
	}}
}

func hostStruct(host string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{hostKey: structpb.NewStringValue(host)}}
}
