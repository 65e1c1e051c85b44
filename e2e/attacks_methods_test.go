package e2e

import (
	"net/http"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

// methods: a method that a service does not allow never reaches it, and none is mistaken for
// another.
func (f *fortress) methods(t *testing.T) {
	const malformed, notAllowed, unknown = http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotFound
	var all []attempt
	for _, c := range []struct {
		method string
		h1, h2 []int
	}{
		{"get", []int{malformed, notAllowed}, []int{notAllowed}},
		{"Get", []int{malformed, notAllowed}, []int{notAllowed}},
		{"post", []int{malformed, notAllowed}, []int{notAllowed}},
		{"FOO", []int{malformed, notAllowed}, []int{notAllowed}},
		{"GETX", []int{malformed, notAllowed}, []int{notAllowed}},
		{"TRACE", []int{notAllowed}, []int{notAllowed}},
		{"TRACK", []int{malformed, notAllowed}, []int{notAllowed}},
		{"PROPFIND", []int{notAllowed}, []int{notAllowed}},
		{"CONNECT", []int{unknown, malformed}, []int{0, unknown, malformed, notAllowed}},
		{"OPTIONS", []int{notAllowed}, []int{notAllowed}},
		{"PRI", []int{malformed, notAllowed}, []int{notAllowed}},
		{"GET,POST", []int{malformed}, []int{0, malformed, notAllowed}},
		{"G\x00ET", []int{malformed}, []int{0, malformed}},
		{"(GET)", []int{malformed}, []int{0, malformed, notAllowed}},
		{strings.Repeat("A", 1000), []int{malformed, notAllowed}, []int{notAllowed, malformed, 0}},
	} {
		for _, path := range []string{"/orders/1", "/items/5", "/token", "/items/private"} {
			all = append(all, f.h1(rawRequest(c.method, path), c.h1...), f.h2(c.method, path, "", nil, c.h2...))
		}
	}
	f.refuses(t, all...)
	t.Run("CONNECT (CVE-2026-47204, CVE-2025-64763)", func(t *testing.T) {
		var all []attempt
		for _, target := range []string{"h:80", "127.0.0.1:5500", f.secured.Addr(), "/orders", "/nothing", "http://h/orders", "*"} {
			all = append(all, f.h1(rawRequest("CONNECT", target)+rawGet("/smuggled"), unknown, malformed, 403))
		}
		for _, fields := range [][][2]string{
			{{":path", ""}, {":scheme", ""}}, {{":authority", f.secured.Addr()}, {":path", ""}, {":scheme", ""}}, {{":protocol", "websocket"}}, {{":protocol", "connect-udp"}}, {},
		} {
			all = append(all, f.h2("CONNECT", "/orders", "", fields, 0, unknown, malformed, notAllowed, 403))
		}
		f.refuses(t, all...)
	})
	t.Run("another method named in a header changes nothing", func(t *testing.T) {
		for _, name := range []string{"x-http-method-override", "x-http-method", "x-method-override", "x-original-method", "x-forwarded-method"} {
			f.refused(t, name, f.Raw(t, rawRequest("DELETE", "/items/5", name+": GET")), notAllowed)
			f.refused(t, name, f.Raw(t, rawRequest("GET", "/orders/1", name+": OPTIONS", "origin: https://a.example", "access-control-request-method: GET")), http.StatusUnauthorized)
			// If the method is allowed, the upstream does not receive the overriding one.
			for path, upstream := range map[string]*envoytest.Recorder{"/items/5": f.public, "/orders/1": f.secured} {
				want(t, name, f.Raw(t, rawGet(path, name+": DELETE", "authorization: "+f.token)), http.StatusOK, "")
				if raw := upstream.Raw(); strings.Contains(raw, "DELETE") || only(t, upstream).Method != "GET" {
					t.Errorf("%s reached the upstream of %s: %q", name, path, raw)
				}
			}
		}
	})
}

// preflights: an incomplete preflight does not reach an upstream. Only what the CORS filter accepts
// as a preflight bypasses authorization.
func (f *fortress) preflights(t *testing.T) {
	const origin, asks = "origin: https://app.example", "access-control-request-method: GET"
	for _, c := range []struct {
		name   string
		lines  []string
		status int
	}{
		{"bare", nil, 405},
		{"without Access-Control-Request-Method", []string{origin}, 405},
		{"with an empty one", []string{origin, "access-control-request-method:"}, 405},
		{"with a blank one", []string{origin, "access-control-request-method: \t "}, 405},
		{"without Origin", []string{asks}, 405},
		{"with an empty Origin", []string{"origin:", asks}, 405},
		{"both empty", []string{"origin:", "access-control-request-method:"}, 405},
		{"with a hop-by-hop Origin", []string{origin, asks, "connection: origin"}, 405},
		{"with a hop-by-hop Access-Control-Request-Method", []string{origin, asks, "connection: access-control-request-method"}, 405},
		{"with two empty ones", []string{origin, "access-control-request-method:", "access-control-request-method:"}, 405},
		{"a preflight", []string{origin, asks}, 200},
		{"a preflight for an unknown method", []string{origin, "access-control-request-method: FOO"}, 200},
		{"a preflight of no origin", []string{"origin: null", asks}, 200},
		{"a preflight with two origins", []string{origin, "origin: https://evil.example", asks}, 200},
		{"a preflight with credentials", []string{origin, asks, "authorization: " + f.token}, 200},
	} {
		for _, path := range []string{"/orders/1", "/items/5", "/token", "/vault"} {
			f.refused(t, c.name+" HTTP/1 "+path, f.Raw(t, rawRequest("OPTIONS", path, c.lines...)), c.status)
			var fields [][2]string
			hop := false
			for _, line := range c.lines {
				name, value, _ := strings.Cut(line, ":")
				hop = hop || name == "connection" // which is no field of HTTP/2
				fields = append(fields, [2]string{name, strings.TrimSpace(value)})
			}
			if hop {
				continue
			}
			f.refused(t, c.name+" HTTP/2 "+path, f.H2(t, "OPTIONS", path, "", fields...), c.status)
			f.refused(t, c.name+" with a body "+path, f.Raw(t, rawWithBody("OPTIONS", path, rawGet("/smuggled"), c.lines...)), c.status)
		}
	}
}
