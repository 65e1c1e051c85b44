package xds

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
)

// The sources of connections in these tests: two trusted proxies, and a client that connects by itself.
const (
	proxy      = "127.0.0.2"
	otherProxy = "127.0.0.3"
	stranger   = "127.0.0.9"
	proxies    = "client_addresses: {trusted_proxies: [127.0.0.2/31, \"2001:db8::/32\"]"
)

// from sends a request from an address, with bytes before it, and returns the response. A connection that is reset has
// the zero response.
func (g *gateway) from(source, before, method, path string, headers ...string) envoytest.Response {
	g.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := dialer.DialContext(g.t.Context(), "tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	request := fmt.Sprintf("%s%s %s HTTP/1.1\r\nhost: gate.example\r\nconnection: close\r\n", before, method, path)
	for _, h := range headers {
		request += h + "\r\n"
	}
	_, _ = io.WriteString(conn, request+"\r\n")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return envoytest.Response{}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return envoytest.Response{Status: response.StatusCode, Header: response.Header, Body: string(body)}
}

// addressOf sends a request to a secured service, a public one and the login, and returns the client's address that
// ext_authz and the three upstreams receive. It is an error if they differ.
func (g *gateway) addressOf(source, before string, headers ...string) string {
	g.t.Helper()
	g.answers(allow)
	seen := map[string]string{}
	for path, upstream := range map[string]*envoytest.Recorder{"/orders": g.secured, "/items": g.public, "/Token": g.tokens} {
		method := "GET"
		if path == "/Token" {
			method = "POST"
		}
		upstream.Reset()
		if got := g.from(source, before, method, path, headers...); got.Status != 200 {
			g.t.Fatalf("%s from %s: %d %s", path, source, got.Status, got.Body)
		}
		requests := upstream.Requests()
		if len(requests) != 1 {
			g.t.Fatalf("%s: %d requests", path, len(requests))
		}
		seen[path] = strings.Join(requests[0].Header.Values("x-envoy-external-address"), "|")
	}
	for _, check := range g.asked() {
		seen["Check"] = check.GetRequest().GetHttp().GetHeaders()["x-envoy-external-address"]
	}
	if len(seen) != 4 {
		g.t.Errorf("the address is missing somewhere: %v", seen)
	}
	for who, address := range seen {
		if address != seen["Check"] {
			g.t.Errorf("%s received %q, and ext_authz %q", who, address, seen["Check"])
		}
	}
	return seen["Check"]
}

// wantLogged checks the addresses in the access log: each has the three lines of addressOf. Workers log in any order.
func (g *gateway) wantLogged(want []string) {
	g.t.Helper()
	var got []string
	for _, line := range g.log.await(g.t, 3*len(want)) {
		got = append(got, at(g.t, line, "client", "address"))
	}
	want = slices.Concat(want, want, want)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		g.t.Errorf("the access log has the addresses %q, want %q", got, want)
	}
}

