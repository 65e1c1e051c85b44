package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
)

const (
	listed  = "https://app.example"
	fromApp = "origin: " + listed
)

// TestAttacksWithListedOrigins covers what exists only with a list of origins: the list itself,
// tokens in cookies, and WebSockets, for which browsers send no preflight. The identity header has
// another name here.
func TestAttacksWithListedOrigins(t *testing.T) {
	t.Parallel()
	onBothListeners(t, testAttacksWithListedOrigins)
}

func testAttacksWithListedOrigins(t *testing.T, start starter) {
	f := &fortress{users: users(t), secured: envoytest.Upstream(t), public: envoytest.Upstream(t), vault: envoytest.Upstream(t)}
	f.gateway = start(t, fmt.Sprintf(`origins: [%q, "http://localhost:3000"]
identity: {user_header: x-account}
tokens: {cookie: session, subprotocol: gatepost.bearer, authenticator: {url: "%s/users/authenticate"}}
services:
  - {name: orders, path: /orders, upstreams: ["%[3]s"]}
  - {name: items, path: /items, authenticate: false, allowed_methods: [GET], upstreams: ["%[4]s"]}
  - {name: chat, path: /chat, websocket: true, upstreams: ["%[3]s"]}
  - {name: ticker, path: /ticker, websocket: true, authenticate: false, upstreams: ["%[4]s"]}
`, listed, f.users.URL(), f.secured.URL(), f.public.URL()))
	login := func(user string) string {
		got := f.Raw(t, rawWithBody("POST", "/token", `{"username":"`+user+`","password":"right"}`, fromApp))
		want(t, "a login", got, http.StatusOK, "")
		return got.Header.Get("token")
	}
	f.token = login("alice")
	for _, path := range []string{"/orders/1", "/chat/1"} { // both requests of a path are the same decision
		allowed := rawGet(path, fromApp, "authorization: "+f.token, "cookie: theme=dark")
		f.allowed = append(f.allowed, allowed, allowed)
	}
	f.attack(t, []group{
		{"origins", f.origins},
		{"cookies", func(t *testing.T) { f.cookies(t, login("bob")) }},
		{"identity", f.identityElsewhere},
		{"WebSockets", f.sockets},
		{"WebSockets that the service refuses", f.refusedSockets},
	})
	if hits := f.hits(); hits == 0 {
		t.Error("the module allowed no request")
	}
}

