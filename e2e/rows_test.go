package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// The strings of the old gateway, as JSON.
const (
	notAllowed       = `"You are not allowed to access this API!"`
	notFound         = `"Could not find any resources for given path."`
	methodNotAllowed = `"Method not allowed"`
)

// onBothStores runs a test with the embedded store and with a real Redis.
func onBothStores(t *testing.T, test func(t *testing.T, s setup)) {
	t.Run("embedded", func(t *testing.T) { test(t, setup{}) })
	t.Run("redis", func(t *testing.T) { test(t, setup{Redis: redistest.Start(t).URL()}) })
}

// shop is a gateway with the services of the old gateway's example: orders is secured, items is
// public.
type shop struct {
	*gateway
	users, orders, items *envoytest.Recorder
}

func startShop(t *testing.T, s setup, more ...string) *shop {
	t.Helper()
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	shop.gateway = start(t, shop.definitions(more...), s)
	return shop
}

// definitions returns the old gateway's example settings, followed by more, one per line.
func (s *shop) definitions(more ...string) string {
	return fmt.Sprintf(`
tokens:
  lifetime: 3600s
  authenticator: {url: "%s/users/authenticate"}
services:
  - name: orders
    path: /orders
    authenticate: true
    allowed_methods: [GET, POST, PUT, DELETE]
    upstreams: ["%s"]
  - name: items
    path: /items
    authenticate: false
    allowed_methods: [GET]
    upstreams: ["%s"]
`, s.users.URL(), s.orders.URL(), s.items.URL()) + strings.Join(more, "\n") + "\n"
}

// TestRowsHoldAmongTenThousandServices: the number of services changes no behavior.
func TestRowsHoldAmongTenThousandServices(t *testing.T) {
	if testing.Short() {
		t.Skip("the gateway takes some seconds to start: run without -short")
	}
	t.Parallel()
	var services []string
	for i := range 10_000 {
		services = append(services, fmt.Sprintf(`  - {name: crowd-%d, path: /crowd-%d, upstreams: ["http://127.0.0.1:1"]}`, i, i))
	}
	deep, kept, based := envoytest.Upstream(t), envoytest.Upstream(t), envoytest.Upstream(t)
	services = append(services, deepService(deep), keptService(kept), basedService(based), deadService(t))
	shop := startShop(t, setup{}, services...)
	row := func(what string, test func(t *testing.T)) {
		for _, upstream := range []*envoytest.Recorder{shop.users, shop.orders, shop.items} {
			upstream.Reset()
		}
		t.Run(what, test)
	}
	row("the longest prefix", func(t *testing.T) { longestPrefix(t, shop, deep) })
	row("the path of the upstream", func(t *testing.T) { pathsOfUpstreams(t, shop, kept, based) })
	row("unknown paths", func(t *testing.T) { unknownPath(t, shop) })
	row("methods", func(t *testing.T) { methods(t, shop) })
	row("tokens", func(t *testing.T) { tokensOfASecuredService(t, shop) })
	row("answers that a page can read", func(t *testing.T) { readableAnswers(t, shop) })
	row("preflights", func(t *testing.T) { preflights(t, shop) })
	version := shop.Status().GetVersion()
	shop.Define(shop.definitions(append(services, `origins: ["https://good.example", "http://localhost:3000"]`)...))
	shop.AwaitChange(version)
	row("origins", func(t *testing.T) { exactOrigins(t, shop) })
}

// only returns the single request that reached the upstream since the last call.
func only(t *testing.T, upstream *envoytest.Recorder) envoytest.Request {
	t.Helper()
	got := upstream.Requests()
	if len(got) != 1 {
		t.Fatalf("the upstream got %d requests, want 1: %v", len(got), got)
	}
	upstream.Reset()
	return got[0]
}

// none checks that nothing reached the upstream, not even part of a request.
func none(t *testing.T, upstream *envoytest.Recorder) {
	t.Helper()
	if got := upstream.Requests(); len(got) != 0 {
		t.Fatalf("the upstream got %v, want nothing", got)
	}
}

