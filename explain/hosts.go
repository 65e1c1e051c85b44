package explain

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// hosts are the virtual hosts of a scope.
type hosts struct {
	all        []*routev3.VirtualHost
	ignorePort bool
	exact      map[string]*routev3.VirtualHost // :: host in lower case
	suffix     map[string]*routev3.VirtualHost // :: what follows the *, such as .shop.example
	any        *routev3.VirtualHost
}

func readHosts(config *routev3.RouteConfiguration) (*hosts, error) {
	h := &hosts{
		all: config.GetVirtualHosts(), ignorePort: config.GetIgnorePortInHostMatching(),
		exact: map[string]*routev3.VirtualHost{}, suffix: map[string]*routev3.VirtualHost{},
	}
	for _, vhost := range h.all {
		for _, domain := range vhost.GetDomains() {
			switch suffix, wildcard := strings.CutPrefix(domain, "*"); {
			case strings.Contains(suffix, "*"):
				return nil, ErrNotModelled
			case domain == "*":
				h.any = vhost
			case wildcard:
				h.suffix[suffix] = vhost
			default:
				h.exact[domain] = vhost
			}
		}
	}
	return h, nil
}

// find returns the virtual host for the host of a request, or nil. Envoy takes an exact domain, then the longest suffix
// that is shorter than the host, then the domain *.
func (h *hosts) find(host string) *routev3.VirtualHost {
	if h == nil {
		return nil
	}
	if h.ignorePort {
		host = withoutPort(host)
	}
	host = lowerASCII(host)
	if vhost := h.exact[host]; vhost != nil {
		return vhost
	}
	for i := 1; i < len(host); i++ {
		if vhost := h.suffix[host[i:]]; vhost != nil {
			return vhost
		}
	}
	return h.any
}

// withoutPort removes what Envoy takes for the port of a host: the last colon that is not in brackets, and all that
// follows it, unless that is empty.
func withoutPort(host string) string {
	colon := strings.LastIndexByte(host, ':')
	if colon < 0 || strings.LastIndexByte(host, ']') > colon {
		return host
	}
	return host[:colon]
}

// withoutNumber removes a port that is a number (strip_any_host_port).
func withoutNumber(host string) string {
	bare := withoutPort(host)
	if port := strings.TrimPrefix(host[len(bare):], ":"); port == "" || strings.Trim(port, "0123456789") != "" {
		return host
	}
	return bare
}

// withoutTrailingDot removes a dot at the end of a host, also in front of a port (strip_trailing_host_dot).
func withoutTrailingDot(host string) string {
	dot := strings.LastIndexByte(host, '.')
	if dot < 0 || dot+1 < len(host) && host[dot+1] != ':' {
		return host
	}
	return host[:dot] + host[dot+1:]
}