// origins that are not listed, or are ambiguous, reach no upstream on any path (1.3, 1.4 and the
// class "CORS" of the facts).
func (f *fortress) origins(t *testing.T) {
	var all []attempt
	for _, lines := range [][]string{
		nil, {"origin:"}, {"origin: null"}, {"origin: NULL"}, {"origin: *"}, {"origin: https://evil.example"},
		{fromApp, fromApp}, {fromApp, "origin: https://evil.example"}, {"origin: https://evil.example", fromApp}, {fromApp, "origin: null"}, {fromApp, "ORIGIN: https://evil.example"},
		{fromApp + ",https://evil.example"}, {fromApp + ", " + listed}, {fromApp + " https://evil.example"}, {fromApp + " http://localhost:3000"}, {"origin: " + listed + " " + listed},
		{fromApp + "/"}, {fromApp + ":443"}, {fromApp + "."}, {fromApp + "#"}, {fromApp + "?"}, {fromApp + "\\"}, {fromApp + "@evil.example"}, {fromApp + ".evil.example"}, {fromApp + "%00"},
		{"origin: HTTPS://APP.EXAMPLE"}, {"origin: https://App.example"}, {"origin: http://app.example"}, {"origin: //app.example"}, {"origin: app.example"}, {"origin: https://evil.app.example"},
		{"origin: https://evil-app.example"}, {"origin: https://appXexample"}, {"origin: http://localhost:30001"}, {"origin: http://localhost"}, {"origin: http://localhost:3000:80"},
		{fromApp + "\xff"}, {"origin: \xff" + listed}, {"origin: https://\u0430pp.example"}, {"origin: https://app\uff0eexample"},
		{fromApp, "connection: origin"}, {fromApp, "connection: close, Origin"},
		{"x-origin: " + listed}, {"x-forwarded-origin: " + listed}, {"referer: " + listed + "/"}, {"sec-fetch-site: same-origin"}, {"access-control-allow-origin: " + listed}, {"host: app.example"}, {"x: y", " " + fromApp},
	} {
		for _, call := range []string{"GET /orders", "GET /items", "POST /token", "GET /nothing", "PATCH /items", "POST /token/revoke", "GET /chat", "GET /items/..%3b/x"} {
			method, path, _ := strings.Cut(call, " ")
			all = append(all, f.h1(rawRequest(method, path, append(slices.Clip(lines), "authorization: "+f.token, "content-length: 0")...), http.StatusUnauthorized, http.StatusBadRequest))
		}
	}
	for _, fields := range [][][2]string{
		nil, {{"origin", ""}}, {{"origin", listed}, {"origin", listed}}, {{"origin", listed}, {"origin", "https://evil.example"}}, {{"origin", listed + "\xff"}}, {{"origin", "null"}}, {{"origin", listed + " "}, {"origin", "x"}},
	} {
		for _, path := range []string{"/orders", "/items", "/nothing"} {
			all = append(all, f.h2("GET", path, "", append(slices.Clip(fields), [2]string{"authorization", f.token}), http.StatusUnauthorized))
		}
	}
	f.refuses(t, all...)
	want(t, "a listed one", f.Raw(t, rawGet("/items", fromApp)), http.StatusOK, "")
	want(t, "with blanks about it", f.Raw(t, rawGet("/items", "origin: \t"+listed+" \t")), http.StatusOK, "")
}

// cookies with the token authorize exactly what Authorization does, and no upstream receives the
// token.
func (f *fortress) cookies(t *testing.T, bobs string) {
	good := "session=" + f.token
	var all []attempt
	for _, lines := range [][]string{
		{"cookie: session=x"}, {"cookie: session=" + other(f.token)}, {"cookie: session=" + f.token + "x"}, {`cookie: session="` + f.token + `"`}, {"cookie: session=" + strings.ToUpper(f.token)},
		{"cookie: SESSION=" + f.token}, {"cookie: xsession=" + f.token}, {"cookie: session[]=" + f.token}, {"cookie: session%20=" + f.token}, {"cookie: __Host-session=" + f.token}, {"cookie: $Version=1; $session=" + f.token},
		{"cookie2: " + good}, {"set-cookie: " + good}, {"x-cookie: " + good}, {"cookie: a=b&" + good}, {"cookie: a=\"; " + good + "x\""}, {"cookie: " + f.token},
		{"cookie: " + good, "connection: cookie"}, {"cookie: " + good + "; session=" + bobs}, {"cookie: session=" + bobs + "; " + good}, {"cookie: " + good, "cookie: session=" + bobs},
		{"cookie: " + good + ",session=" + bobs}, {"cookie: a=b," + good}, {"cookie: a=b", "cookie: " + good + "x"}, {"cookie: " + good, "authorization: " + bobs}, {"cookie: " + good, "authorization: x"},
		{"cookie: session=x", "authorization: " + f.token}, {"cookie: " + good + "\xff"}, {"cookie: " + good + "; session=x"},
	} {
		all = append(all, f.h1(rawGet("/orders", append(slices.Clip(lines), fromApp)...), http.StatusUnauthorized))
		// Browsers send cookies for pages of other origins too. Then even a valid one is not
		// accepted.
		all = append(all, f.h1(rawGet("/orders", append(slices.Clip(lines), "origin: https://evil.example")...), http.StatusUnauthorized))
	}
	for _, origin := range []string{"origin: https://evil.example", "origin: null", "referer: " + listed} {
		all = append(all, f.h1(rawGet("/orders", "cookie: "+good, origin), http.StatusUnauthorized))
		all = append(all, f.h1(rawWithBody("POST", "/orders", "a=b", "cookie: "+good, origin, "content-type: text/plain"), http.StatusUnauthorized))
	}
	f.refuses(t, all...)

	for _, c := range []struct{ cookie, left string }{
		{good, ""}, {"a=b; " + good, "a=b"}, {good + "; a=b", "a=b"}, {"a=b; " + good + "; c=d", "a=b; c=d"}, {good + "; " + good, ""}, {"session=; " + good, ""},
	} {
		for _, secured := range []bool{true, false} {
			path, upstream := "/orders", f.secured
			if !secured {
				path, upstream = "/items", f.public
			}
			f.forget()
			want(t, path+" "+c.cookie, f.Raw(t, rawGet(path, "cookie: "+c.cookie, fromApp)), http.StatusOK, "")
			raw := upstream.Raw()
			got := only(t, upstream)
			if strings.Contains(raw, f.token) {
				t.Errorf("%s %s: the service sees the token: %q", path, c.cookie, raw)
			}
			if left := strings.Join(got.Header.Values("Cookie"), "; "); secured && left != c.left {
				t.Errorf("%s %s: the service sees the cookies %q, want %q", path, c.cookie, left, c.left)
			}
			if user := got.Header.Get("X-Account"); secured && user != "alice" || !secured && user != "" {
				t.Errorf("%s %s: the service received the user %q", path, c.cookie, user)
			}
		}
	}
}

