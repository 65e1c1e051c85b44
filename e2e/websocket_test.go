package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"gatepost/envoy/envoytest"
)

const shopOrigin = "https://shop.example"

// Open opens a WebSocket like a page of the origin. If the gateway does not switch protocols, the
// status is that of its response.
func (g *gateway) Open(t *testing.T, path, origin string, protocols []string, headers ...string) (*websocket.Conn, int) {
	t.Helper()
	config, err := websocket.NewConfig("ws://"+g.Addr+path, origin)
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = protocols
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		config.Header.Add(name, value)
	}
	conn, err := config.DialContext(t.Context())
	if err == nil {
		t.Cleanup(func() { conn.Close() })
		return conn, http.StatusSwitchingProtocols
	}
	return nil, g.handshake(t, path, origin, protocols, headers...).Status
}

// handshake requests a WebSocket and returns the response, because clients hide a refusal.
func (g *gateway) handshake(t *testing.T, path, origin string, protocols []string, headers ...string) answer {
	t.Helper()
	lines := append([]string{
		"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
	}, headers...)
	if origin != "" {
		lines = append(lines, "Origin: "+origin)
	}
	if len(protocols) > 0 {
		lines = append(lines, "Sec-WebSocket-Protocol: "+strings.Join(protocols, ", "))
	}
	return g.Do("GET", path, "", lines...)
}

// chats makes an upstream accept WebSockets and echo messages. It chooses the subprotocol "chat" if
// it is offered.
func chats(upstream *envoytest.Recorder) *envoytest.Recorder {
	upstream.SetHandler(websocket.Server{
		Handshake: func(config *websocket.Config, _ *http.Request) error {
			offered := config.Protocol
			config.Protocol = nil
			for _, one := range offered {
				if one == "chat" {
					config.Protocol = []string{"chat"}
				}
			}
			return nil
		},
		Handler: func(conn *websocket.Conn) { _, _ = io.Copy(conn, conn) },
	}.ServeHTTP)
	return upstream
}

// echoes reports whether a WebSocket echoes a message.
func echoes(conn *websocket.Conn, text string) bool {
	if _, err := io.WriteString(conn, text); err != nil {
		return false
	}
	got := make([]byte, len(text))
	_ = conn.SetReadDeadline(time.Now().Add(envoytest.Deadline))
	_, err := io.ReadFull(conn, got)
	return err == nil && string(got) == text
}

func TestServiceAcceptsWebSocketsOnlyIfConfigured(t *testing.T) {
	t.Parallel()
	users, chat, ticker, orders := users(t), chats(envoytest.Upstream(t)), chats(envoytest.Upstream(t)), chats(envoytest.Upstream(t))
	g := start(t, fmt.Sprintf(`
tokens: {authenticator: {url: %q}}
services:
  - {name: chat, path: /chat, websocket: true, upstreams: [%q]}
  - {name: ticker, path: /ticker, websocket: true, authenticate: false, upstreams: [%q]}
  - {name: orders, path: /orders, upstreams: [%q]}
`, users.URL(), chat.URL(), ticker.URL(), orders.URL()), setup{})
	token := g.Login("alice")

	conn, status := g.Open(t, "/chat/rooms/5?x=1", shopOrigin, nil, "Authorization: Bearer "+token, "x-user-id: root")
	if conn == nil || !echoes(conn, "hello") {
		t.Fatalf("a WebSocket with a token: %d", status)
	}
	got := only(t, chat)
	if got.Path != "/rooms/5?x=1" || strings.Join(got.Header["X-User-Id"], ",") != "alice" || got.Header["Authorization"] != nil {
		t.Errorf("the upstream got %s %v", got.Path, got.Header)
	}
	for name := range got.Header {
		if strings.HasPrefix(name, "X-Envoy-") && name != "X-Envoy-External-Address" {
			t.Errorf("the upstream got %s: %s", name, got.Header.Get(name))
		}
	}
	if conn, status := g.Open(t, "/ticker", shopOrigin, nil); conn == nil || !echoes(conn, "hello") {
		t.Errorf("a public WebSocket: %d", status)
	}
	for _, headers := range [][]string{nil, {"Authorization: Bearer x"}, {"Authorization: Bearer " + other(token)}, {"Cookie: session=" + token}} {
		if _, status := g.Open(t, "/chat", shopOrigin, []string{"gatepost.bearer." + token}, headers...); status != http.StatusUnauthorized {
			t.Errorf("a WebSocket with %q: %d, want 401", headers, status)
		}
	}
	if _, status := g.Open(t, "/orders", shopOrigin, nil, "Authorization: Bearer "+token); status != http.StatusForbidden {
		t.Errorf("a WebSocket to a service that accepts none: %d, want 403", status)
	}
	none(t, chat)
	none(t, orders)
	if strings.Contains(g.Log(), token) {
		t.Error("the log has the token")
	}
}

