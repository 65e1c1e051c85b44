package convention

// What definitions, Envoy and package certs/acme agree on about the challenges of ACME.
const (
	// ACMEHTTP01 and ACMETLSALPN01 are the challenges that definitions can name.
	ACMEHTTP01    = "http-01"     // RFC 8555, section 8.3
	ACMETLSALPN01 = "tls-alpn-01" // RFC 8737
	// ACMEChallengePath is the path below which a CA asks by HTTP-01 (RFC 8555, section 8.3).
	ACMEChallengePath = "/.well-known/acme-challenge/"
	// ACMEProtocol is the protocol, in the handshake, by which a CA asks by TLS-ALPN-01 (RFC 8737).
	ACMEProtocol = "acme-tls/1"
	// ACMEAuthority is what Envoy names in the CONNECT by which it passes on such a connection.
	ACMEAuthority = "acme-tls-alpn-01:443"
)