// want checks the status and the body of a response. An empty body is not compared.
func want(t testing.TB, what string, got answer, status int, body string) {
	t.Helper()
	if got.Status != status || body != "" && got.Body != body {
		t.Errorf("%s: got %d %s, want %d %s", what, got.Status, got.Body, status, body)
	}
}

func wantHeader(t *testing.T, what string, got answer, name, value string) {
	t.Helper()
	if have := strings.Join(got.Header.Values(name), ", "); have != value {
		t.Errorf("%s: %s is %q, want %q", what, name, have, value)
	}
}

func TestRow1And2ListensOn5500WhereTheFileNamesNoOtherAddress(t *testing.T) {
	t.Parallel()
	needPorts(t, "5500")
	g := prepare(t, "services: []\n", setup{})
	g.Addr, g.URL = "0.0.0.0:5500", "http://127.0.0.1:5500"
	g.DefineExactly("services: []\n")
	g.Run()
	g.AwaitReady()
	want(t, "the default port", g.Do("GET", "/", ""), http.StatusNotFound, notFound)
}

func TestRow3LongestPrefixWinsAndEndsAtASegment(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, s setup) {
		deep := envoytest.Upstream(t)
		longestPrefix(t, startShop(t, s, deepService(deep)), deep)
	})
}

func deepService(deep *envoytest.Recorder) string {
	return fmt.Sprintf(`  - {name: deep, path: /Items/Special, authenticate: false, upstreams: ["%s"]}`, deep.URL())
}

func longestPrefix(t *testing.T, shop *shop, deep *envoytest.Recorder) {
	t.Helper()
	for path, service := range map[string]*envoytest.Recorder{
		"/items": shop.items, "/items/": shop.items, "/items/5": shop.items, "/items?x": shop.items, "/ITEMS/5": shop.items,
		"/items/specials": shop.items, "/items/special": deep, "/items/SPECIAL/7": deep, "/items/special?x=/items": deep,
	} {
		want(t, path, shop.Do("GET", path, ""), http.StatusOK, "")
		only(t, service)
	}
	for _, path := range []string{"/itemsfoo", "/items.html", "/item", "/", "/specials", "/items-special"} {
		want(t, path, shop.Do("GET", path, ""), http.StatusNotFound, notFound)
	}
	none(t, shop.items)
	none(t, deep)
}

func TestRow4TheUpstreamSeesThePathWithoutItsPrefix(t *testing.T) {
	t.Parallel()
	kept, based := envoytest.Upstream(t), envoytest.Upstream(t)
	pathsOfUpstreams(t, startShop(t, setup{}, keptService(kept), basedService(based)), kept, based)
}

func keptService(kept *envoytest.Recorder) string {
	return fmt.Sprintf(`  - {name: kept, path: /kept, authenticate: false, keep_prefix: true, upstreams: ["%s"]}`, kept.URL())
}

func basedService(based *envoytest.Recorder) string {
	return fmt.Sprintf(`  - {name: based, path: /based, authenticate: false, upstreams: ["%s/base"]}`, based.URL())
}

func pathsOfUpstreams(t *testing.T, shop *shop, kept, based *envoytest.Recorder) {
	t.Helper()
	for _, c := range []struct {
		upstream   *envoytest.Recorder
		path, sees string
	}{
		{shop.items, "/items/5?x=1", "/5?x=1"},
		{shop.items, "/items", "/"},
		{shop.items, "/items/", "/"},
		{shop.items, "/items?x=1", "/?x=1"},
		{shop.items, "/Items/CamelCase/X", "/CamelCase/X"},
		{kept, "/kept/5?x=1", "/kept/5?x=1"},
		{kept, "/kept", "/kept"},
		{based, "/based/5?x=1", "/base/5?x=1"},
		{based, "/based/Up", "/base/Up"},
	} {
		want(t, c.path, shop.Do("GET", c.path, ""), http.StatusOK, "")
		if got := only(t, c.upstream); got.Path != c.sees {
			t.Errorf("%s reached the upstream as %s, want %s", c.path, got.Path, c.sees)
		}
	}
}

func TestRow5AnUnknownPathIs404(t *testing.T) {
	t.Parallel()
	unknownPath(t, startShop(t, setup{}))
}