func TestAddressOfAClientBehindATrustedProxy(t *testing.T) {
	g := startGateway(t, "access_log: {format: ecs}\n"+proxies+"}\n"+shop)
	var logged []string
	for _, c := range []struct {
		name, source string
		headers      []string
		want         string
	}{
		{"the last address", proxy, []string{"x-forwarded-for: 6.6.6.6, 1.2.3.4"}, "1.2.3.4"},
		{"the other proxy", otherProxy, []string{"x-forwarded-for: 6.6.6.6, 1.2.3.4"}, "1.2.3.4"},
		{"two proxies", proxy, []string{"x-forwarded-for: 6.6.6.6, 1.2.3.4, " + otherProxy}, "1.2.3.4"},
		{"two proxies, of which one lists IPv4 addresses as IPv6", proxy, []string{"x-forwarded-for: 6.6.6.6, 1.2.3.4, ::ffff:" + otherProxy}, "1.2.3.4"},
		{"a stranger beside the proxies, as IPv6", proxy, []string{"x-forwarded-for: 6.6.6.6, ::ffff:127.0.0.4"}, "::ffff:127.0.0.4"},
		{"two headers", proxy, []string{"x-forwarded-for: 6.6.6.6", "x-forwarded-for: 1.2.3.4," + otherProxy}, "1.2.3.4"},
		{"a client that claims a proxy", proxy, []string{"x-forwarded-for: " + otherProxy + ", 1.2.3.4"}, "1.2.3.4"},
		{"an IPv6 client", proxy, []string{"x-forwarded-for: 2001:db9::1, 2001:db8::1"}, "2001:db9::1"},
		{"proxies alone", proxy, []string{"x-forwarded-for: " + otherProxy + ", " + proxy}, otherProxy},
		{"no address", proxy, []string{"x-forwarded-for: 1.2.3.4, unknown"}, proxy},
		{"an address with a port", proxy, []string{"x-forwarded-for: 1.2.3.4:5555"}, proxy},
		{"no header", proxy, nil, proxy},
		{"other headers", proxy, []string{"x-envoy-external-address: 6.6.6.6", "x-real-ip: 6.6.6.6", "forwarded: for=6.6.6.6", "true-client-ip: 6.6.6.6"}, proxy},
		{"a stranger", stranger, []string{"x-forwarded-for: 1.2.3.4"}, stranger},
		{"a stranger that claims a proxy", stranger, []string{"x-forwarded-for: 1.2.3.4, " + proxy}, stranger},
		{"other headers of a stranger", stranger, []string{"x-envoy-external-address: 6.6.6.6", "x-envoy-internal: true", "forwarded: for=6.6.6.6"}, stranger},
	} {
		if got := g.addressOf(c.source, "", c.headers...); got != c.want {
			t.Errorf("%s: the address is %q, want %q", c.name, got, c.want)
		}
		logged = append(logged, c.want)
	}
	g.wantLogged(logged)
}

// TestOnlyAProxysWordAboutARequestCounts: its protocol and its id. Headers that no load balancer owns count of nobody.
func TestOnlyAProxysWordAboutARequestCounts(t *testing.T) {
	g := startGateway(t, proxies+"}\n"+shop)
	const id = "5f0c7a2e-0000-4000-8000-000000000001"
	headers := []string{"x-forwarded-proto: https", "x-request-id: " + id, "x-forwarded-for: 1.2.3.4",
		"x-user-id: mallory", "x-forwarded-host: evil.example", "x-envoy-internal: true", "x-envoy-upstream-rq-timeout-ms: 1",
		"x-envoy-original-path: /admin", "x-forwarded-client-cert: By=x", "x-envoy-peer-metadata: x"}
	for source, want := range map[string]struct{ proto, id, chain string }{
		proxy:    {"https", id, "1.2.3.4"},
		stranger: {"http", "", "1.2.3.4"},
	} {
		g.public.Reset()
		if got := g.from(source, "", "GET", "/items", headers...); got.Status != 200 {
			t.Fatalf("%s: %d %s", source, got.Status, got.Body)
		}
		got := g.public.Requests()[0].Header
		if got.Get("x-forwarded-proto") != want.proto {
			t.Errorf("%s: x-forwarded-proto is %q", source, got.Get("x-forwarded-proto"))
		}
		if kept := got.Get("x-request-id") == id; kept != (want.id == id) || got.Get("x-request-id") == "" {
			t.Errorf("%s: x-request-id is %q", source, got.Get("x-request-id"))
		}
		if client, peer, _ := strings.Cut(got.Get("x-forwarded-for"), ","); client != want.chain || !isAddress(peer) {
			t.Errorf("%s: x-forwarded-for is %q, want the client's and the peer's", source, got.Get("x-forwarded-for"))
		}
		for _, name := range []string{"x-user-id", "x-forwarded-host", "x-envoy-internal", "x-envoy-upstream-rq-timeout-ms",
			"x-envoy-original-path", "x-forwarded-client-cert", "x-envoy-peer-metadata"} {
			if value := got.Get(name); value != "" {
				t.Errorf("%s: %s is %q", source, name, value)
			}
		}
	}
}

