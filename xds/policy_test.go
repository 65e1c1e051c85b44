package xds

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
)

const fromShop = "origin: https://shop.example"

// TestGatewayOfTheShop runs the tests that need no other definitions, one after the other, on one Envoy.
func TestGatewayOfTheShop(t *testing.T) {
	t.Parallel()
	g := startGateway(t, shop)
	for name, test := range map[string]func(*testing.T, *gateway){
		"a request comes to its service":                     aRequestComesToItsService,
		"the rule travels with the route":                    theRuleTravelsWithTheRoute,
		"a client cannot say who it is":                      aClientCannotSayWhoItIs,
		"preflights":                                         preflights,
		"an upstream does not decide about origins":          anUpstreamDoesNotDecideAboutOrigins,
		"a large body is streamed":                           aLargeBodyIsStreamed,
		"method overrides and named users reach no upstream": methodOverridesAndNamedUsersReachNoUpstream,
		"near the limits arequest is too large":              nearTheLimitsARequestIsTooLarge,
		"envoys own 403s are json":                           envoysOwn403sAreJSON,
	} {
		t.Run(name, func(t *testing.T) { test(t, g.of(t)) })
	}
}

// aRequestComesToItsService: what reaches which upstream, and by which path.
func aRequestComesToItsService(t *testing.T, g *gateway) {
	for _, c := range []struct{ method, path, secured, public, tokens string }{
		{"GET", "/orders", "GET /", "", ""},
		{"GET", "/orders/", "GET /", "", ""},
		{"GET", "/orders/5?x=1", "GET /5?x=1", "", ""},
		{"GET", "/orders?x=1", "GET /?x=1", "", ""},
		{"GET", "/ORDERS/AbC", "GET /AbC", "", ""},
		{"HEAD", "/orders", "HEAD /", "", ""},
		{"GET", "//orders//5", "GET /5", "", ""},
		{"GET", "/items/../orders/5", "GET /5", "", ""},
		{"GET", "/items/%2e%2e/orders/5", "GET /5", "", ""},
		{"GET", "/items", "", "GET /base", ""},
		{"GET", "/Items/a", "", "GET /base/a", ""},
		{"GET", "/items/", "", "GET /base/", ""},
		{"GET", "/items/DEEP/Q", "GET /items/Deep/Q", "", ""},
		{"GET", "/items/deeper", "", "GET /base/deeper", ""},
		{"GET", "/items?to=/orders", "", "GET /base?to=/orders", ""},
		{"GET", "/items/..;/orders/5", "GET /5", "", ""},
		{"GET", "/items/%2e%2e;/orders/5", "", "", ""},
		{"GET", "/items/.%2E;x=1/5", "", "", ""},
		{"GET", "/items/..%3B/5", "", "", ""},
		{"GET", "/items/%2e;/5", "", "", ""},
		{"GET", "/items/a..;b/..c?x=/..;/", "", "GET /base/a..;b/..c?x=/..;/", ""},
		{"GET", "/itemsfoo", "", "", ""},
		{"GET", "/nobody", "", "", ""},
		{"GET", "/nobody?/orders/5", "", "", ""},
		{"POST", "/token", "", "", "POST /token"},
		{"POST", "/TOKEN/", "", "", "POST /token"},
		{"POST", "/token?x=1", "", "", "POST /token?x=1"},
		{"POST", "/token/Revoke", "", "", "POST /token/revoke"},
		{"POST", "/token/refresh", "", "", "POST /token/refresh"},
		{"POST", "/token/introspect", "", "", "POST /token/introspect"},
		{"GET", "/token/sessions", "", "", "GET /token/sessions"},
		{"DELETE", "/token/sessions", "", "", "DELETE /token/sessions"},
		{"DELETE", "/token/sessions/aB1", "", "", "DELETE /token/sessions/aB1"},
		{"GET", "/token", "", "", ""},
		{"POST", "/token/other", "", "", ""},
		{"GET", "/token/sessions/aB1", "", "", ""},
		{"POST", "/tokens", "", "", ""},
		// A preflight that is none must not come through, whoever asks for what.
		{"OPTIONS", "/orders/5", "", "", ""},
		{"OPTIONS", "/items/5", "", "", ""},
	} {
		g.do(c.method, c.path, fromShop, "access-control-request-method:")
		if got := reached(g.secured); got != c.secured {
			t.Errorf("%s %s: the secured upstream got %q, want %q", c.method, c.path, got, c.secured)
		}
		if got := reached(g.public); got != c.public {
			t.Errorf("%s %s: the public upstream got %q, want %q", c.method, c.path, got, c.public)
		}
		if got := reached(g.tokens); got != c.tokens {
			t.Errorf("%s %s: the token handler got %q, want %q", c.method, c.path, got, c.tokens)
		}
	}
}