func unknownPath(t *testing.T, shop *shop) {
	t.Helper()
	got := shop.Do("GET", "/nothing", "")
	want(t, "an unknown path", got, http.StatusNotFound, notFound)
	wantHeader(t, "an unknown path", got, "Content-Type", "application/json")
}

func TestRow6AMethodOffTheListIs405BeforeAnyToken(t *testing.T) {
	t.Parallel()
	methods(t, startShop(t, setup{}))
}

func methods(t *testing.T, shop *shop) {
	t.Helper()
	for _, path := range []string{"/orders", "/orders/5", "/ORDERS/5?x"} {
		got := shop.Do("PATCH", path, "")
		want(t, "PATCH "+path, got, http.StatusMethodNotAllowed, methodNotAllowed)
		wantHeader(t, "PATCH "+path, got, "Allow", "GET, HEAD, POST, PUT, DELETE")
		wantHeader(t, "PATCH "+path, got, "Content-Type", "application/json")
	}
	want(t, "POST /items", shop.Do("POST", "/items", "x"), http.StatusMethodNotAllowed, methodNotAllowed)
	none(t, shop.orders)
	none(t, shop.items)
	want(t, "HEAD goes with GET", shop.Do("HEAD", "/items", ""), http.StatusOK, "")
	if got := only(t, shop.items); got.Method != "HEAD" {
		t.Errorf("the upstream got %s, want HEAD", got.Method)
	}
}

func TestRow7ASecuredServiceWantsALiveToken(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, s setup) { tokensOfASecuredService(t, startShop(t, s)) })
}

func tokensOfASecuredService(t *testing.T, shop *shop) {
	t.Helper()
	token := shop.Login("alice")

	missing := shop.Do("GET", "/orders", "")
	want(t, "no token", missing, http.StatusUnauthorized, notAllowed)
	wantHeader(t, "no token", missing, "WWW-Authenticate", `Bearer realm="gatepost"`)
	wantHeader(t, "no token", missing, "Content-Type", "application/json")
	for _, bad := range []string{"x", "Bearer x", "Bearer " + other(token), other(token), "Basic " + token, "Bearer " + token + "," + token, strings.ToUpper(token)} {
		got := shop.Do("GET", "/orders", "", "Authorization: "+bad)
		want(t, "Authorization: "+bad, got, http.StatusUnauthorized, notAllowed)
		wantHeader(t, "Authorization: "+bad, got, "WWW-Authenticate", `Bearer realm="gatepost", error="invalid_token"`)
	}
	none(t, shop.orders)

	for _, good := range []string{token, "Bearer " + token, "bearer " + token, "BEARER   " + token} {
		want(t, "Authorization: "+good, shop.Do("GET", "/orders", "", "Authorization: "+good), http.StatusOK, "")
		got := only(t, shop.orders)
		if user := got.Header.Values("X-User-Id"); len(user) != 1 || user[0] != "alice" {
			t.Errorf("the upstream learns %q, want alice", user)
		}
		if got.Header.Get("Authorization") != "" {
			t.Error("the upstream sees the token")
		}
	}
	if strings.Contains(shop.Log(), token) {
		t.Error("the token is in the log")
	}
}

// other returns a well-formed token that was never issued.
func other(token string) string {
	last := "0"
	if strings.HasSuffix(token, last) {
		last = "1"
	}
	return token[:len(token)-1] + last
}

func TestRow7AnyOneTokenOpensEverySecuredService(t *testing.T) {
	t.Parallel()
	second := envoytest.Upstream(t)
	shop := startShop(t, setup{}, fmt.Sprintf(`  - {name: second, path: /second, forward_token: true, upstreams: ["%s"]}`, second.URL()))
	token := shop.Login("bob")
	want(t, "the first", shop.Do("GET", "/orders", "", "Authorization: "+token), http.StatusOK, "")
	want(t, "the second", shop.Do("GET", "/second", "", "Authorization: Bearer "+token), http.StatusOK, "")
	if got := only(t, second).Header.Get("Authorization"); got != "Bearer "+token {
		t.Errorf("a service with forward_token sees %q, want the token", got)
	}
	want(t, "secured by default", shop.Do("GET", "/second", ""), http.StatusUnauthorized, notAllowed)
}