// TestProxyPassesNoClaimOn: of a client that names a user, another path or a setting of Envoy. Envoy believes a proxy
// more than an edge would, so each header that Envoy reads is tried through one, and from a client itself.
func TestProxyPassesNoClaimOn(t *testing.T) {
	g := startGateway(t, proxies+"}\n"+shop)
	const claim = "claimed-by-the-client"
	var headers []string
	for name := range strings.FieldsSeq(`x-user-id X-USER-ID remote-user x-forwarded-user x-auth-request-user x-forwarded-host
		x-forwarded-prefix x-forwarded-uri x-forwarded-port x-forwarded-client-cert x-real-ip true-client-ip forwarded
		x-original-url x-rewrite-url x-http-method-override x-envoy-auth-failure-mode-allowed x-envoy-decorator-operation
		x-envoy-expected-rq-timeout-ms x-envoy-external-address x-envoy-force-trace x-envoy-hedge-on-per-try-timeout
		x-envoy-internal x-envoy-ip-tags x-envoy-max-retries x-envoy-original-path x-envoy-original-host
		x-envoy-retriable-header-names x-envoy-retriable-status-codes x-envoy-retry-grpc-on x-envoy-retry-on
		x-envoy-upstream-alt-stat-name x-envoy-upstream-rq-per-try-timeout-ms x-envoy-upstream-rq-timeout-alt-response
		x-envoy-upstream-rq-timeout-ms x-envoy-upstream-stream-duration-ms x-envoy-attempt-count x-envoy-is-timeout-retry
		x-envoy-degraded x-envoy-downstream-service-cluster x-envoy-downstream-service-node x-envoy-peer-metadata
		x-envoy-original-method x-envoy-original-scheme`) {
		headers = append(headers, name+": "+claim)
	}
	for _, source := range []string{proxy, stranger} {
		for path, upstream := range map[string]*envoytest.Recorder{"/orders/1": g.secured, "/items/1": g.public} {
			upstream.Reset()
			if got := g.from(source, "", "GET", path, append(headers, "x-forwarded-for: 1.2.3.4")...); got.Status != 200 {
				t.Fatalf("%s from %s: %d %s", path, source, got.Status, got.Body)
			}
			if raw := upstream.Raw(); raw == "" || strings.Contains(raw, claim) {
				t.Errorf("%s from %s: the upstream received %q", path, source, raw)
			}
		}
	}
}

func isAddress(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

// PROXY headers of both versions (haproxy.org, "The PROXY protocol").

func proxyV1(source string) string {
	return fmt.Sprintf("PROXY TCP4 %s 192.0.2.80 4321 443\r\n", source)
}

func proxyV2(source string) string {
	header := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11, 0, 12) // PROXY, TCP over IPv4, 12 bytes
	for _, address := range []string{source, "192.0.2.80"} {
		header = append(header, netip.MustParseAddr(address).AsSlice()...)
	}
	return string(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(header, 4321), 443))
}

func TestAddressOfAClientByThePROXYProtocol(t *testing.T) {
	g := startGateway(t, "access_log: {format: ecs}\n"+proxies+", proxy_protocol: true}\n"+shop)
	spoof := []string{"x-forwarded-for: 6.6.6.6", "x-envoy-external-address: 6.6.6.6"}
	var logged []string
	for _, c := range []struct {
		name, before string
		headers      []string
		want         string
	}{
		{"version 1", proxyV1("1.2.3.4"), nil, "1.2.3.4"},
		{"version 2", proxyV2("1.2.3.4"), nil, "1.2.3.4"},
		{"version 1, and the client's headers", proxyV1("1.2.3.4"), spoof, "1.2.3.4"},
		{"version 2, and the client's headers", proxyV2("1.2.3.4"), spoof, "1.2.3.4"},
		{"IPv6", "PROXY TCP6 2001:db9::1 2001:db9::2 4321 443\r\n", spoof, "2001:db9::1"},
		{"a proxy behind the proxy", proxyV2(otherProxy), []string{"x-forwarded-for: 6.6.6.6, 1.2.3.4"}, "1.2.3.4"},
		{"of the proxy itself", "PROXY UNKNOWN\r\n", nil, proxy},
		{"without a PROXY header", "", []string{"x-forwarded-for: 6.6.6.6, 1.2.3.4"}, "1.2.3.4"},
	} {
		if got := g.addressOf(proxy, c.before, c.headers...); got != c.want {
			t.Errorf("%s: the address is %q, want %q", c.name, got, c.want)
		}
		logged = append(logged, c.want)
	}
	g.wantLogged(logged)
}

