package xds

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"gatepost/envoy/envoytest"
)

const answering = `
listen: LISTEN
access_log: {format: ecs}
response_headers: {set: {X-Frame-Options: DENY, X-Own: gateway}, remove: [X-Powered-By, Server]}
services:
  - {name: kept, path: /kept, authenticate: false, redirect: {to: "https://new.example"}}
  - {name: replaced, path: /replaced, authenticate: false, redirect: {to: "https://new.example:8443/shop", status: 308}}
  - {name: root, path: /root, authenticate: false, redirect: {to: "http://[2001:db8::7]/", status: 301}}
  - {name: members, path: /members, redirect: {to: "https://new.example", status: 302}}
  - {name: down, path: /down, upstreams: ["SECURED"], maintenance: {message: "Back at 100 % \"noon\"", retry_after: 30m}}
  - {name: calls, path: /calls.Calls, upstreams: ["h2c://127.0.0.1:9"], grpc: true, maintenance: {}}
  - {name: orders, path: /orders, upstreams: ["SECURED"], response_headers: {set: {X-Own: "orders %REQ(host)%", Server: shop}, remove: [X-Frame-Options]},
     request_headers: {set: {X-Tenant: "100 %", Accept: text/plain}, remove: [Referer]}}
  - {name: items, path: /items, authenticate: false, upstreams: ["PUBLIC"], request_headers: {set: {X-Tenant: acme}, remove: [Cookie-Consent]}}
  - {name: closed, path: /closed, authenticate: false, upstreams: ["http://127.0.0.1:9"]}
`

// TestGatewayThatAnswers runs the tests about what Envoy answers or changes by itself, on one Envoy.
func TestGatewayThatAnswers(t *testing.T) {
	t.Parallel()
	g := startGateway(t, answering)
	for name, test := range map[string]func(*testing.T, *gateway){
		"redirects":                             redirects,
		"a redirect needs a token as a service": aRedirectNeedsATokenAsAService,
		"maintenance":                           maintenance,
		"headers of responses":                  headersOfResponses,
		"headers of requests":                   headersOfRequests,
	} {
		t.Run(name, func(t *testing.T) { test(t, g.of(t)) })
	}
}

func redirects(t *testing.T, g *gateway) {
	for _, c := range []struct {
		path, location string
		status         int
	}{
		{"/kept", "https://new.example/kept", 307},
		{"/KEPT/5?x=1&y", "https://new.example/KEPT/5?x=1&y", 307},
		{"/replaced", "https://new.example:8443/shop", 308},
		{"/replaced/5/6?x", "https://new.example:8443/shop/5/6?x", 308},
		{"/root", "http://[2001:db8::7]/", 301},
		{"/root/5", "http://[2001:db8::7]/5", 301},
		{"/root//5", "http://[2001:db8::7]/5", 301},
		{"/root/%0d%0aset-cookie:x", "http://[2001:db8::7]/%0d%0aset-cookie:x", 301},
	} {
		got := g.do("POST", c.path, fromShop, "content-length: 0")
		if got.Status != c.status || got.Header.Get("location") != c.location || got.Body != "" {
			t.Errorf("%s: %d to %q %s, want %d to %q", c.path, got.Status, got.Header.Get("location"), got.Body, c.status, c.location)
		}
		if got.Header.Get("access-control-allow-origin") != "https://shop.example" {
			t.Errorf("%s: a page cannot follow: %v", c.path, got.Header)
		}
	}
	if got := g.do("PROPFIND", "/kept"); got.Status != 405 {
		t.Errorf("another method: %d, want 405", got.Status)
	}
	if got := g.do("GET", "/keptnot"); got.Status != 404 {
		t.Errorf("another path: %d, want 404", got.Status)
	}
}

func aRedirectNeedsATokenAsAService(t *testing.T, g *gateway) {
	if got := g.do("GET", "/members/5"); got.Status != 302 || len(g.asked()) != 1 {
		t.Errorf("allowed: %d after %d checks", got.Status, len(g.asked()))
	}
	g.answers(deny(typev3.StatusCode_Unauthorized, `"no"`))
	if got := g.do("GET", "/members/5"); got.Status != 401 || got.Header.Get("location") != "" {
		t.Errorf("denied: %d %v", got.Status, got.Header)
	}
}