// theRuleTravelsWithTheRoute: what a Check is told, and where there is none.
func theRuleTravelsWithTheRoute(t *testing.T, g *gateway) {
	g.do("GET", "/orders/5", "authorization: abc", fromShop, "cookie: a=b", "x-user-id: mallory")
	asked := g.asked()
	if len(asked) != 1 {
		t.Fatalf("%d checks, want 1", len(asked))
	}
	want := map[string]string{"service": "orders", "authenticate": "true", "user_header": "x-user-id"}
	for k, v := range want {
		if got := asked[0].GetContextExtensions()[k]; got != v {
			t.Errorf("the rule's %s is %q, want %q", k, got, v)
		}
	}
	told := asked[0].GetRequest().GetHttp().GetHeaders()
	if told["authorization"] != "abc" || told["origin"] != "https://shop.example" || told["x-request-id"] == "" || len(told) != 3 {
		t.Errorf("a Check is told %v", told)
	}
	g.answers(allow)
	for _, path := range []string{"/items/5", "/nobody", "/token", definitions.VersionPath} {
		g.do("GET", path)
	}
	g.do("PUT", "/orders/5")
	if n := len(g.asked()); n != 0 {
		t.Errorf("%d checks where nothing is to be decided", n)
	}
}

// aClientCannotSayWhoItIs: on public services as on others.
func aClientCannotSayWhoItIs(t *testing.T, g *gateway) {
	claims := []string{"x-user-id: mallory", "X-USER-ID: mallory", "x-forwarded-host: m", "x-real-ip: 1.1.1.1",
		"x-original-url: /admin", "x-rewrite-url: /admin", "forwarded: for=m", "x-forwarded-prefix: /m",
		"x-forwarded-uri: /m", "x-forwarded-port: 1", "x-envoy-auth-failure-mode-allowed: true", "x-envoy-original-path: /m",
		"x-envoy-attempt-count: 9", "x-envoy-peer-metadata: m"}
	g.do("GET", "/items", claims...)
	g.do("GET", "/orders", claims...)
	g.do("POST", "/token", claims...)
	for name, want := range map[*envoytest.Recorder][]string{g.public: nil, g.secured: {"ada"}, g.tokens: nil} {
		got := name.Requests()
		if len(got) != 1 {
			t.Fatalf("%d requests, want 1", len(got))
		}
		if ids := got[0].Header.Values("x-user-id"); !slices.Equal(ids, want) {
			t.Errorf("an upstream was told user %q, want %q", ids, want)
		}
		for _, claim := range claims[2:] {
			header, _, _ := strings.Cut(claim, ":")
			if v := got[0].Header.Get(header); v != "" {
				t.Errorf("%s: %s came through", header, v)
			}
		}
	}
}

