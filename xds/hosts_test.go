package xds

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/testrun"
)

// severalHosts has services of the same path under different hosts. The upstream's base is the name of the service.
const severalHosts = `
listen: LISTEN
tokens: {path: /auth/token, HOSTSauthenticator: {url: "http://users.example/authenticate"}}
services:
  - {name: all-orders, path: /orders, authenticate: false, upstreams: ["PUBLIC/all-orders"]}
  - {name: all-prices, path: /orders/prices, authenticate: false, upstreams: ["PUBLIC/all-prices"]}
  - {name: all-status, path: /Status, authenticate: false, upstreams: ["PUBLIC/all-status"]}
  - {name: api-orders, path: /Orders, hosts: [api.shop.example], upstreams: ["SECURED/api-orders"]}
  - {name: api-chat, path: /chat, hosts: [api.shop.example], authenticate: false, websocket: true, upstreams: ["PUBLIC/api-chat"]}
  - {name: wild-orders, path: /orders, hosts: ["*.shop.example"], authenticate: false, allowed_methods: [GET], upstreams: ["PUBLIC/wild-orders"]}
  - {name: wild-deep, path: /orders/deep, hosts: ["*.shop.example"], authenticate: false, upstreams: ["PUBLIC/wild-deep"]}
  - {name: eu-orders, path: /orders, hosts: ["*.eu.shop.example"], authenticate: false, upstreams: ["PUBLIC/eu-orders"]}
  - {name: admin, path: /, hosts: [admin.shop.example, admin.example], upstreams: ["SECURED/admin"]}
  - {name: admin-items, path: /items, hosts: [admin.shop.example], authenticate: false, upstreams: ["PUBLIC/admin-items"]}
  - {name: intranet, path: /, hosts: ["*.intranet"], authenticate: false, upstreams: ["PUBLIC/intranet"]}
  - {name: wiki, path: /wiki, hosts: [wiki.intranet], authenticate: false, upstreams: ["PUBLIC/wiki"]}
`

// TestHostFirstThenPath is the policy: the most specific host that has a service for the path, then the longest path.
func TestHostFirstThenPath(t *testing.T) {
	t.Parallel()
	g := startGateway(t, strings.Replace(severalHosts, "HOSTS", "", 1))
	for _, c := range []struct{ host, path, want string }{
		// An exact name before names with *.
		{"api.shop.example", "/orders", "api-orders"},
		{"api.shop.example", "/orders/5", "api-orders"},
		{"api.shop.example", "/orders/prices", "api-orders"},
		{"api.shop.example", "/orders/deep", "api-orders"},
		// Ports, case and a dot at the end are ignored; so is the case of paths.
		{"API.Shop.Example", "/ORDERS/5", "api-orders"},
		{"api.shop.example:5500", "/orders", "api-orders"},
		{"api.shop.example:1", "/oRDERS", "api-orders"},
		{"api.shop.example:", "/orders", "api-orders"},
		{"api.shop.example.", "/orders", "api-orders"},
		{"api.shop.example.:80", "/orders", "api-orders"},
		// A longer suffix before a shorter one; * is one label or more.
		{"x.shop.example", "/orders", "wild-orders"},
		{"x.y.shop.example", "/orders/5", "wild-orders"},
		{"x.shop.example", "/orders/prices", "wild-orders"},
		{"x.shop.example", "/orders/deep/5", "wild-deep"},
		{"x.eu.shop.example", "/orders", "eu-orders"},
		{"x.eu.shop.example", "/orders/deep", "eu-orders"},
		{"eu.shop.example", "/orders", "wild-orders"},
		{"shop.example", "/orders", "all-orders"},
		{"xshop.example", "/orders", "all-orders"},
		// A service without hosts responds under every host, if no service of the host takes the path.
		{"other.example", "/orders", "all-orders"},
		{"other.example", "/orders/prices/5", "all-prices"},
		{"10.0.0.7:5500", "/orders", "all-orders"},
		{"[2001:db8::7]:5500", "/orders", "all-orders"},
		{"api.shop.example", "/status", "all-status"},
		{"x.shop.example", "/STATUS/5", "all-status"},
		// A service at / takes all other paths of its host.
		{"admin.shop.example", "/orders", "admin"},
		{"admin.shop.example", "/orders/prices", "admin"},
		{"admin.shop.example", "/status", "admin"},
		{"admin.shop.example", "/items/5", "admin-items"},
		{"admin.shop.example", "/ITEMS", "admin-items"},
		{"admin.shop.example", "/", "admin"},
		{"admin.shop.example", "/auth", "admin"},
		{"admin.example:8443", "/Status", "admin"},
		{"admin.example", "/items", "admin"},
		{"wiki.intranet", "/wiki/x", "wiki"},
		{"wiki.intranet", "/orders", "intranet"},
		{"other.intranet", "/wiki", "intranet"},
		{"other.intranet", "/status", "intranet"},
		// Nothing takes the rest.
		{"api.shop.example", "/", "404"},
		{"api.shop.example", "/items", "404"},
		{"other.example", "/chat", "404"},
		{"x.shop.example", "/chat", "404"},
		{"wiki.example", "/wiki", "404"},
		// The gateway's own paths are under every host.
		{"api.shop.example", "/auth/token", "tokens"},
		{"admin.shop.example", "/AUTH/token", "tokens"},
		{"other.example", "/auth/token", "tokens"},
		{"10.0.0.7", "/auth/token", "tokens"},
		{"admin.shop.example", "/auth/token/x", "404"},
		{"x.shop.example", definitions.VersionPath, "version"},
		{"admin.shop.example", definitions.VersionPath, "version"},
	} {
		method := "GET"
		if c.want == "tokens" {
			method = "POST"
		}
		if got := g.under(method, c.host, c.path); got != c.want {
			t.Errorf("%s%s: %s, want %s", c.host, c.path, got, c.want)
		}
	}
}