func maintenance(t *testing.T, g *gateway) {
	for _, path := range []string{"/down", "/DOWN/5?x"} {
		got := g.do("POST", path, fromShop, "content-length: 0")
		if got.Status != 503 || got.Body != `"Back at 100 % \"noon\""` || got.Header.Get("content-type") != "application/json" ||
			got.Header.Get("retry-after") != "1800" || got.Header.Get("access-control-allow-origin") != "https://shop.example" ||
			got.Header.Get("access-control-expose-headers") != "retry-after,x-request-id" {
			t.Errorf("%s: %d %s %v", path, got.Status, got.Body, got.Header)
		}
	}
	if len(g.asked()) > 0 || reached(g.secured) != "" {
		t.Error("a token was checked, or the upstream called")
	}
	got := g.do("POST", "/calls.Calls/Do", "content-type: application/grpc", "te: trailers")
	if got.Status != 200 || got.Header.Get("grpc-status") != "14" {
		t.Errorf("a gRPC call: %d %v, want the status UNAVAILABLE", got.Status, got.Header)
	}
	if got := g.do("GET", "/closed"); got.Status != 503 || got.Body != `"The service cannot be reached at the moment."` {
		t.Errorf("an upstream that is away: %d %s", got.Status, got.Body)
	}
}

func headersOfResponses(t *testing.T, g *gateway) {
	g.secured.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range []string{"X-Powered-By", "X-Frame-Options", "X-Own", "Server"} {
			w.Header().Set(name, "upstream")
		}
	})
	for _, other := range []*envoytest.Recorder{g.public, g.tokens} {
		other.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Powered-By", "upstream")
			w.Header().Set("Server", "upstream")
		})
	}
	preflight := []string{fromShop, "access-control-request-method: GET"}
	for _, c := range []struct {
		method, path string
		headers      []string
		status       int
		own, frame   string
	}{
		{"GET", "/orders", nil, 200, "orders %REQ(host)%", ""},
		{"GET", "/ORDERS/5", nil, 200, "orders %REQ(host)%", ""},
		{"FOO", "/orders", nil, 400, "", ""}, // a request that has no route
		{"PROPFIND", "/orders", nil, 405, "orders %REQ(host)%", ""},
		{"OPTIONS", "/orders", preflight, 200, "orders %REQ(host)%", ""},
		{"GET", "/items", nil, 200, "gateway", "DENY"},
		{"GET", "/kept", nil, 307, "gateway", "DENY"},
		{"GET", "/down", nil, 503, "gateway", "DENY"},
		{"GET", "/closed", nil, 503, "gateway", "DENY"},
		{"GET", "/nobody", nil, 404, "gateway", "DENY"},
		{"POST", "/token", nil, 200, "gateway", "DENY"},
		{"GET", "/%2e%2e;/x", nil, 400, "gateway", "DENY"},
	} {
		got := g.do(c.method, c.path, c.headers...)
		if server := got.Header.Values("server"); !slices.Equal(server, serverOf(c.own)) {
			t.Errorf("%s %s: Server is %q", c.method, c.path, server)
		}
		if got.Status != c.status || got.Header.Get("x-own") != c.own || got.Header.Get("x-frame-options") != c.frame || got.Header.Get("x-powered-by") != "" {
			t.Errorf("%s %s: %d %v, want %d with %q and %q", c.method, c.path, got.Status, got.Header, c.status, c.own, c.frame)
		}
	}
	g.answers(deny(typev3.StatusCode_Unauthorized, `"no"`))
	for path, want := range map[string][]string{"/orders": {"shop"}, "/members": nil} {
		got := g.do("GET", path)
		if server := got.Header.Values("server"); got.Status != 401 || got.Header.Get("x-own") == "" || !slices.Equal(server, want) {
			t.Errorf("%s is denied: %d %v", path, got.Status, got.Header)
		}
	}
}

// serverOf returns the Server of the response with a service's own header: none but that of orders has one.
func serverOf(own string) []string {
	if strings.HasPrefix(own, "orders") {
		return []string{"shop"}
	}
	return nil
}

func headersOfRequests(t *testing.T, g *gateway) {
	g.do("GET", "/orders", "referer: https://shop.example/", "accept: */*", "x-tenant: mallory", "x-kept: yes")
	g.do("GET", "/ITEMS", "cookie-consent: no", "x-user-id: mallory")
	secured, public := g.secured.Requests(), g.public.Requests()
	if len(secured) != 1 || len(public) != 1 {
		t.Fatalf("the upstreams got %v and %v", secured, public)
	}
	for name, want := range map[string]string{"x-tenant": "100 %", "accept": "text/plain", "referer": "", "x-kept": "yes", "x-user-id": "ada"} {
		if got := secured[0].Header.Get(name); got != want {
			t.Errorf("secured: %s is %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"x-tenant": "acme", "cookie-consent": "", "x-user-id": ""} {
		if got := public[0].Header.Get(name); got != want {
			t.Errorf("public: %s is %q, want %q", name, got, want)
		}
	}
}
