package envoy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// address is an address in the form of Gatepost's flags: host:port or unix:/path.
type address struct {
	path string     // of a Unix socket; otherwise empty
	host string     // a host name; empty for a Unix socket or an IP address
	ip   netip.Addr // invalid for a Unix socket or a host name
	port uint16
}

// maxSocketPath is the longest path of a Unix socket that every system accepts, including the
// terminating zero (Linux: 108).
const maxSocketPath = 104

func parseAddress(s string) (address, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		switch {
		case !filepath.IsAbs(path):
			return address{}, fmt.Errorf("%q: the path of a unix socket must be absolute (unix:/path)", s)
		case len(path) >= maxSocketPath:
			return address{}, fmt.Errorf("%q: the path of a unix socket must be shorter than %d bytes", s, maxSocketPath)
		}
		return address{path: path}, nil
	}
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		return address{}, fmt.Errorf("%q is no address (host:port or unix:/path): %w", s, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return address{}, fmt.Errorf("%q: the port must be a number from 1 to 65535", s)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return address{ip: ip, port: uint16(port)}, nil
	}
	if host == "" || strings.ContainsAny(host, "/ \t\r\n") {
		return address{}, fmt.Errorf("%q has no host (host:port or unix:/path)", s)
	}
	return address{host: host, port: uint16(port)}, nil
}

// reachable rejects addresses that are only valid for listening: 0.0.0.0 and [::].
func (a address) reachable() error {
	if a.ip.IsUnspecified() {
		return errors.New(a.ip.String() + " is an address to listen on; give the one at which Envoy reaches Gatepost")
	}
	return nil
}

// envoy converts the address to Envoy's message. mode is the file mode of a socket that Envoy
// creates.
func (a address) envoy(mode uint32) *corev3.Address {
	if a.path != "" {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: a.path, Mode: mode}}}
	}
	host := a.host
	if a.ip.IsValid() {
		host = a.ip.String()
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.port)},
	}}}
}
