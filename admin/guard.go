package admin

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"gatepost/convention"
)

// guard refuses requests that a web page can send from the operator's browser. Two checks are
// needed, because each misses what the other finds:
//
//   - A page of another origin: the browser names it in Sec-Fetch-Site, or in Origin. Reads are refused as well as
//     writes. Scrapers and probes send neither header.
//   - DNS rebinding: a page makes its own name resolve to this address, and is then of the same origin. Over plain
//     HTTP the browser sends no Sec-Fetch-Site for such a name, so the name in Host decides.
type guard struct {
	hosts     []string // lower case
	local     bool     // the address is loopback or a Unix socket
	crossSite *http.CrossOriginProtection
	next      http.Handler
}

func newGuard(hosts []string, local bool, next http.Handler) *guard {
	g := &guard{local: local, crossSite: http.NewCrossOriginProtection(), next: next}
	for _, host := range append([]string{"localhost", ""}, hosts...) {
		g.hosts = append(g.hosts, strings.ToLower(host))
	}
	return g
}

// ServeHTTP implements http.Handler.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.hostAllowed(r) {
		writeError(w, http.StatusMisdirectedRequest, "the host name in this request is not allowed on the admin address; "+
			"use an IP address, localhost, the host name that Gatepost was given in --admin or, if that is not loopback, a single-label name")
		return
	}
	asWrite := *r // the check exempts GET, HEAD and OPTIONS
	asWrite.Method = http.MethodPost
	if err := g.crossSite.Check(&asWrite); err != nil {
		writeError(w, http.StatusForbidden, "requests of web pages of other origins are not allowed on the admin address")
		return
	}
	g.next.ServeHTTP(w, r)
}

// hostAllowed reports whether no page can have the host as its own name: it is an IP address, or one of the configured
// names. Elsewhere than on loopback it can be any single label: the public DNS resolves none, and reads need a token.
// On loopback they need none, and the network of a laptop can resolve single labels, by its search domains.
func (g *guard) hostAllowed(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if slices.Contains(g.hosts, strings.ToLower(host)) {
		return true
	}
	if _, err = netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	_, notTCP := netip.ParseAddrPort(r.RemoteAddr) // a browser reaches no Unix socket
	return !strings.Contains(host, ".") && (!g.local || notTCP != nil)
}

// notThroughEnvoy rejects requests that came through the gateway. Otherwise, if the upstream of a
// service were the admin address, under any name, every client could read the metrics and end sessions. Envoy
// sets one of the two headers on each request that it accepts at the edge, and clients cannot remove
// them (Envoy docs, "HTTP header manipulation", use_remote_address).
func notThroughEnvoy(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(convention.HeaderClientAddress) != "" || r.Header.Get("X-Envoy-Internal") != "" {
			writeError(w, http.StatusForbidden, "the admin address is not for the gateway's clients; call it directly")
			return
		}
		next.ServeHTTP(w, r)
	})
}
