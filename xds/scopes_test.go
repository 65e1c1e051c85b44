package xds

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
)

const manyPaths = `
listen: LISTEN
tokens: {path: /Auth/token, authenticator: {url: "http://users.example/authenticate"}}
services:
  - {name: mixed, path: /Shop/Orders, upstreams: ["SECURED"], keep_prefix: true}
  - {name: shop, path: /shop, authenticate: false, upstreams: ["PUBLIC"], keep_prefix: true}
  - {name: auth, path: /AUTH, upstreams: ["SECURED"], keep_prefix: true}
  - {name: chat, path: /Chat, authenticate: false, websocket: true, upstreams: ["PUBLIC"], keep_prefix: true}
  - {name: deep, path: /a/b/c, upstreams: ["SECURED"], keep_prefix: true}
ROOT`

const rootService = `  - {name: root, path: /, authenticate: false, upstreams: ["PUBLIC"]}
`

// TestAServiceIsFoundInAnyCaseOfLetters: by the longest path, whichever scope Envoy looks into first.
func TestAServiceIsFoundInAnyCaseOfLetters(t *testing.T) {
	t.Parallel()
	for name, root := range map[string]string{"without a service for the rest": "", "with one": rootService} {
		t.Run(name, func(t *testing.T) {
			g := startGateway(t, strings.Replace(manyPaths, "ROOT", root, 1))
			rest := "404"
			if root != "" {
				rest = "public"
			}
			for path, want := range map[string]string{
				"/shop": "public", "/SHOP/x": "public", "/Shop/x": "public", "/shop/ordersx": "public", "/sHoP?Shop/Orders": "public",
				"/shop/orders": "secured", "/Shop/Orders/5": "secured", "/SHOP/ORDERS": "secured", "//sHOP//orders": "secured",
				"/auth": "secured", "/Auth/x": "secured", "/aUTH/TOKENS": "secured",
				"/auth/token": "tokens", "/AUTH/TOKEN": "tokens", "/Auth/token/revoke": "tokens", "/auth/token/x": "404",
				"/chat/5": "public", "/CHAT": "public",
				"/A/B/C": "secured", "/a/b/c/d": "secured", "/a/b": rest, "/a": rest, "/A/x": rest,
				"/": rest, "/?x": rest, "/shopx": rest, "/*": rest, "/;": rest, "/x;y/shop": rest, "/nobody": rest, "/NOBODY/shop": rest, "/.Gatepost/x": rest, "/%C3%89": rest,
			} {
				before := len(g.asked())
				got := g.do("POST", path, "content-length: 0", "authorization: abc")
				where := "404"
				for name, upstream := range map[string]*envoytest.Recorder{"public": g.public, "secured": g.secured, "tokens": g.tokens} {
					if reached(upstream) != "" {
						where = name
					}
				}
				if where != want || (got.Status == http.StatusNotFound) != (want == "404") {
					t.Errorf("%s: %d from %s, want %s", path, got.Status, where, want)
				}
				asked := len(g.asked()) > before
				if asked != (want == "secured") {
					t.Errorf("%s: asked about: %v", path, asked)
				}
			}
		})
	}
}

// TestNoClientNamesItsScope: neither by the header itself nor by having it dropped; and no upstream sees it.
func TestNoClientNamesItsScope(t *testing.T) {
	t.Parallel()
	eachWay(t, noClientNamesItsScope)
}