// identityElsewhere: only the gateway can set the configured identity header.
func (f *fortress) identityElsewhere(t *testing.T) {
	for _, lines := range [][]string{
		{"x-account: " + spoofed}, {"X-ACCOUNT: " + spoofed, "x-account: root"}, {"x-account: " + spoofed, "connection: x-account"}, {"x-account:", " " + spoofed},
	} {
		for path, upstream := range map[string]*envoytest.Recorder{"/orders": f.secured, "/items": f.public} {
			f.forget()
			want(t, path, f.Raw(t, rawGet(path, append(slices.Clip(lines), fromApp, "authorization: "+f.token)...)), http.StatusOK, "")
			if raw := upstream.Raw(); strings.Contains(raw, spoofed) {
				t.Errorf("%s: the client's claim reached the upstream: %q", path, raw)
			}
			var users []string
			if path == "/orders" {
				users = []string{"alice"}
			}
			if got := only(t, upstream).Header.Values("X-Account"); !slices.Equal(got, users) {
				t.Errorf("%s %q: the upstream received the user %q, want %q", path, lines, got, users)
			}
		}
	}
	f.refused(t, "an underscore", f.Raw(t, rawGet("/items", "x_account: "+spoofed, fromApp)), http.StatusBadRequest)
}

// upgrade returns the header lines with which a page opens a WebSocket.
func upgrade(more ...string) []string {
	return append([]string{"connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="}, more...)
}