// The token is minted with a lifetime of seconds and used after the setting was changed to an hour.
// The stream must end with the token's own expiry, not by the setting.
func TestStreamEndsWithItsToken(t *testing.T) {
	t.Parallel()
	for lifetime := 4 * time.Second; !streamEndsWithItsToken(t, lifetime); lifetime *= 4 {
		t.Logf("%v are too short for this machine", lifetime)
	}
}

// streamEndsWithItsToken reports false if more than half of the lifetime was over before all streams were open.
func streamEndsWithItsToken(t *testing.T, lifetime time.Duration) bool {
	users, chat, news := users(t), chats(envoytest.Upstream(t)), envoytest.Upstream(t)
	news.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil {
			fmt.Fprintf(w, "data: %s\n\n", r.Header.Get("x-user-id"))
			_ = http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	})
	definitions := func(lifetime string) string {
		return fmt.Sprintf(`
tokens: {lifetime: %s, authenticator: {url: %q}}
services:
  - {name: chat, path: /chat, websocket: true, timeout: 0.1s, upstreams: [%q]}
  - {name: news, path: /news, timeout: 3600s, upstreams: [%q]}
`, lifetime, users.URL(), chat.URL(), news.URL())
	}
	g := start(t, definitions(lifetime.String()), setup{})
	issued := time.Now()
	token := "Authorization: " + g.Login("alice")
	g.Define(definitions("3600s"))
	envoytest.Eventually(t, "the longer lifetime to be served", func() bool {
		return g.Do("POST", "/token", `{"username":"bob","password":"right"}`).Header.Get("expires_in") == "3600"
	})
	bob := "Authorization: " + g.Login("bob")

	conn, status := g.Open(t, "/chat", shopOrigin, nil, token)
	lasting, lastingStatus := g.Open(t, "/chat", shopOrigin, nil, bob)
	request, err := http.NewRequestWithContext(t.Context(), "GET", g.URL+"/news", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", strings.TrimPrefix(token, "Authorization: "))
	stream, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if time.Since(issued) > lifetime/2 {
		return false
	}
	if conn == nil || lasting == nil || stream.StatusCode != http.StatusOK {
		t.Fatalf("WebSockets: %d, %d; the stream of events: %d", status, lastingStatus, stream.StatusCode)
	}
	time.Sleep(300 * time.Millisecond) // three times chat's timeout
	if !echoes(conn, "longer than the timeout") && time.Since(issued) < lifetime {
		t.Error("the timeout ended a WebSocket")
	}
	_ = conn.SetReadDeadline(time.Now().Add(envoytest.Deadline))
	if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("the WebSocket outlived its token: %v", err)
	}
	// It did not end too early: the token has expired.
	want(t, "the token of the stream that ended", g.Do("GET", "/news", "", token), http.StatusUnauthorized, notAllowed)
	if events, err := io.ReadAll(stream.Body); err == nil || !strings.HasPrefix(string(events), "data: alice\n\n") {
		t.Errorf("the stream of events: %.100q, then %v; want that it is cut", events, err)
	}
	if !echoes(lasting, "still here") {
		t.Error("the WebSocket of another's token ended too")
	}
	return true
}

func isTimeout(err error) bool {
	timeout, ok := err.(interface{ Timeout() bool })
	return ok && timeout.Timeout()
}

