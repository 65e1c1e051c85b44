package xds

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatepost/envoy/envoytest"
)

// methodOverridesAndNamedUsersReachNoUpstream: nor does any other header of the list, on no kind of route.
func methodOverridesAndNamedUsersReachNoUpstream(t *testing.T, g *gateway) {
	var sent []string
	for _, name := range []string{
		"X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method", "X-Forwarded-Method", "X-Original-Method",
		"X-Forwarded-User", "X-Forwarded-Groups", "X-Forwarded-Email", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
		"X-Auth-Request-User", "X-Auth-Request-Email", "X-Auth-Request-Anything", "Remote-User", "X-Remote-User",
		"X-Original-URI", "X-Original-Host", "True-Client-IP", "Proxy",
		"X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-URI", "X-Forwarded-Ssl", "X-Forwarded-Scheme",
		"X-Forwarded-Protocol", "X-Forwarded-Pro-To", "X-Forwarded-Prot0", "X-Forwarded-Fort", "X-Forwarded-Fo1", "X-Forwarded-By", "X-Forwarded-4",
		"X-Forwarded-", "X-Forwarded-F", "X-Forwarded-Fo", "X-Forwarded-P", "X-Forwarded-Pr", "X-Forwarded-Pro", "X-Forwarded-Prot",
	} {
		sent = append(sent, name+": mallory")
	}
	for _, c := range []struct {
		method, path string
		upstream     *envoytest.Recorder
	}{{"GET", "/items", g.public}, {"GET", "/ITEMS/x", g.public}, {"GET", "/orders", g.secured}, {"POST", "/token", g.tokens}} {
		g.do(c.method, c.path, append(slices.Clone(sent), "x-kept: yes")...)
		got := c.upstream.Requests()
		if len(got) != 1 || got[0].Header.Get("x-kept") != "yes" {
			t.Fatalf("%s: the upstream got %v", c.path, got)
		}
		c.upstream.Reset()
		for name, values := range got[0].Header {
			if slices.Contains(values, "mallory") {
				t.Errorf("%s: %s reached the upstream", c.path, name)
			}
		}
	}
}

// TestTheRemovedHeadersAreDocumented: in the page's table a name may begin with "-", after one with the same prefix.
func TestTheRemovedHeadersAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/reference/http.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Headers that the gateway removes\n")
	section, _, _ = strings.Cut(section, "\n## ")
	listed, previous := map[string]bool{}, ""
	for _, found := range regexp.MustCompile("`(-?[a-z][a-z*-]*)`").FindAllStringSubmatch(section, -1) {
		name := found[1]
		if strings.HasPrefix(name, "-") {
			name = previous + name
		} else if at := strings.LastIndex(name, "-"); at > 0 {
			previous = name[:at]
		}
		listed[name] = true
	}
	for _, name := range strippedHeaders {
		if !listed[name] {
			t.Errorf("the page does not list %s", name)
		}
	}
	for _, prefix := range append(strippedPrefixes, "x-forwarded-") {
		if !listed[prefix+"*"] {
			t.Errorf("the page does not list %s*", prefix)
		}
	}
}

// TestHeadersBesideTheRemovedOnesPass: Envoy appends to X-Forwarded-For and sets X-Forwarded-Proto itself.
func TestHeadersBesideTheRemovedOnesPass(t *testing.T) {
	t.Parallel()
	eachWay(t, headersBesideTheRemovedOnesPass)
}

func headersBesideTheRemovedOnesPass(t *testing.T, options Options) {
	g := startGatewayWith(t, shop, options)
	names := []string{"x-auth", "x-auth-request", "x-original", "x-method", "x-forwarded", "forwarded-user", "x-http", "ax-envoy-a", "authentication", "proxys"}
	lines := []string{"x-forwarded-for: 192.0.2.7", "x-forwarded-proto: https"}
	for _, name := range names {
		lines = append(lines, name+": kept")
	}
	g.do("GET", "/items", lines...)
	got := g.public.Requests()
	if len(got) != 1 {
		t.Fatalf("%d requests came through", len(got))
	}
	for _, name := range names {
		if got[0].Header.Get(name) != "kept" {
			t.Errorf("%s did not reach the upstream", name)
		}
	}
	if from, proto := got[0].Header.Get("x-forwarded-for"), got[0].Header.Get("x-forwarded-proto"); !strings.HasPrefix(from, "192.0.2.7,") || proto != "http" {
		t.Errorf("the upstream received x-forwarded-for %q and x-forwarded-proto %q", from, proto)
	}
}

// TestAnUpstreamsAnswerNamesNoUserTwice: not by the identity header that has a place of its own in Envoy's responses
// (package envoy), which joins its values to one.
func TestAnUpstreamsAnswerNamesNoUserTwice(t *testing.T) {
	t.Parallel()
	g := startGateway(t, shop)
	for path, upstream := range map[string]*envoytest.Recorder{"/items": g.public, "/orders": g.secured} {
		upstream.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["X-User-Id"] = []string{"ada", "bob"}
			w.Header().Set("x-kept", "yes")
		})
		got := g.do("GET", path, "authorization: Bearer x")
		if users := got.Header.Values("x-user-id"); len(users) > 0 || got.Header.Get("x-kept") != "yes" {
			t.Errorf("%s: %d names the users %q", path, got.Status, users)
		}
	}
}

