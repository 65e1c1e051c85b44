package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"gatepost/definitions"
	"gatepost/xds"
)

// serverName returns the name that a client sends in the handshake (SNI): the host, unless it is an address.
func serverName(host string) string {
	name := withoutTrailingDot(withoutPort(host))
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return ""
	}
	return lowerASCII(name)
}

// handshake describes which certificate a client gets for a server name, and which protocols it may use then. Without a
// certificate, it returns why Envoy closes the connection.
func (e *Explainer) handshake(name string) (accepted, closed string) {
	names := append([]string{name}, slices.Collect(definitions.Wider(name))...) // the last one is every name
	var found *xds.Certificate
	for _, wanted := range names {
		i := slices.IndexFunc(e.certificates, func(c xds.Certificate) bool {
			return slices.Contains(c.ServerNames, wanted) || wanted == definitions.EveryHost && c.Default
		})
		if i >= 0 {
			found = &e.certificates[i]
			break
		}
	}
	protocols := "HTTP/1.1 and HTTP/2"
	if e.served.TLS.HTTP3 {
		protocols = "HTTP/1.1, HTTP/2 and HTTP/3"
	}
	switch {
	case found != nil:
		return fmt.Sprintf("certificate %s, for %s", found.Name, protocols), ""
	case name == "":
		return "", "a client that names no server needs a default_certificate"
	}
	return "", fmt.Sprintf("no certificate has the name %s, and there is no default_certificate", name)
}