// pageGateway is a gateway that accepts tokens in every possible form.
func pageGateway(t *testing.T) (g *gateway, chat, items, users *envoytest.Recorder) {
	t.Helper()
	users, chat, items = usersWithScopes(t), chats(envoytest.Upstream(t)), envoytest.Upstream(t)
	g = start(t, fmt.Sprintf(`
origins: [%q]
cors: {allow_credentials: true}
tokens: {cookie: session, subprotocol: gatepost.bearer, authenticator: {url: %q}}
services:
  - {name: chat, path: /chat, websocket: true, upstreams: [%q]}
  - {name: orders, path: /orders, upstreams: [%q]}
  - {name: items, path: /items, authenticate: false, upstreams: [%q]}
`, shopOrigin, users.URL(), chat.URL(), items.URL(), items.URL()), setup{})
	return g, chat, items, users
}

// pageLogin is Login for a gateway that requires an origin.
func (g *gateway) pageLogin(user string) string {
	g.t.Helper()
	got := g.Do("POST", "/token", fmt.Sprintf(`{"username":%q,"password":"right"}`, user), "Origin: "+shopOrigin)
	want(g.t, "logging "+user+" in", got, http.StatusOK, "")
	return got.Header.Get("token")
}

// Browsers cannot set headers on a WebSocket.
func TestPageOpensAWebSocketByCookieOrSubprotocol(t *testing.T) {
	t.Parallel()
	g, chat, _, _ := pageGateway(t)
	token, another := g.pageLogin("alice"), g.pageLogin("bob")
	bearer := func(t string) string { return "gatepost.bearer." + t }

	for _, c := range []struct {
		what      string
		protocols []string // offered by the page
		cookie    string
		headers   []string
		chosen    string   // as the page receives it
		sees      []string // offered to the upstream
		cookies   []string // sent to the upstream
	}{
		{what: "a cookie", cookie: "a=1; session=" + token + "; b=2", cookies: []string{"a=1; b=2"}},
		{what: "a cookie alone", cookie: "session=" + token},
		{what: "a token in addition to the service's subprotocol", protocols: []string{bearer(token), "chat"}, chosen: "chat", sees: []string{"chat"}},
		{what: "a token for a service without subprotocols", protocols: []string{"gatepost.bearer", bearer(token)}, chosen: "gatepost.bearer"},
		{what: "both, and the service chooses", protocols: []string{"x", "chat", "gatepost.bearer", bearer(token)}, chosen: "chat", sees: []string{"x, chat"}},
		{what: "all at once", protocols: []string{"chat", bearer(token)}, cookie: "session=" + token + "; a=1", headers: []string{"Authorization: Bearer " + token},
			chosen: "chat", sees: []string{"chat"}, cookies: []string{"a=1"}},
	} {
		headers := c.headers
		if c.cookie != "" {
			headers = append(headers, "Cookie: "+c.cookie)
		}
		conn, status := g.Open(t, "/chat", shopOrigin, c.protocols, headers...)
		if conn == nil || !echoes(conn, c.what) {
			t.Fatalf("%s: %d", c.what, status)
		}
		if got := strings.Join(conn.Config().Protocol, ","); got != c.chosen {
			t.Errorf("%s: the subprotocol %q was chosen, want %q", c.what, got, c.chosen)
		}
		got := only(t, chat)
		if !slices.Equal(got.Header["Sec-Websocket-Protocol"], c.sees) || !slices.Equal(got.Header["Cookie"], c.cookies) || got.Header["Authorization"] != nil {
			t.Errorf("%s: the upstream got %v", c.what, got.Header)
		}
		if user := got.Header.Get("X-User-Id"); user != "alice" {
			t.Errorf("%s: the upstream learns of %q", c.what, user)
		}
		if strings.Contains(chat.Raw(), token) {
			t.Errorf("%s: the upstream got the token", c.what)
		}
	}

	cookie := "Cookie: session=" + token
	for what, got := range map[string]answer{
		"a page of another origin":            g.handshake(t, "/chat", "https://evil.example", nil, cookie),
		"no page at all":                      g.handshake(t, "/chat", "", nil, cookie),
		"another origin, by a subprotocol":    g.handshake(t, "/chat", "https://evil.example", []string{bearer(token)}),
		"two cookies":                         g.handshake(t, "/chat", shopOrigin, nil, cookie+"; session="+another),
		"two cookies on two lines":            g.handshake(t, "/chat", shopOrigin, nil, "Cookie: a=1", cookie),
		"a cookie and another subprotocol":    g.handshake(t, "/chat", shopOrigin, []string{bearer(another)}, cookie),
		"a cookie and another token":          g.handshake(t, "/chat", shopOrigin, nil, cookie, "Authorization: Bearer "+another),
		"a cookie of another name":            g.handshake(t, "/chat", shopOrigin, nil, "Cookie: Session="+token),
		"a subprotocol of another name":       g.handshake(t, "/chat", shopOrigin, []string{"bearer." + token}),
		"a token as a subprotocol, by itself": g.handshake(t, "/chat", shopOrigin, []string{token}),
		"a token that was never issued":       g.handshake(t, "/chat", shopOrigin, []string{bearer(other(token))}),
	} {
		want(t, what, got, http.StatusUnauthorized, notAllowed)
	}
	none(t, chat)
	if log := g.Log(); strings.Contains(log, token) || strings.Contains(log, another) {
		t.Error("the log has a token")
	}
}