// sockets: if a WebSocket is refused, neither the upgrade nor a byte after it reaches the service.
func (f *fortress) sockets(t *testing.T) {
	protocol := "sec-websocket-protocol: "
	bearer := protocol + "gatepost.bearer." + f.token
	var all []attempt
	for _, lines := range [][]string{
		{fromApp}, {"origin: https://evil.example", bearer}, {bearer}, {"origin: null", bearer}, {fromApp, "authorization: x"}, {fromApp, protocol + "gatepost.bearer"}, {fromApp, protocol + "gatepost.bearer."},
		{fromApp, protocol + "gatepost.bearer.x"}, {fromApp, protocol + f.token}, {fromApp, protocol + "bearer." + f.token}, {fromApp, protocol + "GATEPOST.BEARER." + f.token}, {fromApp, bearer + "x"},
		{fromApp, bearer + ", gatepost.bearer." + other(f.token)}, {fromApp, bearer, protocol + "gatepost.bearer.x"},
		{fromApp, bearer, "authorization: " + other(f.token)}, {fromApp, bearer, "cookie: session=x"},
		{fromApp, "x-sec-websocket-protocol: gatepost.bearer." + f.token}, {fromApp, protocol + "gatepost.bearer=" + f.token},
	} {
		all = append(all, f.h1(rawGet("/chat", upgrade(lines...)...)+smuggled, http.StatusUnauthorized))
	}
	for _, path := range []string{"/orders", "/items"} { // these do not accept WebSockets
		all = append(all, f.h1(rawGet(path, upgrade(fromApp, bearer)...)+smuggled, http.StatusForbidden))
	}
	for _, other := range []string{"h2c", "websocket2", "connect-udp", "TLS/1.0"} {
		all = append(all, f.h1(rawGet("/chat", "connection: upgrade", "upgrade: "+other, fromApp)+smuggled, http.StatusForbidden, http.StatusUnauthorized, http.StatusNotFound))
	}
	all = append(all, f.h2("CONNECT", "/chat", "", [][2]string{{":protocol", "websocket"}, {"origin", listed}, {"authorization", f.token}}, 0, http.StatusForbidden, http.StatusNotFound))
	f.refuses(t, all...)
}

// refusedSockets: if a service answers an upgrade with another status than 101, there is no
// WebSocket. What the client sends next is a request to the gateway.
func (f *fortress) refusedSockets(t *testing.T) {
	for path, upstream := range map[string]*envoytest.Recorder{"/chat": f.secured, "/ticker": f.public} {
		for name, handler := range map[string]http.HandlerFunc{
			"200": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "no") },
			"426": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUpgradeRequired) },
			"503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		} {
			f.forget()
			upstream.SetHandler(handler)
			raw, err := f.exchange(rawGet(path, upgrade(fromApp, "authorization: "+f.token)...) + strings.Replace(smuggled, "host: h", "host: h\r\n"+fromApp, 1))
			if err != nil {
				t.Fatal(err)
			}
			if got := envoytest.Responses(raw); len(got) == 0 || got[0].Status == http.StatusSwitchingProtocols {
				t.Errorf("%s %s: the client reads %q", path, name, raw)
			}
			if got := upstream.Requests(); len(got) != 1 || strings.Contains(got[0].Path, "smuggled") {
				t.Errorf("%s %s: the service got %v, want the upgrade alone", path, name, got)
			}
		}
	}
	// If the service accepts, the bytes are passed through. The service receives no token.
	f.forget()
	f.secured.SetHandler(agree)
	conn, err := f.dial(http1)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(envoytest.Deadline)); err != nil {
		t.Fatal(err)
	}
	// Envoy forwards the Connection header of an upgrade. A proxy in front of the service would
	// drop the headers that it names.
	open := rawGet("/chat", upgrade("connection: x-account, x-forwarded-for", fromApp, "sec-websocket-protocol: chat, gatepost.bearer."+f.token, "x-account: "+spoofed)...)
	if _, err := io.WriteString(conn, open+"hello"); err != nil {
		t.Fatal(err)
	}
	envoytest.Eventually(t, "the bytes to reach the service", func() bool { return strings.HasSuffix(f.secured.Raw(), "hello") })
	raw := f.secured.Raw()
	if strings.Contains(raw, f.token) || strings.Contains(raw, spoofed) {
		t.Errorf("the service got the token, or the identity that the client claims: %q", raw)
	}
	for _, line := range []string{"x-account: alice", "connection: upgrade", "upgrade: websocket", "sec-websocket-protocol: chat"} {
		if !strings.Contains(raw, line+"\r\n") {
			t.Errorf("the service got %q, want %q in it", raw, line)
		}
	}
}

// agree responds with 101 and holds the connection until the client closes it.
func agree(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: chat\r\n\r\n")
	_, _ = io.Copy(io.Discard, rw)
}