// TestAnswersOfEnvoyItself: status, body and who may read it.
func TestAnswersOfEnvoyItself(t *testing.T) {
	t.Parallel()
	const gone = `"The service cannot be reached at the moment."`
	const undecided = `"The gateway cannot tell at the moment whether this request may pass. Please try again."`
	g := startGateway(t, shop)
	g.public.SetHandler(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	g.tokens.SetHandler(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	for _, c := range []struct {
		name, method, path string
		headers            []string
		answers            func(*authv3.AttributeContext) *authv3.CheckResponse
		status             int
		body               string
		want               map[string]string
	}{
		{"unknown path", "GET", "/nobody", nil, allow, 404, `"Could not find any resources for given path."`, nil},
		{"below the tokens", "POST", "/token/x", nil, allow, 404, `"Could not find any resources for given path."`, nil},
		{"method", "PUT", "/orders", nil, allow, 405, `"Method not allowed"`, map[string]string{"Allow": "GET, HEAD, POST, DELETE"}},
		{"method of the login", "GET", "/token", nil, allow, 405, `"Method not allowed"`, map[string]string{"Allow": "POST"}},
		{"method of one session", "GET", "/token/sessions/1", nil, allow, 405, `"Method not allowed"`, map[string]string{"Allow": "DELETE"}},
		{"escaped slash", "GET", "/orders%2f5", nil, allow, 400, `"The request is malformed."`, nil},
		{"early: underscore", "GET", "/orders", []string{"x_user_id: m"}, allow, 400, `"The request is malformed."`, nil},
		{"early: large headers", "GET", "/orders", []string{"x-large: " + strings.Repeat("x", 20<<10)}, allow, 431, `"The headers of the request are too large."`, nil},
		{"no decision", "GET", "/orders", nil, noAnswer, 503, undecided, map[string]string{"Retry-After": "1"}},
		{"the sidecar cannot tell", "GET", "/orders", nil, deny(503, `"its own"`, setHeader("retry-after", "7")), 503, undecided, map[string]string{"Retry-After": "7"}},
		{"the sidecar says no", "GET", "/orders", nil, deny(401, `"no"`, setHeader("content-type", "application/json")), 401, `"no"`, nil},
		{"the sidecar says later", "GET", "/orders", nil, deny(429, `"later"`, setHeader("content-type", "application/json")), 429, `"later"`, nil},
		{"upstream that breaks off", "GET", "/items", nil, allow, 503, gone, map[string]string{"Retry-After": ""}},
		{"token handler that is away", "POST", "/TOKEN?x=1", nil, allow, 503, gone, map[string]string{"Retry-After": "1"}},
		{"token handler that is away, a session", "DELETE", "/token/Sessions/1", nil, allow, 503, gone, map[string]string{"Retry-After": "1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.answers(c.answers)
			for _, origin := range []string{"", "https://shop.example"} {
				headers := c.headers
				if origin != "" {
					headers = append(slices.Clone(headers), "origin: "+origin)
				}
				got := g.do(c.method, c.path, headers...)
				if got.Status != c.status || got.Body != c.body {
					t.Errorf("answered %d %s, want %d %s", got.Status, got.Body, c.status, c.body)
				}
				if v := got.Header.Values("content-type"); !slices.Equal(v, []string{"application/json"}) {
					t.Errorf("content-type %q", v)
				}
				// Refused while the headers are being read, Envoy does not know of an origin yet.
				early := strings.HasPrefix(c.name, "early")
				var want []string
				if origin != "" && !early {
					want = []string{origin}
				}
				if v := got.Header.Values("access-control-allow-origin"); !slices.Equal(v, want) {
					t.Errorf("allowed origins %q, want %q", v, want)
				}
				if v := got.Header.Values("vary"); !early && !slices.Equal(v, []string{"origin"}) {
					t.Errorf("vary %q", v)
				}
				for k, v := range c.want {
					if got.Header.Get(k) != v || len(got.Header.Values(k)) > 1 {
						t.Errorf("%s is %q, want %q", k, got.Header.Values(k), v)
					}
				}
			}
		})
	}
}

// preflights are answered before a token is asked for, on paths that nobody has too.
func preflights(t *testing.T, g *gateway) {
	g.answers(noAnswer)
	for path, methods := range map[string]string{
		"/orders/5": "GET,HEAD,POST,DELETE", "/items": "GET,HEAD", "/token": "POST", "/token/sessions": "GET,DELETE",
		"/token/sessions/1": "DELETE", "/token/x": strings.Join(commonMethods, ","), "/nobody": strings.Join(commonMethods, ","),
	} {
		got := g.do("OPTIONS", path, fromShop, "access-control-request-method: PUT", "access-control-request-headers: authorization")
		if got.Status != 200 || got.Header.Get("access-control-allow-origin") != "https://shop.example" ||
			got.Header.Get("access-control-allow-methods") != methods || got.Header.Get("access-control-max-age") != "600" ||
			got.Header.Get("access-control-allow-headers") != "Authorization,Content-Type,Accept" {
			t.Errorf("%s: %d %v", path, got.Status, got.Header)
		}
	}
	if len(g.asked()) != 0 || reached(g.secured)+reached(g.public)+reached(g.tokens) != "" {
		t.Error("a preflight went on")
	}
}

const guarded = `
listen: LISTEN
origins: ["https://shop.example", "https://admin.example"]
cors: {allow_credentials: true}
services:
  - {name: items, path: /items, authenticate: false, upstreams: ["PUBLIC"], allowed_methods: [GET]}
`

// TestListedOrigins: every path is asked about, and no other origin is told that it may read anything.
func TestListedOrigins(t *testing.T) {
	t.Parallel()
	g := startGateway(t, guarded)
	for _, c := range [][2]string{{"GET", "/items"}, {"PUT", "/items"}, {"GET", "/nobody"}, {"POST", "/token"}, {"GET", "/token"}, {"GET", "/token/x"}} {
		g.answers(deny(401, `"no"`))
		if got := g.do(c[0], c[1], "origin: https://evil.example"); got.Status != 401 || got.Header.Get("access-control-allow-origin") != "" {
			t.Errorf("%s %s from another origin: %d %v", c[0], c[1], got.Status, got.Header)
		}
		asked := g.asked()
		if len(asked) != 1 || asked[0].GetContextExtensions()["origins"] != "https://shop.example https://admin.example" ||
			asked[0].GetContextExtensions()["authenticate"] != "false" {
			t.Errorf("%s %s: checked %v", c[0], c[1], asked)
		}
		g.answers(allow)
		got := g.do(c[0], c[1], fromShop)
		if !slices.Equal(got.Header.Values("access-control-allow-origin"), []string{"https://shop.example"}) ||
			!slices.Equal(got.Header.Values("access-control-allow-credentials"), []string{"true"}) {
			t.Errorf("%s %s from a listed origin: %d %v", c[0], c[1], got.Status, got.Header)
		}
	}
	g.public.Reset()
	for _, path := range []string{"/items", "/ITEMS"} {
		g.do("GET", path, fromShop, "x-user-id: mallory")
	}
	for _, r := range g.public.Requests() {
		if ids := r.Header.Values("x-user-id"); len(ids) > 0 {
			t.Errorf("a public service was told user %q", ids)
		}
	}
	if n := len(g.public.Requests()); n != 2 {
		t.Errorf("%d requests came through, want 2", n)
	}
	for _, origin := range []string{"https://evil.example", "null", "https://shop.example.evil.example", "HTTPS://SHOP.EXAMPLE", "*"} {
		got := g.do("OPTIONS", "/items", "origin: "+origin, "access-control-request-method: GET")
		if got.Header.Get("access-control-allow-origin") != "" {
			t.Errorf("a preflight of %s is granted", origin)
		}
		if got := g.do("GET", "/items%2f", "origin: "+origin); got.Status != 400 || got.Header.Get("access-control-allow-origin") != "" {
			t.Errorf("%s may read: %d %v", origin, got.Status, got.Header)
		}
	}
	if got := g.do("GET", "/items%2f", "origin: https://admin.example"); got.Header.Get("access-control-allow-origin") != "https://admin.example" {
		t.Errorf("a listed origin may not read: %v", got.Header)
	}
	g.answers(noAnswer)
	if got := g.do("GET", "/nobody", fromShop); got.Status != 503 || got.Header.Get("access-control-allow-origin") != "https://shop.example" {
		t.Errorf("a listed origin may not read: %d %v", got.Status, got.Header)
	}
	if got := g.do("GET", definitions.VersionPath); got.Status != 200 {
		t.Errorf("the version: %d", got.Status)
	}
}

// anUpstreamDoesNotDecideAboutOrigins: what it says of them is replaced.
func anUpstreamDoesNotDecideAboutOrigins(t *testing.T, g *gateway) {
	g.public.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("access-control-allow-origin", "https://evil.example")
		w.Header().Set("access-control-allow-credentials", "true")
		w.Header().Set("vary", "accept")
	})
	got := g.do("GET", "/items", fromShop)
	if v := got.Header.Values("access-control-allow-origin"); !slices.Equal(v, []string{"https://shop.example"}) {
		t.Errorf("allowed origins %q", v)
	}
	if v := got.Header.Get("access-control-allow-credentials"); v != "" {
		t.Errorf("credentials %q", v)
	}
	if v := strings.Join(got.Header.Values("vary"), ","); v != "accept,origin" {
		t.Errorf("vary %q", v)
	}
	if v := g.do("GET", "/items").Header.Values("access-control-allow-origin"); v != nil {
		t.Errorf("without an origin: %q", v)
	}
}

// aLargeBodyIsStreamed: far more than any buffer on the way.
func aLargeBodyIsStreamed(t *testing.T, g *gateway) {
	const size = 8 << 20
	var res *http.Response
	envoytest.Eventually(t, "a response before the timeout", func() (inTime bool) { // eight seconds on a busy machine
		g.secured.Reset()
		var err error
		if res, err = envoytest.Client(t).Post("http://"+g.addr+"/orders", "text/plain", strings.NewReader(strings.Repeat("x", size))); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode != http.StatusGatewayTimeout
	})
	if got := g.secured.Requests(); res.StatusCode != 200 || len(got) != 1 || len(got[0].Body) != size {
		t.Fatalf("answered %d", res.StatusCode)
	}
}