func TestCookieIsAcceptedFromListedOriginsOnly(t *testing.T) {
	t.Parallel()
	g, _, items, users := pageGateway(t)
	token := g.pageLogin("alice")
	only(t, users)
	cookie, origin := "Cookie: theme=dark; session="+token, "Origin: "+shopOrigin

	for _, method := range []string{"GET", "POST", "DELETE"} {
		got := g.Do(method, "/orders", "", cookie, origin)
		want(t, method+" by cookie", got, http.StatusOK, "")
		wantHeader(t, method+" by cookie", got, "Access-Control-Allow-Origin", shopOrigin)
		wantHeader(t, method+" by cookie", got, "Access-Control-Allow-Credentials", "true")
		if seen := only(t, items); !slices.Equal(seen.Header["Cookie"], []string{"theme=dark"}) || seen.Header.Get("X-User-Id") != "alice" {
			t.Errorf("%s by cookie: the upstream got %v", method, seen.Header)
		}
		for _, forged := range [][]string{{cookie}, {cookie, "Origin: https://evil.example"}, {cookie, "Origin: null"}} {
			want(t, method+" by a cookie of another page's", g.Do(method, "/orders", "", forged...), http.StatusUnauthorized, notAllowed)
		}
	}
	none(t, items)

	// HTTP/2 may split cookies into several fields (RFC 9113 §8.2.3).
	h2 := envoytest.H2Request(t, g.Addr, [][2]string{
		{":method", "GET"}, {":scheme", "http"}, {":authority", "h"}, {":path", "/orders"},
		{"origin", shopOrigin}, {"cookie", "theme=dark"}, {"cookie", "session=" + token}, {"cookie", "b=2"},
	}, "")
	if seen := only(t, items); h2.Status != "200" || !slices.Equal(seen.Header["Cookie"], []string{"theme=dark; b=2"}) {
		t.Errorf("HTTP/2: %s, the upstream got %v", h2.Status, seen.Header)
	}

	// A browser sends the cookie with every request; neither a public service nor the user service
	// may receive it.
	want(t, "a public service", g.Do("GET", "/items", "", cookie, origin), http.StatusOK, "")
	if seen := only(t, items); !slices.Equal(seen.Header["Cookie"], []string{"theme=dark"}) {
		t.Errorf("a public service got %v", seen.Header)
	}
	want(t, "a login", g.Do("POST", "/token", `{"username":"bob","password":"right"}`, cookie, origin), http.StatusOK, "")
	if seen := only(t, users); !slices.Equal(seen.Header["Cookie"], []string{"theme=dark"}) {
		t.Errorf("the user service got %v", seen.Header)
	}
	// Calls that end sessions do not accept the cookie: a page must send the token itself.
	want(t, "logging out by cookie", g.Do("DELETE", "/token/sessions", "", cookie, origin), http.StatusUnauthorized, notAllowed)
	if log := g.Log(); strings.Contains(log, token) || strings.Contains(log, "theme") {
		t.Error("the log has a cookie")
	}
}

