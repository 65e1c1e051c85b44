package explain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"

	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/tokens"
	"gatepost/tracing"
	"gatepost/xds"
)

const shop = `tokens: {authenticator: {url: "http://users/users/authenticate"}}
services:
  - {name: orders, path: /orders, allowed_methods: [GET, POST], upstreams: ["http://orders:8080/base"]}
  - {name: prices, path: /orders/prices, scopes: [read], upstreams: ["http://prices:8080"], forward_token: true}
  - {name: items, path: /items, authenticate: false, allowed_methods: [GET], upstreams: ["http://items:8080"], keep_prefix: true}
  - {name: live, path: /live, authenticate: false, allowed_methods: [GET], upstreams: ["http://live:8080"], websocket: true}
  - {name: calls, path: /shop.Calls, authenticate: false, upstreams: ["h2c://calls:9090"], grpc: true}
`

const origins = `origins: ["https://shop.example"]
`

func explainerOf(t *testing.T, text string, sessions authz.Sessions) *Explainer {
	t.Helper()
	d, err := definitions.Parse("gateway.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return explainer(t, d, sessions)
}

// requestOf parses a line "METHOD TARGET [Name: value]...", with each header in brackets.
func requestOf(line string) Request {
	first, rest, _ := strings.Cut(line, " [")
	method, target, _ := strings.Cut(first, " ")
	r := Request{Method: method, Target: target, Header: []Field{{"Host", "gate.example"}}}
	for h := range strings.SplitSeq(rest, "] [") {
		if name, value, ok := strings.Cut(strings.TrimSuffix(h, "]"), ": "); ok {
			r.Header = append(r.Header, Field{name, value})
		}
	}
	return r
}

// outcome formats an outcome as one line.
func outcome(o Outcome) string {
	switch {
	case o.Forward != nil && o.Forward.TokenHandler:
		return fmt.Sprintf("%s: token handler %s %s", o.Reason, o.Forward.Method, o.Forward.Path)
	case o.Forward != nil:
		return fmt.Sprintf("%s: %s %s %s", o.Reason, strings.Join(o.Forward.To, ","), o.Forward.Method, o.Forward.Path)
	}
	return fmt.Sprintf("%s: %d", o.Reason, o.Status)
}

func TestExplainedOutcomes(t *testing.T) {
	sessions := sessions{}
	alice := sessions.open(t, tokens.FormatUUID, "alice", time.Hour)
	reader := sessions.open(t, tokens.FormatUUID, "reader", time.Hour, "read")
	late := sessions.open(t, tokens.FormatUUID, "late", -time.Hour)
	for _, c := range []struct{ given, asked, want, change string }{
		{"", "GET /orders/5?x=1 [Authorization: " + alice + "]", "forwarded: http://orders:8080 GET /base/5?x=1", ""},
		{"", "GET /ORDERS [Authorization: Bearer " + alice + "]", "forwarded: http://orders:8080 GET /base", ""},
		{"", "GET /orders", "token_missing: 401", "send Authorization: Bearer TOKEN with a token of POST /token, or set authenticate: false at gateway.yaml:3"},
		{"", "GET /orders [Authorization: Basic eA==]", "token_malformed: 401", "send the token by itself or after Bearer, exactly as POST /token returned it"},
		{"", "GET /orders [Authorization: " + late + "]", "token_unknown: 401", "log in again: POST /token"},
		{"", "GET /orders/prices [Authorization: " + alice + "]", "scope_missing: 403", "have the user service grant them at login, or change scopes at gateway.yaml:4"},
		{"", "GET /orders/prices [Authorization: " + reader + "]", "forwarded: http://prices:8080 GET /", ""},
		{"", "DELETE /orders/5 [Authorization: " + alice + "]", "method_not_allowed: 405", `add DELETE to allowed_methods of "orders" at gateway.yaml:3, or send GET or HEAD or POST`},
		{"", "GET /items/a//b/../c", "forwarded: http://items:8080 GET /items/a/c", ""},
		{"", "GET /itemsfoo", "not_found: 404", "define a service with this path in gateway.yaml"},
		{"", "GET /item/5", "not_found: 404", `did you mean /items, the path of "items" at gateway.yaml:5?`},
		{"", "GET /items/%2e%2e/orders", "token_missing: 401", "send Authorization: Bearer TOKEN with a token of POST /token, or set authenticate: false at gateway.yaml:3"},
		{"", "GET /items/..%2forders", "malformed: 400", "send it in the plain form"},
		{"", "GET /items/%2e%2e;/orders", "malformed: 400", "send the path without it"},
		{"", "BREW /items", "malformed: 400", "send it in the plain form"},
		{"", "GET /items [X_Under: 1]", "malformed: 400", "send it in the plain form"},
		{"", "GET /live [Connection: Upgrade] [Upgrade: websocket]", "forwarded: http://live:8080 GET /", ""},
		{"", "GET /items [Connection: Upgrade] [Upgrade: websocket]", "upgrade_refused: 403", "set websocket: true at gateway.yaml:5"},
		{"", "GET /nothing [Connection: Upgrade] [Upgrade: websocket]", "upgrade_refused: 403", "use the path of a service that does"},
		{"", "POST /shop.Calls/List", "forwarded: h2c://calls:9090 POST /shop.Calls/List", ""},
		{"", "POST /token", "forwarded: token handler POST /token", ""},
		{"", "GET /token", "method_not_allowed: 405", "send POST"},
		{"", "GET /.gatepost/version", "version: 200", ""},
		{"", "OPTIONS /orders [Origin: https://a.example] [Access-Control-Request-Method: GET]", "preflight: 200", ""},
		{"", "OPTIONS /orders [Origin: https://a.example]", "method_not_allowed: 405", "a preflight has Origin and Access-Control-Request-Method; any other OPTIONS must be in allowed_methods"},
		{origins, "GET /items [Origin: https://shop.example]", "forwarded: http://items:8080 GET /items", ""},
		{origins, "GET /items [Origin: https://evil.example]", "origin_refused: 401", "add https://evil.example to origins in gateway.yaml, if its pages may call"},
		{origins, "GET /items [Origin: null]", "origin_refused: 401", "send the Origin of a listed page, or remove origins from gateway.yaml to let everyone call"},
		{origins, "GET /nothing", "origin_refused: 401", "send the Origin of a listed page, or remove origins from gateway.yaml to let everyone call"},
		{origins, "OPTIONS /orders [Origin: https://evil.example] [Access-Control-Request-Method: GET]", "preflight: 200", "add https://evil.example to origins in gateway.yaml, if its pages may call"},
	} {
		// The expected line numbers are those of shop, so c.given is appended to it.
		a, err := explainerOf(t, shop+c.given, sessions).Explain(t.Context(), requestOf(c.asked))
		if err != nil {
			t.Fatalf("%s: %v", c.asked, err)
		}
		if len(a.Outcomes) != 1 || outcome(a.Outcomes[0]) != c.want || a.Outcomes[0].Change != c.change || a.Outcomes[0].Why == "" || len(a.Unsure) > 0 {
			t.Errorf("%s: got %s (%s), unsure of %v; want %s (%s)", c.asked, outcome(a.Outcomes[0]), a.Outcomes[0].Change, a.Unsure, c.want, c.change)
		}
	}
}

func TestTheCanaryOfAServiceIsExplained(t *testing.T) {
	e := explainerOf(t, `services:
  - {name: a, path: /a, authenticate: false, upstreams: ["http://a"], canary: {upstreams: ["http://b", "http://c"], percent: 10}}
`, nil)
	found, err := e.Explain(t.Context(), requestOf("GET /a"))
	var text bytes.Buffer
	if err == nil {
		err = found.Print(&text)
	}
	if err != nil || !strings.Contains(text.String(), "or, for 10 % by address, to the canary http://b or http://c\n") {
		t.Errorf("%v\n%s", err, &text)
	}
}

func TestWithoutAStoreEveryOutcomeIsListed(t *testing.T) {
	const token = "7a6b3c50-1c2d-4e5f-8a9b-0c1d2e3f4a5b"
	e := explainerOf(t, shop, nil)
	for line, want := range map[string][]string{
		"GET /orders [Authorization: " + token + "]":        {"forwarded: http://orders:8080 GET /base", "token_unknown: 401"},
		"GET /orders/prices [Authorization: " + token + "]": {"forwarded: http://prices:8080 GET /", "token_unknown: 401", "scope_missing: 403"},
		"GET /items [Authorization: " + token + "]":         {"forwarded: http://items:8080 GET /items"},
		"GET /orders": {"token_missing: 401"},
	} {
		a, err := e.Explain(t.Context(), requestOf(line))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range a.Outcomes {
			if got = append(got, outcome(o)); (o.When == "") != (len(want) == 1) {
				t.Errorf("%s: the outcome %q has the condition %q", line, outcome(o), o.When)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

type downSessions struct{}

func (downSessions) Principal(context.Context, tokens.Hash) (tokens.Principal, error) {
	return tokens.Principal{}, tokens.ErrUnavailable
}

func TestUnavailableStoreIsReported(t *testing.T) {
	a, err := explainerOf(t, shop, downSessions{}).Explain(t.Context(), requestOf("GET /orders [Authorization: 7a6b3c50-1c2d-4e5f-8a9b-0c1d2e3f4a5b]"))
	if err != nil {
		t.Fatal(err)
	}
	if got := a.Outcomes[0]; got.Reason != "store_unavailable" || got.Status != 503 || !fields(got.Headers).has("retry-after") {
		t.Errorf("got %+v, want 503 with retry-after", got)
	}
}

func TestTokenIsNeverPrinted(t *testing.T) {
	sessions := sessions{}
	token := sessions.open(t, tokens.FormatSecret, "alice", time.Hour, "read")
	for _, store := range []authz.Sessions{nil, sessions, downSessions{}} {
		for _, path := range []string{"/orders", "/orders/prices", "/items", "/token", "/%2f"} {
			a, err := explainerOf(t, shop, store).Explain(t.Context(), requestOf("GET "+path+" [Authorization: Bearer "+token+"]"))
			if err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			if err := a.Print(&text); err != nil {
				t.Fatal(err)
			}
			whole, err := json.Marshal(a)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(text.String()+string(whole), token) {
				t.Errorf("%s: the token is in\n%s\n%s", path, &text, whole)
			}
		}
	}
}

func TestUnmodelledRequestsAreRejected(t *testing.T) {
	e := explainerOf(t, shop, nil)
	for _, line := range []string{
		"CONNECT /items", "POST /items [Transfer-Encoding: chunked]", "GET /items [Connection: x-user-id]", "GET /items [Upgrade: h2c]",
		"POST /items [Content-Type: application/grpc+proto]", "GET /items [Expect: 100-continue]",
	} {
		if _, err := e.Explain(t.Context(), requestOf(line)); !errors.Is(err, ErrNotModelled) {
			t.Errorf("%s: got %v, want ErrNotModelled", line, err)
		}
	}
	for _, r := range []Request{{}, {Target: "/a b"}, {Target: "/a", Header: []Field{{"A", "b\r\nc: d"}}}} {
		if _, err := e.Explain(t.Context(), r); err == nil || errors.Is(err, ErrNotModelled) {
			t.Errorf("%+v: got %v, want that it cannot be sent", r, err)
		}
	}
}

// TestPathsAreNormalisedAsEnvoyDoes pins cases that the differential test found.
func TestPathsAreNormalisedAsEnvoyDoes(t *testing.T) {
	for path, want := range map[string]string{
		"/a/b": "/a/b", "/a/": "/a/", "/a//b": "/a/b", "//": "//", "/a/..//": "//", "/a/./b": "/a/b", "/a/../b": "/b", "/../../a": "/a",
		"/a/..": "/", "/a/b/.": "/a/b/", "/a/...": "/a/...", "/a/%2e%2E/b": "/b", "/a/.%2e": "/", "\\a\\..\\b": "/b", "/a\\b": "/a/b",
		"/%41%7e%2d": "/A~-", "/%21%3b%3B": "/%21%3b%3B", "/%zz%4": "/%zz%4", "/%%300": "/%2500", "/%%30%30": "/%2500", "/%0%30": "/%2500",
		"/^`{|}<>\"": "/%5E%60%7B%7C%7D%3C%3E%22", "/[]'(),": "/[]'(),", "/a/..;x=1/b": "/b", "/a/.;/b": "/a/b", "/a/%2e%2e;/b": "/a/..;/b",
		"/a;x/b": "/a;x/b", "/%c3%a4": "/%c3%a4",
	} {
		got, ok := canonicalPath(withoutDotParameters(path))
		if got = mergeSlashes(got); got != want || !ok {
			t.Errorf("%s: got %s, %t; want %s", path, got, ok, want)
		}
	}
	if _, ok := canonicalPath("/a%00"); ok {
		t.Error("a zero byte is taken")
	}
}

// TestEveryServiceIsReached checks that each service gets the requests for its path and methods,
// for random definitions.
func TestEveryServiceIsReached(t *testing.T) {
	d := dice{rand.New(rand.NewPCG(2, 2))}
	for range 30 {
		text := d.definitions("127.0.0.1:5500", []string{"http://a:1", "http://b:2"})
		e := explainerOf(t, text, liveSession{someScopes})
		for _, s := range e.served.Services {
			for _, method := range s.Methods {
				r := requestOf(method + " " + s.Path + " [Authorization: 7a6b3c50-1c2d-4e5f-8a9b-0c1d2e3f4a5b]")
				r.Header[0].Value = strings.Replace(s.Patterns()[0], "*", "none", 1)
				if len(s.Hosts) == 0 {
					r.Header[0].Value = "none.test"
				}
				if listed := e.served.Origins; len(listed) > 0 {
					r.Header = append(r.Header, Field{"Origin", listed[0]})
				}
				a, err := e.Explain(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				answered := slices.Contains([]string{"redirected", "maintenance"}, a.Outcomes[0].Reason)
				reached := (answered || a.Outcomes[0].Forward != nil) && a.Service.Name == s.Name
				if reached != definitions.TakenOverHTTP1(method) {
					t.Errorf("%s %s reaches %q: %t (%s)\n%s", method, s.Path, s.Name, reached, outcome(a.Outcomes[0]), text)
				}
			}
		}
	}
}

// TestPublicListMatchesRoutes compares the list of `validate --public` with the routes that Envoy
// is served. A service stays listed while it is in maintenance, so the definitions here have none.
func TestPublicListMatchesRoutes(t *testing.T) {
	d := dice{rand.New(rand.NewPCG(3, 3))}
	maintenance := regexp.MustCompile(`(?m)^    maintenance: .*\n`)
	for range 30 {
		text := maintenance.ReplaceAllString(d.definitions("127.0.0.1:5500", []string{"http://a:1", "http://b:2"}), "")
		e := explainerOf(t, text, nil)
		open := map[string]bool{} // :: path in lower case → a route lets requests pass without a token
		for _, scope := range e.scopes {
			for _, vhost := range scope.all {
				for _, route := range vhost.GetRoutes() {
					leads := route.GetRedirect() != nil || route.GetRoute() != nil && !strings.HasSuffix(route.GetName(), " preflight") || isVersion(route)
					if leads && !needsToken(t, vhost, route) {
						path := route.GetMatch().GetPath() + route.GetMatch().GetPrefix() + route.GetMatch().GetPathSeparatedPrefix()
						open[strings.ToLower(path[:max(1, len(strings.TrimSuffix(path, "/")))])] = true
					}
				}
			}
		}
		listed := map[string]bool{}
		for _, p := range e.definitions.Public() {
			if listed[strings.ToLower(p.Path)] = true; !open[strings.ToLower(p.Path)] {
				t.Errorf("%s is listed, and no route lets it through\n%s", p, text)
			}
		}
		maps.DeleteFunc(open, func(path string, _ bool) bool { return listed[path] })
		if len(open) > 0 {
			t.Errorf("let through and not listed: %v\n%s", open, text)
		}
	}
}

func needsToken(t *testing.T, scope *routev3.VirtualHost, route *routev3.Route) bool {
	t.Helper()
	if disables(scope, "authz") || disables(route, "authz") {
		return false
	}
	rule := new(extauthzv3.ExtAuthzPerRoute)
	there, err := settings(route, "authz", rule)
	if err == nil && !there {
		there, err = settings(scope, "authz", rule)
	}
	if err != nil || !there {
		t.Fatalf("the route %q has no rule: %v", route.GetName(), err)
	}
	return rule.GetCheckSettings().GetContextExtensions()["authenticate"] == "true"
}

func TestDefinitionsWithAnAccessLogAndProxiesAreExplained(t *testing.T) {
	testWatchedIsExplained(t, nil, `access_log: {format: ecs}
client_addresses: {trusted_proxies: [10.0.0.0/8], proxy_protocol: true}
`)
}

func TestAGatewayWithTracesIsExplained(t *testing.T) {
	testWatchedIsExplained(t, &tracing.Settings{Host: "127.0.0.1", Port: 4317, Sample: 1}, "")
}

func testWatchedIsExplained(t *testing.T, traces *tracing.Settings, text string) {
	t.Helper()
	d, err := definitions.Parse("gateway.yaml", []byte(text+`services: [{name: items, path: /items, authenticate: false, upstreams: ["http://items:8080"]}]`))
	if err != nil {
		t.Fatal(err)
	}
	options := xds.Options{GRPCCluster: "gatepost-grpc", HTTPCluster: "gatepost-http", CAFile: "/roots.pem", Tracing: traces}
	e, err := New(Config{Definitions: d, Options: options})
	if err != nil {
		t.Fatal(err)
	}
	served, err := xds.Build(d.Gateway, options)
	if err != nil {
		t.Fatal(err)
	}
	if e.version != served.Version {
		t.Errorf("version %s, want the served %s", e.version, served.Version)
	}
	if x, err := e.Explain(t.Context(), Request{Target: "/items/5", Header: []Field{{"Host", "h"}}}); err != nil || x.Service.Name != "items" || len(x.Unsure) > 0 {
		t.Errorf("%+v, %v", x, err)
	}
}
