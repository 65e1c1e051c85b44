package xds

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
)

// The times are so long that no request is forgotten while a test runs.
const limited = `
listen: LISTEN
access_log: {format: ecs}
` + proxies + `}
services:
  - {name: address, path: /Address, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 2, per: 24h, by: address}]}
  - {name: burst, path: /burst, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1, per: 24h, burst: 5, by: address}]}
  - {name: all, path: /all, authenticate: false, upstreams: ["PUBLIC"], hosts: ["gate.example", "*.gate.example", h], rate_limits: [{requests: 4, per: 24h, by: service}]}
  - {name: root, path: /all, authenticate: false, upstreams: ["PUBLIC"]}
  - {name: below, path: /all/below, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1, per: 24h, by: service}]}
  - {name: two, path: /two, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 5, per: 24h, by: service}, {requests: 2, per: 12h, by: address}]}
  - {name: user, path: /user, upstreams: ["SECURED"], rate_limits: [{requests: 2, per: 24h, by: user}, {requests: 6, per: 24h, by: address}]}
  - {name: key, path: /key, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1, per: 24h, header: X-Key}]}
  - {name: calls, path: /calls.Calls, authenticate: false, upstreams: ["h2c://127.0.0.1:9"], grpc: true, rate_limits: [{requests: 1, per: 24h, by: service}]}
  - {name: chat, path: /chat, authenticate: false, websocket: true, upstreams: ["PUBLIC"], rate_limits: [{requests: 2, per: 24h, by: service}]}
  - {name: free, path: /free, authenticate: false, upstreams: ["PUBLIC"]}
`

// TestGatewayWithRateLimits runs the tests of rate limits on one Envoy. Each has a service of its own.
func TestGatewayWithRateLimits(t *testing.T) {
	t.Parallel()
	g := startGateway(t, strings.Replace(limited, "access_log", "tokens: {subprotocol: gatepost.bearer}\naccess_log", 1))
	for _, c := range []struct {
		name string
		test func(*testing.T, *gateway)
	}{
		{"every address is counted", everyAddressIsCounted},
		{"an address cannot be made up", anAddressCannotBeMadeUp},
		{"a burst", aBurst},
		{"all routes and hosts of a service count", allRoutesAndHostsOfAServiceCount},
		{"two limits", twoLimits},
		{"users are counted after the check", usersAreCountedAfterTheCheck},
		{"values of a header", valuesOfAHeader},
		{"an answer to a gRPC call", anAnswerToAGRPCCall},
		{"WebSockets count, with and without a token", webSocketsCount},
		{"the answer", theAnswer},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, g.of(t)) })
	}
	envoytest.Eventually(t, "a line of the access log", func() bool {
		g.log.mu.Lock()
		defer g.log.mu.Unlock()
		return slices.ContainsFunc(g.log.all, func(line string) bool {
			return strings.Contains(line, `"status_code":429`) && strings.Contains(line, `"name":"burst"`) && strings.Contains(line, `"local_rate_limited"`)
		})
	})
}

// inTurn sends requests and returns the statuses of the answers.
func inTurn(n int, send func(i int) envoytest.Response) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprint(send(i).Status))
	}
	return strings.Join(out, " ")
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// manyAddresses is how many clients are counted apart. By default Envoy has room for 20.
func manyAddresses() int {
	if testing.Short() {
		return 100
	}
	return 1000
}

// everyAddressIsCounted: of many that take turns, so that none is forgotten, and in any spelling of the path.
func everyAddressIsCounted(t *testing.T, g *gateway) {
	client := &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(proxy)}}).DialContext}}
	defer client.CloseIdleConnections()
	addresses := manyAddresses()
	for round, path := range []string{"/Address", "/address/5", "/ADDRESS?x", "/Address"} {
		for i := range addresses {
			got, err := envoytest.Send(t.Context(), client, "GET", "http://"+g.addr+path, "", "x-forwarded-for: "+fmt.Sprintf("10.7.%d.%d", i/250, i%250))
			if err != nil {
				t.Fatal(err)
			}
			if limited := round >= 2; (got.Status == 429) != limited || (got.Status == 200) == limited {
				t.Fatalf("round %d, address %d: %d", round, i, got.Status)
			}
		}
	}
}