func noClientNamesItsScope(t *testing.T, options Options) {
	g := startGatewayWith(t, strings.Replace(manyPaths, "ROOT", "", 1), options)
	g.answers(deny(typev3.StatusCode_Unauthorized, ""))
	for _, headers := range [][]string{
		{scopeHeader + ": /shop"}, {scopeHeader + ": /"}, {scopeHeader + ": "}, {scopeHeader + ": /shop", scopeHeader + ": /shop"},
		{"X-Forwarded-Host: /shop"}, {scopeHeader + ": x, /shop"},
	} {
		for _, path := range []string{"/auth/x", "/AUTH/x", "/shop/orders", "/SHOP/Orders"} {
			if got := g.do("GET", path, headers...); got.Status != http.StatusUnauthorized {
				t.Errorf("%s %q: %d", path, headers, got.Status)
			}
		}
		if got := reached(g.public) + reached(g.secured); got != "" {
			t.Errorf("%q: %s came through", headers, got)
		}
		for _, path := range []string{"/shop/x", "/SHOP/x"} {
			if got := g.do("GET", path, headers...); got.Status != http.StatusOK {
				t.Errorf("%s %q: %d", path, headers, got.Status)
			}
		}
		for _, r := range g.public.Requests() {
			if v := r.Header.Values(scopeHeader); len(v) > 0 {
				t.Errorf("the upstream was told the scope %q", v)
			}
		}
		g.public.Reset()
	}
	for _, headers := range [][]string{{"connection: " + scopeHeader}, {"connection: " + scopeHeader, scopeHeader + ": /shop"}} {
		for _, path := range []string{"/auth/x", "/SHOP/Orders", "/shop/x"} {
			if got := g.do("GET", path, headers...); got.Status != http.StatusBadRequest { // Envoy's own, before it looks for a route
				t.Errorf("%s %q: %d", path, headers, got.Status)
			}
		}
	}
	if got := reached(g.public) + reached(g.secured); got != "" {
		t.Errorf("a request came through that has %s dropped: %s", scopeHeader, got)
	}
}

// TestAnUpgradeIsTakenByServicesThatTakeIt: in whatever way the route was found.
func TestAnUpgradeIsTakenByServicesThatTakeIt(t *testing.T) {
	t.Parallel()
	const open = `  - {name: root, path: /, authenticate: false, websocket: true, upstreams: ["PUBLIC"]}
`
	upgrade := []string{"connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="}
	for name, c := range map[string]struct {
		root           string
		takes, refuses []string
	}{
		"a service for the rest that takes none": {rootService, []string{"/chat/5", "/Chat/5", "/CHAT", "/cHat/5"}, []string{"/SHOP/x", "/shop/x", "/AUTH", "/auth", "/nobody", "/", "/a/b", "/A/b/c"}},
		"a service for the rest that takes it":   {open, []string{"/chat/5", "/CHAT/5", "/", "/nobody", "/NOBODY/x", "/a/b"}, []string{"/SHOP/x", "/shop", "/AUTH", "/token/x/../../auth", "/A/B/C"}},
		"no service for the rest":                {"", []string{"/CHAT"}, []string{"/nobody", "/", "/shop", "/.gatepost/version", "/AUTH/token"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := startGateway(t, strings.Replace(manyPaths, "ROOT", c.root, 1))
			for _, path := range c.takes {
				if got := g.do("GET", path, upgrade...); got.Status != http.StatusOK || reached(g.public) == "" { // the upstream stays with HTTP
					t.Errorf("%s: %d", path, got.Status)
				}
			}
			for _, path := range c.refuses {
				if got := g.do("GET", path, upgrade...); got.Status != http.StatusForbidden {
					t.Errorf("%s: %d", path, got.Status)
				}
				if got := reached(g.public) + reached(g.secured) + reached(g.tokens); got != "" {
					t.Errorf("%s: %s came through", path, got)
				}
			}
		})
	}
}

// TestNoOtherProtocolIsTaken: a route that takes WebSockets takes nothing else, in whatever way it was found. An
// upstream that agreed to another protocol would have a connection past the gateway.
func TestNoOtherProtocolIsTaken(t *testing.T) {
	t.Parallel()
	const open = `  - {name: root, path: /, authenticate: false, websocket: true, upstreams: ["PUBLIC"]}
`
	g := startGateway(t, strings.Replace(manyPaths, "ROOT", open, 1))
	for _, upgrade := range [][]string{
		{"upgrade: foo"}, {"upgrade: TLS/1.0"}, {"upgrade: websocket, h2c"}, {"upgrade: h2c, websocket"}, {"upgrade: "},
		{"upgrade: websocket", "upgrade: h2c"}, {"upgrade: websocket", "upgrade: websocket"}, {"upgrade: websocketx"},
	} {
		var all sync.WaitGroup // Envoy keeps each connection open for a while
		for _, path := range []string{"/chat/5", "/Chat", "/CHAT", "/cHat/5", "/", "/nobody", "/NOBODY/x", "/a/b"} {
			all.Go(func() {
				raw, err := envoytest.Exchange(g.addr, request("GET", path, append(slices.Clone(upgrade), "connection: upgrade")...))
				if got := envoytest.Responses(raw); err != nil || len(got) != 1 || got[0].Status != http.StatusForbidden {
					t.Errorf("%s %q: %v %v", path, upgrade, got, err)
				}
			})
		}
		all.Wait()
		if got := reached(g.public); got != "" {
			t.Errorf("%q: %s came through", upgrade, got)
		}
	}
	for _, path := range []string{"/chat/5", "/cHat/5", "/nobody"} { // the name of a protocol is in any case of letters (RFC 9110 §7.8)
		if got := g.do("GET", path, "connection: upgrade", "upgrade: WebSocket"); got.Status != http.StatusOK {
			t.Errorf("%s: %d", path, got.Status)
		}
	}
}