// TestPROXYHeaderOfAStrangerIsRefused: such a connection reaches the version and nothing else, whatever it claims.
func TestPROXYHeaderOfAStrangerIsRefused(t *testing.T) {
	g := startGateway(t, "access_log: {format: ecs}\n"+proxies+", proxy_protocol: true}\n"+shop)
	for name, before := range map[string]string{
		"no header": "", "version 1": proxyV1("1.2.3.4"), "version 2": proxyV2("1.2.3.4"),
		"version 1 of a proxy": proxyV1(proxy), "version 2 of a proxy": proxyV2(proxy), "unknown": "PROXY UNKNOWN\r\n",
	} {
		for _, path := range []string{"/orders", "/items", "/ITEMS", "/Token", "/nobody", "/"} {
			got := g.from(stranger, before, "GET", path, "x-forwarded-for: 1.2.3.4", scopeHeader+": /items")
			if got.Status != 403 || got.Body != `"Connect to the load balancer."` || got.Header.Get("content-type") != "application/json" {
				t.Errorf("%s: %s is %d %s", name, path, got.Status, got.Body)
			}
		}
		if got := g.from(stranger, before, "GET", definitions.VersionPath); got.Status != 200 || !strings.HasPrefix(got.Body, `"`) {
			t.Errorf("%s: the version is %d %s", name, got.Status, got.Body)
		}
	}
	if got := envoytest.H2Request(t, g.addr, [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/items"}, {":authority", "h"}}, ""); got.Status != "403" {
		t.Errorf("HTTP/2: %s", got.Status)
	}
	for name, upstream := range map[string]*envoytest.Recorder{"secured": g.secured, "public": g.public, "tokens": g.tokens} {
		if raw := upstream.Raw(); raw != "" {
			t.Errorf("the %s upstream received %q", name, raw)
		}
	}
	if checks := g.asked(); len(checks) > 0 {
		t.Errorf("ext_authz was asked: %v", checks)
	}
	// The access log has the request of a proxy, and none of those before it.
	g.from(proxy, proxyV1("1.2.3.4"), "GET", "/items")
	if line := g.log.await(t, 1)[0]; at(t, line, "client", "address") != "1.2.3.4" {
		t.Error(line)
	}
}

// TestMalformedPROXYHeaderIsNoRequest: its connection is closed without an answer.
func TestMalformedPROXYHeaderIsNoRequest(t *testing.T) {
	g := startGateway(t, proxies+", proxy_protocol: true}\n"+shop)
	for name, before := range map[string]string{
		"no address": "PROXY TCP4 here there 1 2\r\n", "too few": "PROXY TCP4 1.2.3.4\r\n", "no protocol": "PROXY TCP9 1.2.3.4 1.2.3.4 1 2\r\n",
		"another version": strings.Replace(proxyV2("1.2.3.4"), "\x21", "\x31", 1),
	} {
		if got := g.from(proxy, before, "GET", "/items"); got.Status != 0 {
			t.Errorf("%s: %d %s", name, got.Status, got.Body)
		}
	}
	if raw := g.public.Raw(); raw != "" {
		t.Errorf("the upstream received %q", raw)
	}
}

// TestNoProxiesChangeNothing: definitions that trust nobody are those that do not mention it.
func TestNoProxiesChangeNothing(t *testing.T) {
	text := `services: [{name: a, path: /a, upstreams: ["http://127.0.0.1:1"]}]`
	if without, empty := build(t, text), build(t, "client_addresses: {trusted_proxies: []}\n"+text); without.Version != empty.Version {
		t.Error("the version differs")
	}
	if headers := (&builder{gw: parse(t, text)}).checkedHeaders(); slices.Contains(headers, "x-envoy-external-address") {
		t.Errorf("a Check receives %q", headers)
	}
}