func anAddressCannotBeMadeUp(t *testing.T, g *gateway) {
	spoofed := func(i int) envoytest.Response {
		return g.from(stranger, "", "GET", "/address", fmt.Sprintf("x-forwarded-for: 6.6.6.%d", i), fmt.Sprintf("x-envoy-external-address: 7.7.7.%d", i), "x-real-ip: 8.8.8.8")
	}
	want(t, "a client that names addresses", inTurn(4, spoofed), "200 200 429 429")
	v6 := func(address string) func(int) envoytest.Response {
		return func(i int) envoytest.Response {
			return g.from(proxy, "", "GET", "/address", fmt.Sprintf("x-forwarded-for: "+address, i))
		}
	}
	want(t, "a client with a /64", inTurn(4, v6("2001:db9:0:7::%d")), "200 200 429 429")
	want(t, "clients with a /64 each", inTurn(4, v6("2001:db9:0:1%d::1")), "200 200 200 200")
	want(t, "IPv4 clients in IPv6", inTurn(4, v6("::ffff:192.0.2.%d")), "200 200 200 200")
	want(t, "one of them", inTurn(3, func(int) envoytest.Response { return v6("::ffff:192.0.2.%d")(1) }), "200 429 429")
}

func aBurst(t *testing.T, g *gateway) {
	want(t, "a burst", inTurn(7, func(int) envoytest.Response { return g.do("GET", "/burst") }), "200 200 200 200 200 429 429")
}

// allRoutesAndHostsOfAServiceCount: together, and no other request does, such as one that is no service's.
func allRoutesAndHostsOfAServiceCount(t *testing.T, g *gateway) {
	preflight := []string{fromShop, "access-control-request-method: GET"}
	for range 5 {
		if got := g.do("OPTIONS", "/all", preflight...); got.Status != 200 {
			t.Errorf("a preflight: %d %v", got.Status, got.Header)
		}
	}
	g.do("PROPFIND", "/all")
	from := func(host, path string) string {
		raw := envoytest.RawRequest(t, g.addr, fmt.Appendf(nil, "GET %s HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n", path, host))
		return fmt.Sprint(envoytest.Responses(raw)[0].Status)
	}
	var got []string
	for _, r := range [][2]string{{"gate.example", "/all"}, {"x.gate.example", "/ALL/5"}, {"h:80", "/all/"}, {"Gate.Example", "//all"}, {"y.gate.example", "/all"}, {"h", "/All"}, {"other", "/all"}, {"other", "/all"}} {
		got = append(got, from(r[0], r[1]))
	}
	want(t, "a service under several hosts", strings.Join(got, " "), "200 200 200 200 429 429 200 200")
	want(t, "a service below it", from("other", "/all/below")+from("other", "/all/BELOW/5"), "200429")
	want(t, "another service", from("h", "/free"), "200")
}

// twoLimits: a request above the one is not allowed by the other.
func twoLimits(t *testing.T, g *gateway) {
	by := func(address string) func(int) envoytest.Response {
		return func(int) envoytest.Response { return g.from(address, "", "GET", "/two") }
	}
	want(t, "the first client", inTurn(3, by("127.0.0.11")), "200 200 429")
	want(t, "the second", inTurn(3, by("127.0.0.12")), "200 200 429")
}

func usersAreCountedAfterTheCheck(t *testing.T, g *gateway) {
	as := func(user string) func(*authv3.AttributeContext) *authv3.CheckResponse {
		return func(*authv3.AttributeContext) *authv3.CheckResponse {
			r := allow(nil)
			r.GetOkResponse().Headers[0].Header.Value = user
			return r
		}
	}
	send := func(address string) func(i int) envoytest.Response {
		return func(i int) envoytest.Response {
			return g.from(address, "", "GET", "/User", fmt.Sprintf("x-user-id: mallory%d", i))
		}
	}
	g.answers(deny(typev3.StatusCode_Unauthorized, `"no"`))
	want(t, "without a token, counted by address", inTurn(7, send("127.0.0.21")), "401 401 401 401 401 401 429")
	g.answers(as("ada"))
	want(t, "ada", inTurn(3, send("127.0.0.22")), "200 200 429")
	want(t, "ada from elsewhere", inTurn(1, send("127.0.0.23")), "429")
	g.answers(as("bob"))
	want(t, "bob", inTurn(3, send("127.0.0.24")), "200 200 429")
}