// TestAnUpstreamsAnswerNamesNoUser: an answer header with the name of the identity header is removed, on public and
// secured services. The login's own header of that name is not.
func TestAnUpstreamsAnswerNamesNoUser(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "identity: {user_header: userid}\n"+shop)
	names := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("userid", "ada")
		w.Header().Set("x-kept", "yes")
	}
	for path, upstream := range map[string]*envoytest.Recorder{"/orders": g.secured, "/ORDERS": g.secured, "/items": g.public} {
		upstream.SetHandler(names)
		got := g.do("GET", path)
		if v := got.Header.Values("userid"); len(v) > 0 || got.Header.Get("x-kept") != "yes" {
			t.Errorf("%s: the client got %v", path, got.Header)
		}
	}
	g.tokens.SetHandler(names)
	if got := g.do("POST", "/token"); got.Header.Get("userid") != "ada" {
		t.Errorf("the login: the client got %v", got.Header)
	}
}

// nearTheLimitsARequestIsTooLarge: ext_authz counts again with the headers that Envoy and Gatepost have added. The
// status is 431 there too.
func nearTheLimitsARequestIsTooLarge(t *testing.T, g *gateway) {
	many := func(n int) (lines []string) {
		for i := range n {
			lines = append(lines, fmt.Sprintf("x-%d: y", i))
		}
		return lines
	}
	refused := 0
	check := func(what, path string, lines ...string) {
		t.Helper()
		got := g.do("GET", path, lines...)
		switch {
		case got.Status == 200:
		case got.Status == 431 && got.Body == `"The headers of the request are too large."` && got.Header.Get("content-type") == "application/json":
			refused++
		default:
			t.Errorf("%s: answered %d %s", what, got.Status, got.Body)
		}
		if reached(g.secured) != "" && got.Status != 200 {
			t.Errorf("%s: it reached the upstream", what)
		}
	}
	for n := 50; n <= maxHeaders; n++ {
		check(fmt.Sprintf("%d more headers", n), "/orders", many(n)...)
	}
	for size := 15_800; size <= maxHeadersKiB<<10; size += 50 {
		check(fmt.Sprintf("a header of %d bytes", size), "/orders", "x-large: "+strings.Repeat("x", size))
		check(fmt.Sprintf("a path of %d bytes", size), "/orders/"+strings.Repeat("x", size))
		check(fmt.Sprintf("a query of %d bytes", size), "/orders?"+strings.Repeat("x", size))
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

// envoysOwn403sAreJSON, and those of the sidecar stay its own.
func envoysOwn403sAreJSON(t *testing.T, g *gateway) {
	upgrade := []string{"connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="}
	for _, c := range []struct {
		name, path, body string
		headers          []string
	}{
		{"an upgrade", "/items", `"The connection cannot be upgraded here."`, upgrade},
		{"an upgrade on a path in other letters", "/ITEMS", `"The connection cannot be upgraded here."`, upgrade},
		{"a whole https URL", "https://gate.example/items", `"A URL with https needs a connection with TLS."`, nil},
	} {
		for _, origin := range []string{"", "https://shop.example"} {
			headers := c.headers
			if origin != "" {
				headers = append(slices.Clone(headers), "origin: "+origin)
			}
			if c.headers == nil { // refused while the request line is read: Envoy does not know the origin yet
				origin = ""
			}
			got := g.raw("GET", c.path, headers...)
			if got.Status != 403 || got.Body != c.body || got.Header.Get("content-type") != "application/json" ||
				got.Header.Get("access-control-allow-origin") != origin {
				t.Errorf("%s: answered %d %s %v", c.name, got.Status, got.Body, got.Header)
			}
		}
	}
	g.answers(deny(403, `"its own"`, setHeader("content-type", "application/json"), setHeader("www-authenticate", "Bearer")))
	if got := g.do("GET", "/orders"); got.Status != 403 || got.Body != `"its own"` || got.Header.Get("www-authenticate") != "Bearer" {
		t.Errorf("the sidecar's own: %d %s %v", got.Status, got.Body, got.Header)
	}
}

// TestTheIdentityHeaderMayHaveAStrippedName: the client's copy is removed before Gatepost sets the header.
func TestTheIdentityHeaderMayHaveAStrippedName(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "identity: {user_header: x-auth-request-user}\n"+shop)
	g.answers(func(*authv3.AttributeContext) *authv3.CheckResponse {
		r := allow(nil)
		r.GetOkResponse().Headers[0].Header.Key = "x-auth-request-user"
		return r
	})
	for path, want := range map[string][]string{"/orders": {"ada"}, "/items": nil} {
		upstream := map[string]*envoytest.Recorder{"/orders": g.secured, "/items": g.public}[path]
		g.do("GET", path, "x-auth-request-user: mallory")
		if got := upstream.Requests(); len(got) != 1 || !slices.Equal(got[0].Header.Values("x-auth-request-user"), want) {
			t.Errorf("%s: the upstream got %v, want the user %q", path, got, want)
		}
	}
}
