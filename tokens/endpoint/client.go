package endpoint

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"gatepost/convention"
)

// client describes the sender of a request, as reported by Envoy.
type client struct {
	address   netip.Addr // the zero Addr if unknown
	agent     string
	requestID string
}

// maxRequestID bounds the logged part of the request id. Envoy writes 36 characters.
const maxRequestID = 128

func clientOf(r *http.Request) client {
	id := r.Header.Get(convention.HeaderRequestID)
	return client{
		address:   addressOf(r),
		agent:     r.UserAgent(),
		requestID: id[:min(len(id), maxRequestID)],
	}
}

// addressOf returns the client's address. With use_remote_address Envoy sets the first header and
// appends the peer's address to X-Forwarded-For; earlier entries come from the client.
func addressOf(r *http.Request) netip.Addr {
	if a, err := netip.ParseAddr(r.Header.Get(convention.HeaderClientAddress)); err == nil {
		return a.Unmap()
	}
	if lines := r.Header.Values(convention.HeaderForwardedFor); len(lines) > 0 {
		last := lines[len(lines)-1]
		last = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
		a, _ := netip.ParseAddr(last)
		return a.Unmap()
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil { // a Unix socket
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(host)
	return a.Unmap()
}

// String returns the address, or "" if it is unknown.
func (c client) String() string {
	if !c.address.IsValid() {
		return ""
	}
	return c.address.String()
}