func valuesOfAHeader(t *testing.T, g *gateway) {
	send := func(headers ...string) func(int) envoytest.Response {
		return func(int) envoytest.Response { return g.do("GET", "/key", headers...) }
	}
	want(t, "one value", inTurn(2, send("x-key: a")), "200 429")
	want(t, "another", inTurn(2, send("x-key: b")), "200 429")
	want(t, "none", inTurn(2, send()), "200 429")
	want(t, "an empty one", inTurn(2, send("x-key:")), "200 429")
	hiding := func(i int) envoytest.Response {
		return g.do("GET", "/key", fmt.Sprintf("x-key: made up %d", i), "x-key: real")
	}
	want(t, "one behind others", inTurn(2, hiding), "200 429")
	want(t, "several in one line", inTurn(1, send("x-key: made up, real")), "429")
}

func anAnswerToAGRPCCall(t *testing.T, g *gateway) {
	call := func() string {
		return g.do("POST", "/calls.Calls/Do", "content-type: application/grpc", "te: trailers").Header.Get("grpc-status")
	}
	want(t, "the upstream is away, then the limit", call()+" "+call(), "14 8")
}

func webSocketsCount(t *testing.T, g *gateway) {
	upgrade := []string{"connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="}
	offer := append([]string{"sec-websocket-protocol: gatepost.bearer.x"}, upgrade...)
	got := []string{}
	for _, headers := range [][]string{upgrade, offer, upgrade, offer} {
		got = append(got, fmt.Sprint(g.raw("GET", "/chat", headers...).Status))
	}
	want(t, "handshakes", strings.Join(got, " "), "200 200 429 429") // the upstream takes no WebSockets
}

// theAnswer is JSON that a page can read, and the access log has why.
func theAnswer(t *testing.T, g *gateway) { aboveTheLimit(t, g, "") }

// aboveTheLimit checks the answer to a client that has used up the service burst, whose limit is given; "" if Envoy
// counts it, without rate_limit_headers.
func aboveTheLimit(t *testing.T, g *gateway, limit string) {
	t.Helper()
	got := g.do("GET", "/burst", fromShop)
	exposed := got.Header.Get("access-control-expose-headers")
	if got.Status != 429 || got.Body != `"There are too many requests. Please wait."` || got.Header.Get("content-type") != "application/json" ||
		got.Header.Get("access-control-allow-origin") != "https://shop.example" || !strings.Contains(exposed, "retry-after") || !strings.Contains(exposed, "x-ratelimit-reset") {
		t.Errorf("%d %s %v", got.Status, got.Body, got.Header)
	}
	wait := got.Header.Get("retry-after")
	if seconds, err := strconv.Atoi(wait); err != nil || seconds < 1 {
		t.Errorf("the client is not told how long to wait: %v", got.Header)
	}
	for name, want := range map[string]string{"x-ratelimit-limit": limit, "x-ratelimit-remaining": "0", "x-ratelimit-reset": wait, "x-envoy-ratelimited": ""} {
		if v := strings.Join(got.Header.Values(name), ", "); v != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
}

// TestGatewaysOwnLimits count all requests but preflights and those for the version, which Gatepost itself asks for.
func TestGatewaysOwnLimits(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "rate_limits: [{requests: 2, per: 24h, by: address}, {requests: 5, per: 24h, by: gateway}]\n"+shop)
	paths := []string{"/items", "/nobody", "/ORDERS"}
	by := func(address string) func(i int) envoytest.Response {
		return func(i int) envoytest.Response { return g.from(address, "", "GET", paths[i%3]) }
	}
	for range 5 {
		if got := g.do("GET", definitions.VersionPath); got.Status != 200 {
			t.Errorf("the version: %d", got.Status)
		}
		if got := g.do("OPTIONS", "/items", fromShop, "access-control-request-method: GET"); got.Status != 200 {
			t.Errorf("a preflight: %d", got.Status)
		}
	}
	want(t, "a client", inTurn(3, by("127.0.0.31")), "200 404 429")
	want(t, "another", inTurn(3, by("127.0.0.32")), "200 404 429")
	want(t, "one too many for the gateway", inTurn(2, by("127.0.0.33")), "200 429")
	got := g.do("POST", "/token", fromShop)
	if got.Status != 429 || got.Body != `"There are too many requests. Please wait."` || got.Header.Get("x-ratelimit-remaining") != "0" ||
		!strings.Contains(got.Header.Get("access-control-expose-headers"), "retry-after") {
		t.Errorf("a login: %d %s %v", got.Status, got.Body, got.Header)
	}
}