func TestRow8Login(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, s setup) {
		shop := startShop(t, s)
		got := shop.Do("POST", "/ToKeN", `{"username":"alice","password":"right"}`, "Content-Type: application/json", "X-Mine: kept")
		want(t, "a login", got, http.StatusOK, "")
		token := got.Header.Get("token")
		wantHeader(t, "a login", got, "expires_in", "3600")
		wantHeader(t, "a login", got, "userid", "alice")
		wantHeader(t, "a login", got, "Access-Control-Expose-Headers", "token,expires_in,userid")
		wantHeader(t, "a login", got, "Cache-Control", "no-store")
		var body struct {
			AccessToken string `json:"access_token"`
			TokenType   string `json:"token_type"`
			ExpiresIn   int    `json:"expires_in"`
		}
		if err := json.Unmarshal([]byte(got.Body), &body); err != nil || body.AccessToken != token || body.TokenType != "Bearer" || body.ExpiresIn != 3600 {
			t.Errorf("the body is %s (%v), want the form of RFC 6749 §5.1", got.Body, err)
		}
		sent := only(t, shop.users)
		if sent.Method != "POST" || sent.Path != "/users/authenticate" || sent.Body != `{"username":"alice","password":"right"}` ||
			sent.Header.Get("X-Mine") != "kept" || sent.Host != shop.users.Addr() {
			t.Errorf("the user service got %+v", sent)
		}
		want(t, "the token", shop.Do("GET", "/orders", "", "Authorization: "+token), http.StatusOK, "")

		refused := shop.Do("POST", "/token", `{"username":"alice","password":"wrong"}`)
		want(t, "a wrong password", refused, http.StatusUnauthorized, `"wrong user name or password"`)
		if refused.Header.Get("token") != "" {
			t.Error("a refused login got a token")
		}
		get := shop.Do("GET", "/token", "")
		want(t, "GET /token", get, http.StatusMethodNotAllowed, methodNotAllowed)
		wantHeader(t, "GET /token", get, "Allow", "POST")
	})
}

func TestRow8AnAnswerWithoutUserOpensNothing(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	for name, userid := range map[string][]string{"missing": nil, "twice": {"alice", "bob"}, "empty": {""}} {
		shop.users.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Userid"] = userid
			fmt.Fprint(w, "welcome")
		})
		got := shop.Do("POST", "/token", "{}")
		want(t, "userid "+name, got, http.StatusUnauthorized, notAllowed)
		if got.Header.Get("token") != "" {
			t.Errorf("userid %s: a token was issued", name)
		}
	}
	shop.users.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://127.0.0.1:1/")
		w.Header().Set("userid", "alice")
		w.WriteHeader(http.StatusFound)
	})
	got := shop.Do("POST", "/token", "{}")
	want(t, "a redirect", got, http.StatusFound, "")
	wantHeader(t, "a redirect", got, "token", "")
	shop.users.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("userid", "alice")
		fmt.Fprint(w, "welcome, alice")
	})
	got = shop.Do("POST", "/token", "{}")
	want(t, "a body of the user service's", got, http.StatusOK, "welcome, alice")
}

func TestRow9OriginsAreExactWhateverThePath(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, s setup) {
		exactOrigins(t, startShop(t, s, `origins: ["https://good.example", "http://localhost:3000"]`))
	})
}