// TestAChangeOfAServiceIsAChangeOfItsScope: and of the scope that tells the version, and of no other.
func TestAChangeOfAServiceIsAChangeOfItsScope(t *testing.T) {
	text := func(more string) string {
		return `services: [{name: a, path: /A, upstreams: ["http://a"]}, {name: b, path: /b, upstreams: ["http://b"]}` + more + `]`
	}
	base := build(t, text(""))
	for more, want := range map[string][]string{
		`, {name: c, path: /c, upstreams: ["http://c"]}`:     {"/.gatepost", "/c"},
		`, {name: c, path: /a/C, upstreams: ["http://c"]}`:   {"/.gatepost", "/A", "/a"},
		`, {name: c, path: /C/d, upstreams: ["http://c"]}`:   {"/.gatepost", "/C", "/c"},
		`, {name: c, path: "/", upstreams: ["http://c"]}`:    {"/", "/.gatepost"},
		`, {name: c, path: /b/c/d, upstreams: ["http://c"]}`: {"/.gatepost", "/b"},
	} {
		if got := changedScopes(base, build(t, text(more))); !slices.Equal(got, want) {
			t.Errorf("%s: changed %q, want %q", more, got, want)
		}
	}
}

// TestRateLimitsTakeTheOtherSpellings: in a spelling that stays, the former routes would too, and need no token.
func TestRateLimitsTakeTheOtherSpellings(t *testing.T) {
	text := func(more string) *definitions.Definitions {
		d, err := definitions.Parse("gateway.yaml", []byte(`{tokens: {path: /A/token}, services: [
			{name: one, path: /a/one, upstreams: ["http://a"], `+more+`},
			{name: two, path: /A/two, upstreams: ["http://b"]}]}`))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var b Builder
	before := text("authenticate: false")
	if _, err := b.Build(before.Gateway, testOptions); err != nil {
		t.Fatal(err)
	}
	d, err := before.Next("gateway.yaml", text("rate_limits: [{requests: 1, by: address}]").Text)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Build(d.Gateway, testOptions)
	if err != nil {
		t.Fatal(err)
	}
	scopes := resourcesOf(got, resourcev3.ScopedRouteType)
	if scopes["/a"] == nil || scopes["/A"] != nil {
		t.Errorf("scopes %q", slices.Sorted(maps.Keys(scopes)))
	}
}

// TestEveryScopeTurnsItsFilterOff: a request that has a route does not pay for those that have none. The beacon's
// scope is sent with each change and seldom asked, so it saves the bytes.
func TestEveryScopeTurnsItsFilterOff(t *testing.T) {
	for name, r := range resourcesOf(build(t, strings.NewReplacer("LISTEN", "127.0.0.1:1", "SECURED", "http://a", "PUBLIC", "http://b", "ROOT", "").Replace(manyPaths)), resourcev3.ScopedRouteType) {
		if name == "/.gatepost" {
			continue
		}
		off := new(routev3.FilterConfig)
		frame := r.(*routev3.ScopedRouteConfiguration).GetRouteConfiguration().GetVirtualHosts()[0].GetTypedPerFilterConfig()
		if err := frame[filterScope].UnmarshalTo(off); err != nil || !off.GetDisabled() {
			t.Errorf("%s: %v %v", name, off, err)
		}
	}
}