// TestGatewaysOwnLimitsCountInEachFilterChain: as often as `gatepost validate` warns of, and no oftener.
func TestGatewaysOwnLimitsCountInEachFilterChain(t *testing.T) {
	t.Parallel()
	top := "rate_limits: [{requests: 2, per: 24h, by: gateway}]\n" + proxies + "}\n"
	g := startHTTPS(t, top, "  default_certificate: a.example\n  redirect: false\n", "a.example", "b.example")
	allowed := 0
	for _, source := range []string{stranger, proxy} {
		for _, name := range []string{"no TLS", "a.example", "b.example", "other.example"} {
			got := inTurn(4, func(int) envoytest.Response {
				if name == "no TLS" {
					return g.from(source, "", "GET", "/items")
				}
				return g.get(source, "", name, "/items")
			})
			want(t, name+" from "+source, got, "200 200 429 429")
			allowed += strings.Count(got, "200")
		}
	}
	gateway := parse(t, top+`
tls: {redirect: false, default_certificate: a, certificates: [{cert_file: a, key_file: k}, {cert_file: b, key_file: k}]}
services: []`)
	if most := 2 * gateway.FilterChains(); allowed != most {
		t.Errorf("%d requests are allowed, and the bound is %d", allowed, most)
	}
}

// TestALimitOfAServiceIsSharedByTheFilterChains, unlike those of the gateway: its buckets are in the scope.
func TestALimitOfAServiceIsSharedByTheFilterChains(t *testing.T) {
	t.Parallel()
	l := startLive(t, func(listen, upstream string) *Snapshot {
		return build(t, fmt.Sprintf("listen: %q\n"+proxies+"}\nservices: [{name: a, path: /a, authenticate: false, upstreams: [%q], "+
			"rate_limits: [{requests: 3, per: 24h, by: service}]}]", listen, upstream))
	})
	by := map[string]*http.Client{}
	for _, address := range []string{stranger, proxy} {
		transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext}
		t.Cleanup(transport.CloseIdleConnections)
		by[address] = &http.Client{Transport: transport}
	}
	var got []int
	for _, address := range []string{stranger, proxy, stranger, proxy, stranger} {
		status, _, err := l.get(by[address], "/a")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, status)
	}
	want(t, "requests of both filter chains", fmt.Sprint(got), "[200 200 200 429 429]")
}

// TestTheFilterChainsOfDefinitionsAreThoseOfTheListeners: the bound of a gateway's own limits depends on their number.
func TestTheFilterChainsOfDefinitionsAreThoseOfTheListeners(t *testing.T) {
	t.Parallel()
	const certificates = "certificates: [{cert_file: a, key_file: k}, {cert_file: b, key_file: k}]"
	for _, more := range []string{
		"", proxies + "}", proxies + ", proxy_protocol: true}",
		"tls: {" + certificates + "}", "tls: {redirect: false, " + certificates + "}", "tls: {http3: true, " + certificates + "}",
		"tls: {redirect: false, http3: true, default_certificate: a, " + certificates + "}\n" + proxies + "}",
		"tls: {default_certificate: b, " + certificates + "}\n" + proxies + ", proxy_protocol: true}",
	} {
		gateway := parse(t, "rate_limits: [{requests: 2, by: gateway}]\nservices: []\n"+more)
		options := testOptions
		if gateway.TLS != nil {
			for _, name := range []string{"a", "b"} {
				options.Certificates = append(options.Certificates, Certificate{
					Name: name, ServerNames: []string{name + ".example"}, Default: name == gateway.TLS.DefaultCertificate,
				})
			}
		}
		snapshot, err := Build(gateway, options)
		if err != nil {
			t.Fatal(err)
		}
		counting := 0
		for _, m := range messages(snapshot) {
			l, ok := m.(*listenerv3.Listener)
			if !ok {
				continue
			}
			for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
				if chain == nil {
					continue
				}
				manager, err := managerOf(chain)
				if err != nil {
					t.Fatal(err)
				}
				if slices.ContainsFunc(manager.GetHttpFilters(), func(f *hcmv3.HttpFilter) bool { return f.GetName() == filterGatewayLimits }) {
					counting++
				}
			}
		}
		if got := gateway.FilterChains(); got != counting {
			t.Errorf("%q: %d filter chains, and the listeners have %d", more, got, counting)
		}
	}
}