// TestNoPublicUpstreamGetsAToken: neither in a subprotocol nor in Authorization, even if no origins
// are listed, so that Gatepost is not asked about public services. The upstream can still choose
// among the other subprotocols of a WebSocket.
func TestNoPublicUpstreamGetsAToken(t *testing.T) {
	t.Parallel()
	users, ticker, items, raw := users(t), chats(envoytest.Upstream(t)), envoytest.Upstream(t), chats(envoytest.Upstream(t))
	g := start(t, fmt.Sprintf(`
tokens: {subprotocol: gatepost.bearer, authenticator: {url: %q}}
services:
  - {name: ticker, path: /ticker, websocket: true, authenticate: false, upstreams: [%q]}
  - {name: items, path: /items, authenticate: false, upstreams: [%q]}
  - {name: raw, path: /raw, websocket: true, authenticate: false, forward_token: true, upstreams: [%q]}
`, users.URL(), ticker.URL(), items.URL(), raw.URL()), setup{})
	token := g.Login("alice")
	bearer := "gatepost.bearer." + token
	authorization := "Authorization: Bearer " + token

	for _, c := range []struct {
		protocols []string
		chosen    string
		sees      []string
	}{
		{nil, "", nil},
		{[]string{"chat"}, "chat", []string{"chat"}},
		{[]string{"chat", bearer}, "chat", []string{"chat"}},
		{[]string{bearer, "x", "chat"}, "chat", []string{"x, chat"}},
		{[]string{"gatepost.bearer", bearer}, "gatepost.bearer", nil},
		{[]string{"chat", "gatepost.bearer." + token + "x"}, "chat", []string{"chat"}},
	} {
		for _, path := range []string{"/ticker/x", "/TICKER/x"} {
			conn, status := g.Open(t, path, shopOrigin, c.protocols, authorization, "x-user-id: mallory")
			if conn == nil || !echoes(conn, "hello") {
				t.Fatalf("%s %q: %d", path, c.protocols, status)
			}
			if got := strings.Join(conn.Config().Protocol, ","); got != c.chosen {
				t.Errorf("%s %q: the subprotocol %q was chosen, want %q", path, c.protocols, got, c.chosen)
			}
			text := ticker.Raw()
			if got := only(t, ticker); !slices.Equal(got.Header["Sec-Websocket-Protocol"], c.sees) || strings.Contains(text, token) || got.Header["X-User-Id"] != nil {
				t.Errorf("%s %q: the upstream got %v", path, c.protocols, got.Header)
			}
		}
	}
	// Repeated headers count as one list.
	g.Raw(t, rawGet("/ticker", "Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: "+bearer))
	if text := ticker.Raw(); strings.Contains(text, token) || only(t, ticker).Header.Get("Sec-Websocket-Protocol") != "chat" {
		t.Errorf("two lists of subprotocols: the upstream got %q", text)
	}
	for _, path := range []string{"/items/5", "/ITEMS", "/ticker"} {
		want(t, path, g.Do("GET", path, "", authorization, "Sec-WebSocket-Protocol: "+bearer), map[bool]int{true: http.StatusBadRequest, false: http.StatusOK}[path == "/ticker"], "")
		for _, upstream := range []*envoytest.Recorder{items, ticker} {
			if text := upstream.Raw(); strings.Contains(text, token) {
				t.Errorf("%s: the upstream got %q", path, text)
			}
			upstream.Reset()
		}
	}
	if conn, status := g.Open(t, "/raw", shopOrigin, []string{"chat", bearer}, authorization); conn == nil {
		t.Errorf("forward_token: %d", status)
	}
	if got := only(t, raw); got.Header.Get("Sec-Websocket-Protocol") != "chat, "+bearer || got.Header.Get("Authorization") != "Bearer "+token {
		t.Errorf("forward_token: the upstream got %v", got.Header)
	}
	if n := g.Metric(`gatepost_decisions_total{decision="allow",reason="public",service="items"`); n != 0 {
		t.Errorf("Gatepost received %v checks for a service without WebSockets", n)
	}
	if n := g.Metric(`gatepost_decisions_total{decision="allow",reason="public",service="ticker"`); n == 0 || n > 10 {
		t.Errorf("Gatepost received %v checks for a public service, want one for each offered token: 4 on 2 paths and 2 more", n)
	}
}