func exactOrigins(t *testing.T, shop *shop) {
	t.Helper()
	for _, origin := range []string{"", "https://evil.example", "null", "https://good.example.evil.example", "HTTPS://GOOD.EXAMPLE", "https://good.example/", "https://good.example:443", "https://good.example,https://good.example"} {
		for _, call := range []string{"GET /items", "GET /orders", "POST /token", "GET /nothing", "PATCH /items"} {
			method, path, _ := strings.Cut(call, " ")
			var headers []string
			if origin != "" {
				headers = []string{"Origin: " + origin}
			}
			got := shop.Do(method, path, "", headers...)
			want(t, call+" from "+origin, got, http.StatusUnauthorized, notAllowed)
			wantHeader(t, call+" from "+origin, got, "WWW-Authenticate", "")
			wantHeader(t, call+" from "+origin, got, "Access-Control-Allow-Origin", "")
		}
	}
	none(t, shop.items)
	none(t, shop.orders)
	none(t, shop.users)
	for _, origin := range []string{"https://good.example", "http://localhost:3000"} {
		from := "Origin: " + origin
		want(t, "items", shop.Do("GET", "/items", "", from), http.StatusOK, "")
		want(t, "orders without a token", shop.Do("GET", "/orders", "", from), http.StatusUnauthorized, notAllowed)
		want(t, "nothing", shop.Do("GET", "/nothing", "", from), http.StatusNotFound, notFound)
		want(t, "a method", shop.Do("PATCH", "/items", "", from), http.StatusMethodNotAllowed, methodNotAllowed)
		want(t, "a login", shop.Do("POST", "/token", `{"username":"a","password":"right"}`, from), http.StatusOK, "")
	}
}

func TestRow10EveryAnswerCanBeReadByThePageThatAsked(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]string{"any origin": "", "a listed one": `origins: ["https://app.example"]`} {
		t.Run(name, func(t *testing.T) { readableAnswers(t, startShop(t, setup{}, deadService(t), more)) })
	}
}

// deadService has an upstream that refuses connections.
func deadService(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf(`  - {name: dead, path: /dead, authenticate: false, upstreams: ["http://%s"]}`, envoytest.Addr(t))
}

func readableAnswers(t *testing.T, shop *shop) {
	t.Helper()
	for call, status := range map[string]int{
		"GET /orders": 401, "GET /nothing": 404, "PATCH /orders": 405, "GET /dead": 503, "GET /items": 200, "GET /token": 405, "GET /token/nothing": 404,
	} {
		method, path, _ := strings.Cut(call, " ")
		got := shop.Do(method, path, "", "Origin: https://app.example")
		want(t, call, got, status, "")
		wantHeader(t, call, got, "Access-Control-Allow-Origin", "https://app.example")
		if !strings.Contains(strings.ToLower(strings.Join(got.Header.Values("Vary"), ",")), "origin") {
			t.Errorf("%s: Vary is %q, want origin in it", call, got.Header.Values("Vary"))
		}
		if !json.Valid([]byte(got.Body)) {
			t.Errorf("%s: the body %q is no JSON", call, got.Body)
		}
	}
}

func TestRow10PreflightsAreAnsweredBeforeAnyToken(t *testing.T) {
	t.Parallel()
	preflights(t, startShop(t, setup{}))
}

func preflights(t *testing.T, shop *shop) {
	t.Helper()
	for path, methods := range map[string]string{"/orders": "GET,HEAD,POST,PUT,DELETE", "/orders/5": "GET,HEAD,POST,PUT,DELETE", "/items/x?y": "GET,HEAD", "/token": "POST"} {
		got := shop.Do("OPTIONS", path, "", "Origin: https://app.example", "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: authorization")
		want(t, "a preflight of "+path, got, http.StatusOK, "")
		wantHeader(t, path, got, "Access-Control-Allow-Origin", "https://app.example")
		wantHeader(t, path, got, "Access-Control-Allow-Methods", methods)
		wantHeader(t, path, got, "Access-Control-Allow-Headers", "Authorization,Content-Type,Accept")
		wantHeader(t, path, got, "Access-Control-Max-Age", "600")
	}
	// An OPTIONS request without an origin or a method is not a preflight. It reaches no upstream
	// either.
	for _, headers := range [][]string{nil, {"Origin: https://app.example"}, {"Origin: https://app.example", "Access-Control-Request-Method: "}, {"Access-Control-Request-Method: GET"}} {
		if got := shop.Do("OPTIONS", "/orders", "", headers...); got.Status != http.StatusMethodNotAllowed {
			t.Errorf("OPTIONS with %q: %d, want 405", headers, got.Status)
		}
	}
	none(t, shop.orders)
	none(t, shop.items)
	none(t, shop.users)
}