// under sends a request with a host, and returns the name of the service that received it: the base of its upstream.
// Otherwise it returns the status, "tokens" or "version".
func (g *gateway) under(method, host, path string, headers ...string) string {
	g.t.Helper()
	text := fmt.Sprintf("%s %s HTTP/1.1\r\nhost: %s\r\nconnection: close\r\ncontent-length: 0\r\n", method, path, host)
	for _, h := range headers {
		text += h + "\r\n"
	}
	return g.receiver(envoytest.RawRequest(g.t, g.addr, []byte(text+"\r\n")))
}

// receiver names who has received the request of a raw response.
func (g *gateway) receiver(raw []byte) string {
	g.t.Helper()
	var names []string
	for _, r := range []*envoytest.Recorder{g.secured, g.public} {
		for _, q := range r.Requests() {
			name, _, _ := strings.Cut(strings.TrimPrefix(q.Path, "/"), "/")
			names = append(names, name)
		}
		r.Reset()
	}
	if len(g.tokens.Requests()) > 0 {
		names = append(names, "tokens")
	}
	g.tokens.Reset()
	got := envoytest.Responses(raw)
	if len(names) > 1 || len(got) != 1 {
		g.t.Fatalf("%d responses, received by %q", len(got), names)
	}
	switch {
	case len(names) == 1:
		return names[0]
	case got[0].Status == http.StatusOK:
		return "version"
	}
	return fmt.Sprint(got[0].Status)
}

// TestEachHostHasItsRules: the rule, the methods, the preflights and the upgrades are those of the host's service.
func TestEachHostHasItsRules(t *testing.T) {
	t.Parallel()
	g := startGateway(t, strings.Replace(severalHosts, "HOSTS", "", 1))
	for _, c := range []struct{ method, host, path, want, asked string }{
		{"GET", "api.shop.example", "/orders", "api-orders", "api-orders"},
		{"GET", "API.shop.example:80", "/ORDERS", "api-orders", "api-orders"},
		{"GET", "admin.shop.example", "/status", "admin", "admin"},
		{"GET", "x.shop.example", "/orders", "wild-orders", ""},
		{"POST", "x.shop.example", "/orders", "405", ""},
		{"POST", "x.shop.example", "/ORDERS", "405", ""},
		{"POST", "api.shop.example", "/orders", "api-orders", "api-orders"},
		{"POST", "other.example", "/orders", "all-orders", ""},
	} {
		g.answers(allow)
		got, asked := g.under(c.method, c.host, c.path), ""
		for _, a := range g.asked() {
			asked += a.GetContextExtensions()["service"]
		}
		if got != c.want || asked != c.asked {
			t.Errorf("%s %s%s: %s, asked about %q; want %s, %q", c.method, c.host, c.path, got, asked, c.want, c.asked)
		}
	}
	for host, want := range map[string]string{
		"x.shop.example": "GET,HEAD", "api.shop.example": "GET,HEAD,POST,PUT,PATCH,DELETE", "admin.example": "GET,HEAD,POST,PUT,PATCH,DELETE",
	} {
		text := fmt.Sprintf("OPTIONS /orders HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n%s\r\naccess-control-request-method: GET\r\n\r\n", host, fromShop)
		got := envoytest.Responses(envoytest.RawRequest(t, g.addr, []byte(text)))
		if len(got) != 1 || got[0].Header.Get("access-control-allow-methods") != want {
			t.Errorf("a preflight under %s: %v, want %s", host, got, want)
		}
	}
	upgrade := []string{"connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="}
	for host, want := range map[string]string{"api.shop.example": "api-chat", "other.example": "403", "admin.example": "403", "x.intranet": "403"} {
		for _, path := range []string{"/chat/5", "/CHAT/5"} {
			text := fmt.Sprintf("GET %s HTTP/1.1\r\nhost: %s\r\n%s\r\n\r\n", path, host, strings.Join(upgrade, "\r\n"))
			raw, err := envoytest.Exchange(g.addr, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if got := g.receiver(raw); got != want {
				t.Errorf("a WebSocket under %s%s: %s, want %s", host, path, got, want)
			}
		}
	}
}

// TestOwnTokensReachNoUpstreamUnderAnyHost: public services get no token, under whichever host.
func TestOwnTokensReachNoUpstreamUnderAnyHost(t *testing.T) {
	t.Parallel()
	g := startGateway(t, strings.Replace(severalHosts, "HOSTS", "", 1))
	for _, at := range []string{"x.shop.example/orders", "x.shop.example/ORDERS", "other.example/orders", "other.intranet/wiki", "wiki.intranet/wiki", "admin.shop.example/items"} {
		host, path, _ := strings.Cut(at, "/")
		text := fmt.Sprintf("GET /%s HTTP/1.1\r\nhost: %s\r\nconnection: close\r\nauthorization: Bearer 7a6b3c50-1c2d-4e5f-8a9b-0c1d2e3f4a5b\r\nx-user-id: mallory\r\n\r\n", path, host)
		envoytest.RawRequest(t, g.addr, []byte(text))
		got := g.public.Requests()
		g.public.Reset()
		if len(got) != 1 || got[0].Header.Get("authorization") != "" || got[0].Header.Get("x-user-id") != "" {
			t.Errorf("%s: the upstream got %v", at, got)
		}
	}
}

// TestTokensHaveHosts: under other hosts their paths are those of nobody, or of the service at /.
func TestTokensHaveHosts(t *testing.T) {
	t.Parallel()
	g := startGateway(t, strings.Replace(severalHosts, "HOSTS", `hosts: [login.example, "*.shop.example"], `, 1))
	for host, want := range map[string]string{
		"login.example": "tokens", "LOGIN.example:5500": "tokens", "x.shop.example": "tokens", "api.shop.example": "tokens", "admin.shop.example": "tokens",
		"admin.example": "admin", "x.intranet": "intranet", "other.example": "404", "10.0.0.7": "404",
	} {
		if got := g.under("POST", host, "/auth/token"); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
}

// TestAHostThatIsNoneIsRefused: an upstream may read another host in it than the gateway. It is refused in every scope
// in which services differ by the host, and in the one of all other paths.
func TestAHostThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	g := startGateway(t, strings.Replace(severalHosts, "HOSTS", "", 1))
	var requests []string
	for _, host := range []string{
		"user@api.shop.example", "api.shop.example:x@other.example", "other.example:80@api.shop.example", "api.shop.example:80:90",
		"api.shop.example,other.example", "x..shop.example", ".shop.example", "api.shop.example..", "x%2eshop.example", "x;y.shop.example",
		"api.shop.example:8o", "[api.shop.example]", "*.shop.example", "", " ", "api.shop.example/x", "api.shop.example?x", "b\u00fccher.shop.example",
		"api.shop.example other.example", "user@admin.example", "user@x.intranet", "user@other.example",
		"api.shop.example\r\nhost: other.example", "other.example\r\nhost: other.example",
	} {
		for _, path := range []string{"/orders", "/ORDERS/5", "/status", "/", "/chat", "/items"} {
			requests = append(requests, fmt.Sprintf("GET %s HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n", path, host))
		}
	}
	requests = append(requests,
		"GET /orders HTTP/1.1\r\nconnection: close\r\n\r\n",
		"GET /orders HTTP/1.0\r\n\r\n",
		"GET /orders HTTP/1.0\r\nhost: other.example\r\n\r\n",
		"GET http:///orders HTTP/1.1\r\nhost: other.example\r\nconnection: close\r\n\r\n",
		"GET ftp://other.example/orders HTTP/1.1\r\nhost: other.example\r\nconnection: close\r\n\r\n",
		"GET https://other.example/orders HTTP/1.1\r\nhost: other.example\r\nconnection: close\r\n\r\n",
		"GET http://x;y.shop.example/orders HTTP/1.1\r\nhost: other.example\r\nconnection: close\r\n\r\n")
	var all sync.WaitGroup // Envoy keeps some of the connections open for a while
	for _, request := range requests {
		all.Go(func() {
			raw, err := envoytest.Exchange(g.addr, []byte(request))
			got := envoytest.Responses(raw)
			if err != nil || len(got) != 1 || !slices.Contains([]int{http.StatusBadRequest, http.StatusForbidden, http.StatusUpgradeRequired}, got[0].Status) {
				t.Errorf("%q: %v %v", request, got, err)
			}
		})
	}
	all.Wait()
	if got := reached(g.public) + reached(g.secured); got != "" {
		t.Errorf("%s came through", got)
	}
}

// TestTheHostOfAWholeURLCounts: over the Host header (RFC 9112 §3.2.2). By HTTP/2 it is :authority.
func TestTheHostOfAWholeURLCounts(t *testing.T) {
	t.Parallel()
	g := startGateway(t, strings.Replace(severalHosts, "HOSTS", "", 1))
	g.answers(allow)
	received := func() (name, host string) {
		for _, r := range []*envoytest.Recorder{g.secured, g.public} {
			for _, q := range r.Requests() {
				path, _, _ := strings.Cut(q.Path, "?")
				name, _, _ = strings.Cut(strings.TrimPrefix(path, "/"), "/")
				host = q.Host
			}
			r.Reset()
		}
		return name, host
	}
	for _, c := range []struct{ target, received, sees string }{
		{"http://api.shop.example/orders", "api-orders", "api.shop.example"},
		{"http://API.shop.example:81/ORDERS", "api-orders", "API.shop.example:81"},
		{"HTTP://admin.example", "admin", "admin.example"},
		{"http://x.shop.example/orders?host=api.shop.example", "wild-orders", "x.shop.example"},
		// Envoy drops a user, and the upstream sees the host that counted.
		{"http://user@api.shop.example/orders", "api-orders", "api.shop.example"},
		{"http://api.shop.example:x@other.example/orders", "all-orders", "other.example"},
	} {
		text := fmt.Sprintf("GET %s HTTP/1.1\r\nhost: x.intranet\r\nconnection: close\r\n\r\n", c.target)
		envoytest.RawRequest(t, g.addr, []byte(text))
		if name, host := received(); name != c.received || host != c.sees {
			t.Errorf("%s: received by %q, which sees %q; want %+v", c.target, name, host, c)
		}
	}
	for _, c := range []struct {
		authority, host string
		received, sees  string
	}{
		{"api.shop.example", "", "api-orders", "api.shop.example"},
		{"api.shop.example:5500", "other.example", "api-orders", "api.shop.example:5500"},
		{"other.example", "api.shop.example", "all-orders", "other.example"},
		{"", "api.shop.example", "api-orders", "api.shop.example"},
		{"user@api.shop.example", "", "", ""},
		{"api.shop.example:x@other.example", "api.shop.example", "", ""},
	} {
		fields := [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/orders"}, {":authority", c.authority}, {"host", c.host}}
		fields = slices.DeleteFunc(fields, func(f [2]string) bool { return f[1] == "" })
		status := envoytest.H2Request(t, g.addr, fields, "").Status
		if name, host := received(); name != c.received || host != c.sees || (c.received == "") != (status != "200") {
			t.Errorf("%+v: %s, received by %q, which sees %q", c, status, name, host)
		}
	}
}

// TestAHostTouchesFewScopes: a service with hosts changes the scope of its path. One at / also changes those with
// services of less specific hosts. The first service with a host also changes the scope of all other paths.
func TestAHostTouchesFewScopes(t *testing.T) {
	text := func(more ...string) string {
		return `services:
  - {name: a, path: /a, upstreams: ["http://a"]}
  - {name: b, path: /b, hosts: [b.example], upstreams: ["http://b"]}
  - {name: c, path: /c, hosts: ["*.shop.example"], upstreams: ["http://c"]}
  ` + strings.Join(more, "\n  ")
	}
	for more, want := range map[string][]string{
		`- {name: x, path: /x, hosts: [x.example], upstreams: ["http://x"]}`:                {"/.gatepost", "/x"},
		`- {name: x, path: /a/x, hosts: [x.example], upstreams: ["http://x"]}`:              {"/.gatepost", "/a"},
		`- {name: x, path: /b/x, hosts: [b.example], upstreams: ["http://x"]}`:              {"/.gatepost", "/b"},
		`- {name: x, path: /, upstreams: ["http://x"]}`:                                     {"/", "/.gatepost"},
		`- {name: x, path: /, hosts: [b.example], upstreams: ["http://x"]}`:                 {"/", "/.gatepost", "/a"},
		`- {name: x, path: /, hosts: [x.shop.example, b.example], upstreams: ["http://x"]}`: {"/", "/.gatepost", "/a", "/c"},
		`- {name: x, path: /, hosts: ["*.shop.example"], upstreams: ["http://x"]}`:          {"/", "/.gatepost", "/a"},
		`- {name: x, path: /, hosts: ["*.a.shop.example"], upstreams: ["http://x"]}`:        {"/", "/.gatepost", "/a", "/c"},
	} {
		if got := changedScopes(build(t, text()), build(t, text(more))); !slices.Equal(got, want) {
			t.Errorf("%s: changed %q, want %q", more, got, want)
		}
	}
	const first = `services: [{name: a, path: /a, upstreams: ["http://a"]}%s]`
	with := fmt.Sprintf(first, `, {name: b, path: /b, hosts: [b.example], upstreams: ["http://b"]}`)
	if got := changedScopes(build(t, fmt.Sprintf(first, "")), build(t, with)); !slices.Equal(got, []string{"/", "/.gatepost", "/b"}) {
		t.Errorf("the first host: changed %q", got)
	}
}

// TestChangesOfHostsAreBuiltAsAnew: whatever was built before.
func TestChangesOfHostsAreBuiltAsAnew(t *testing.T) {
	testrun.Plain(t)
	services := []string{
		`- {name: a, path: /a, upstreams: ["http://a"]}`,
		`- {name: b, path: /b, hosts: [b.example], upstreams: ["http://b"]}`,
		`- {name: c, path: /a, hosts: ["*.example"], upstreams: ["http://c"]}`,
		`- {name: d, path: /, hosts: [b.example, "*.x.example"], upstreams: ["http://d"]}`,
		`- {name: e, path: /, upstreams: ["http://e"]}`,
		`- {name: f, path: /A/x, hosts: [x.example, a.x.example], upstreams: ["http://f"]}`,
		`- {name: g, path: /, hosts: ["*.example"], upstreams: ["http://g"]}`,
	}
	builder := new(Builder)
	for set := range 1 << len(services) {
		set ^= set >> 1 // a Gray code: one service is added or removed at a time
		text := "services:\n"
		for i, s := range services {
			if set&(1<<i) != 0 {
				text += "  " + s + "\n"
			}
		}
		if set == 0 {
			text = "services: []"
		}
		gw := parse(t, text)
		next, err := builder.Build(gw, testOptions)
		if err != nil {
			t.Fatal(err)
		}
		if anew := build(t, text); next.Version != anew.Version {
			t.Errorf("version %s after other definitions, and %s alone; scopes %q differ\n%s", next.Version, anew.Version, changedScopes(next, anew), text)
		}
	}
}

// changedScopes returns the names of scopes that differ; removed ones with "no " before them.
func changedScopes(before, after *Snapshot) (names []string) {
	changed, removed := after.routes.since(before.routes)
	for _, one := range changed {
		names = append(names, one.name)
	}
	for _, name := range removed {
		names = append(names, "no "+name)
	}
	return names
}

// TestOneServiceOfManyHostsHasItsRoutesOnce: hosts with the same routes share a virtual host.
func TestOneServiceOfManyHostsHasItsRoutesOnce(t *testing.T) {
	var hosts []string
	for i := range 200 {
		hosts = append(hosts, fmt.Sprintf("h%d.%s.example", i, strings.ToLower(rand.Text())))
	}
	s := build(t, fmt.Sprintf(`services: [{name: a, path: /a, hosts: [%s], upstreams: ["http://a"]}]`, strings.Join(hosts, ", ")))
	scope := resourcesOf(s, resourcev3.ScopedRouteType)["/a"].(*routev3.ScopedRouteConfiguration)
	if vhosts := scope.GetRouteConfiguration().GetVirtualHosts(); len(vhosts) != 1 || len(vhosts[0].GetDomains()) != len(hosts) {
		t.Errorf("%d virtual hosts", len(vhosts))
	}
}
