package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"gatepost/envoy/envoytest"
)

// spoofed is the identity that a client claims. No upstream may receive it under any name.
const spoofed = "spoofed-by-the-client"

// identityClaims are headers with which a client claims an identity: the gateway's identity header
// in all spellings that some server treats as equal.
var identityClaims = []struct {
	name string
	// status is the expected status, if it is not 200.
	status int
	lines  []string
}{
	{"CVE-2026-30851 as it is", 200, []string{"x-user-id: " + spoofed}},
	{"CVE-2026-33433 in other letters", 200, []string{"X-USER-ID: " + spoofed, "X-User-ID: " + spoofed, "x-uSER-iD: " + spoofed}},
	{"more than once", 200, []string{"x-user-id: " + spoofed, "x-user-id: root", "x-user-id:"}},
	{"with commas", 200, []string{"x-user-id: alice," + spoofed}},
	{"empty, then not", 200, []string{"x-user-id:", "x-user-id: " + spoofed}},
	{"GHSA-w9mr-28mw-j8hg hop by hop", 200, []string{"x-user-id: " + spoofed, "connection: x-user-id"}},
	{"GHSA-92mv hop by hop in other letters", 200, []string{"connection: keep-alive, X-User-Id", "x-user-id: " + spoofed}},
	{"folded", 200, []string{"x-user-id:", " " + spoofed}},
	{"folded into another header", 200, []string{"x-user-id: a", "\tx-user-id: " + spoofed}},
	{"not UTF-8", 200, []string{"x-user-id: " + spoofed + "\xff"}},
	{"CVE-2025-64484 with underscores", 400, []string{"x_user_id: " + spoofed}},
	{"GHSA-x677-9fxg-v5c5 with one underscore", 400, []string{"x-user_id: " + spoofed}},
	{"with underscores in addition to the exact name", 400, []string{"x-user-id: a", "X_User-Id: " + spoofed}},
	{"with a blank after the name", 400, []string{"x-user-id : " + spoofed}},
	{"with a NUL", 400, []string{"x-user-id: " + spoofed + "\x00"}},
	{"with a lone CR", 400, []string{"x-user\r-id: " + spoofed}},
}

// sees checks that the upstream received exactly one request, with this user and no claim of the
// client. The user can be empty.
func sees(t *testing.T, what string, upstream *envoytest.Recorder, user string) {
	t.Helper()
	raw := upstream.Raw()
	got := only(t, upstream)
	users := got.Header.Values("X-User-Id")
	if user == "" && len(users) != 0 || user != "" && !slices.Equal(users, []string{user}) {
		t.Errorf("%.200q: the upstream received the user %q, want %q", what, users, user)
	}
	if strings.Contains(raw, spoofed) {
		t.Errorf("%.200q: the client's claim reached the upstream: %q", what, raw)
	}
}

// identitySecured: a secured service receives the id of the token's user only.
func (f *fortress) identitySecured(t *testing.T) {
	good := "authorization: " + f.token
	for _, c := range identityClaims {
		t.Run(c.name, func(t *testing.T) {
			f.forget()
			got := f.Raw(t, rawGet("/orders/1", append([]string{good}, c.lines...)...))
			f.claimed(t, c.name, got, c.status, f.secured, "alice")
			for _, line := range c.lines {
				f.refused(t, "without a token "+line, f.Raw(t, rawGet("/orders/1", line)), http.StatusUnauthorized, http.StatusBadRequest)
			}
		})
	}
	t.Run("in trailers", func(t *testing.T) { f.claimInTrailers(t, "/orders/1", f.secured, "alice") })
	t.Run("on HTTP/2", func(t *testing.T) {
		token := [2]string{"authorization", f.token}
		got := f.H2(t, "GET", "/orders/1", "", token, [2]string{"x-user-id", spoofed}, [2]string{"x-user-id", spoofed})
		f.claimed(t, "twice", got, http.StatusOK, f.secured, "alice")
		f.refuses(t, f.claimsH2("/orders/1", token)...)
	})
	f.trusted(t, "/orders/1", f.secured, "alice", good)
}

// identityPublic: a public service receives no user.
func (f *fortress) identityPublic(t *testing.T) {
	for _, c := range identityClaims {
		t.Run(c.name, func(t *testing.T) {
			f.forget()
			for _, path := range []string{"/items/5", "/items", "/orders/status/5"} {
				f.claimed(t, c.name, f.Raw(t, rawGet(path, c.lines...)), c.status, f.public, "")
			}
		})
	}
	t.Run("in trailers", func(t *testing.T) { f.claimInTrailers(t, "/items/5", f.public, "") })
	t.Run("on HTTP/2", func(t *testing.T) {
		got := f.H2(t, "GET", "/items/5", "", [2]string{"x-user-id", spoofed}, [2]string{"x-user-id", spoofed})
		f.claimed(t, "twice", got, http.StatusOK, f.public, "")
		f.refuses(t, f.claimsH2("/items/5")...)
	})
	f.trusted(t, "/items/5", f.public, "")
}

// identityLogin: the user service receives the client's request, but no user header.
func (f *fortress) identityLogin(t *testing.T) {
	const login = `{"username":"alice","password":"right"}`
	for _, c := range identityClaims {
		t.Run(c.name, func(t *testing.T) {
			f.forget()
			got := f.Raw(t, rawWithBody("POST", "/token", login, c.lines...))
			f.claimed(t, c.name, got, c.status, f.users, "")
			if c.status != http.StatusOK && got.Header.Get("token") != "" {
				t.Error("a token was issued")
			}
		})
	}
	f.forget()
	got := f.H2(t, "POST", "/token", login, [2]string{"x-user-id", spoofed})
	f.claimed(t, "HTTP/2", got, http.StatusOK, f.users, "")
	f.forget()
	for _, line := range []string{"x-envoy-external-address: " + spoofed, "x-envoy-internal: " + spoofed, "x-forwarded-host: " + spoofed, "forwarded: for=" + spoofed, "x-original-url: /" + spoofed} {
		f.claimed(t, line, f.Raw(t, rawWithBody("POST", "/token", login, line)), http.StatusOK, f.users, "")
	}
}

// claimsH2 are attempts with HTTP/2, which does not allow some spellings of the header.
func (f *fortress) claimsH2(path string, fields ...[2]string) (all []attempt) {
	for _, name := range []string{"X-User-Id", "x_user_id", "x-user-id ", "x-user-id\x00", ":x-user-id"} {
		all = append(all, f.h2("GET", path, "", append(slices.Clip(fields), [2]string{name, spoofed}), 0, http.StatusBadRequest))
	}
	return all
}

// claimed checks the response to a request with a claim, and the request that the upstream
// received.
func (f *fortress) claimed(t *testing.T, what string, got answer, status int, upstream *envoytest.Recorder, user string) {
	t.Helper()
	if status != http.StatusOK {
		f.refused(t, what, got, status)
		return
	}
	want(t, what, got, http.StatusOK, "")
	sees(t, what, upstream, user)
}

// claimInTrailers puts the claim into trailers, which some gateways merge into the headers.
func (f *fortress) claimInTrailers(t *testing.T, path string, upstream *envoytest.Recorder, user string) {
	const chunked = "2\r\nhi\r\n0\r\nx-user-id: " + spoofed + "\r\n\r\n"
	lines := []string{"authorization: " + f.token, "transfer-encoding: chunked", "trailer: x-user-id"}
	want(t, "HTTP/1", f.Raw(t, rawRequest("POST", path, lines...)+chunked), http.StatusOK, "")
	sees(t, "HTTP/1", upstream, user)

	r, err := http.NewRequest("POST", f.URL+path, io.MultiReader(strings.NewReader("hi"))) // without a Content-Length
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", f.token)
	r.Trailer = http.Header{"X-User-Id": {spoofed}}
	response, err := f.clientH2(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	want(t, "HTTP/2", answer{Status: response.StatusCode}, http.StatusOK, "")
	sees(t, "HTTP/2", upstream, user)
}

// trusted are headers that some upstreams trust for the client's address or the original path. None
// arrives with the client's value (CVE-2026-40575, CVE-2026-35051, CVE-2023-27487, CVE-2024-45806).
func (f *fortress) trusted(t *testing.T, path string, upstream *envoytest.Recorder, user string, lines ...string) {
	for _, name := range []string{
		"x-forwarded-host", "x-forwarded-prefix", "x-forwarded-uri", "x-forwarded-port", "x-forwarded-proto", "x-forwarded-client-cert", "x-real-ip", "x-original-url", "x-rewrite-url", "forwarded",
		"x-request-id",
		"x-envoy-auth-failure-mode-allowed", "x-envoy-decorator-operation", "x-envoy-expected-rq-timeout-ms", "x-envoy-external-address", "x-envoy-force-trace",
		"x-envoy-hedge-on-per-try-timeout", "x-envoy-internal", "x-envoy-ip-tags", "x-envoy-max-retries", "x-envoy-original-path", "x-envoy-original-host",
		"x-envoy-retriable-header-names", "x-envoy-retriable-status-codes", "x-envoy-retry-grpc-on", "x-envoy-retry-on",
		"x-envoy-upstream-alt-stat-name", "x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response", "x-envoy-upstream-rq-timeout-ms",
		"x-envoy-upstream-stream-duration-ms", "x-envoy-attempt-count", "x-envoy-is-timeout-retry", "x-envoy-degraded", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
		"x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-envoy-original-method", "x-envoy-original-scheme",
	} {
		t.Run(name, func(t *testing.T) {
			f.forget()
			for _, spelling := range []string{name, strings.ToUpper(name)} {
				want(t, spelling, f.Raw(t, rawGet(path, append(lines, spelling+": "+spoofed)...)), http.StatusOK, "")
				sees(t, spelling, upstream, user)
			}
			want(t, "HTTP/2", f.H2(t, "GET", path, "", [2]string{"authorization", f.token}, [2]string{name, spoofed}), http.StatusOK, "")
			sees(t, "HTTP/2 "+name, upstream, user)
			underscored := strings.ReplaceAll(name, "-", "_")
			if underscored != name {
				f.refused(t, underscored, f.Raw(t, rawGet(path, append(lines, underscored+": "+spoofed)...)), http.StatusBadRequest)
			}
		})
	}
	t.Run("x-forwarded-for ends with the client's address", func(t *testing.T) {
		want(t, path, f.Raw(t, rawGet(path, append(lines, "x-forwarded-for: 10.1.2.3", "x-forwarded-for: 10.9.9.9")...)), http.StatusOK, "")
		got := only(t, upstream).Header.Values("X-Forwarded-For")
		claimed, added, ok := strings.Cut(strings.Join(got, ","), "10.9.9.9,")
		if _, err := netip.ParseAddr(added); err != nil || !ok || claimed != "10.1.2.3," {
			t.Errorf("it is %q, want the client's value followed by its address", got)
		}
	})
}

// identitiesApart: two users send concurrent requests over the same upstream connections. Neither a
// cache nor mixed-up responses may confuse them (CVE-2026-33496, CVE-2026-71326, CVE-2025-29923).
func (f *fortress) identitiesApart(t *testing.T) {
	tokens := map[string]string{"alice": f.token, "bob": f.Login("bob")}
	f.forget()
	const calls = 100
	var callers sync.WaitGroup
	for user, token := range tokens {
		for range 2 {
			callers.Go(func() {
				for range calls {
					if got, err := f.Try("GET", "/orders/of/"+user, "", "Authorization: "+token); err != nil || got.Status != http.StatusOK {
						t.Errorf("%s: %d %v", user, got.Status, err)
					}
				}
			})
		}
	}
	callers.Wait()
	got := f.secured.Requests()
	if len(got) != 4*calls {
		t.Errorf("%d requests arrived, want %d", len(got), 4*calls)
	}
	for _, one := range got {
		if user := strings.TrimPrefix(one.Path, "/of/"); !slices.Equal(one.Header.Values("X-User-Id"), []string{user}) {
			t.Errorf("%s's request arrived with the user %q", user, one.Header.Values("X-User-Id"))
		}
	}
}

// clientAddress: the recorded address of a login is that of the connection, not one from a header.
func (f *fortress) clientAddress(t *testing.T) {
	token := ""
	for _, line := range []string{"x-forwarded-for: 203.0.113.9", "x-envoy-external-address: 203.0.113.9", "x-real-ip: 203.0.113.9", "forwarded: for=203.0.113.9", "true-client-ip: 203.0.113.9"} {
		got := f.Raw(t, rawWithBody("POST", "/token", `{"username":"dave","password":"right"}`, line))
		want(t, line, got, http.StatusOK, "")
		token = got.Header.Get("token")
	}
	list := f.Do("GET", "/token/sessions", "", "Authorization: "+token)
	want(t, "the sessions", list, http.StatusOK, "")
	if !json.Valid([]byte(list.Body)) || strings.Contains(list.Body, "203.0.113.9") || strings.Count(list.Body, `"127.0.0.1"`) != 5 {
		t.Errorf("the sessions are %s, want five of 127.0.0.1", list.Body)
	}
	if strings.Contains(f.Log(), "203.0.113.9") {
		t.Error("the address claimed by the client is in the log")
	}
}

// TestDisguisedGuessesCount: an address in a header, other letter case or spaces around the name do
// not reset the count of failed logins (CVE-2026-47203, CVE-2025-24806, CVE-2024-21500).
func TestDisguisedGuessesCount(t *testing.T) {
	t.Parallel()
	service := users(t)
	g := start(t, fmt.Sprintf(`
tokens:
  authenticator: {url: "%s/users/authenticate", user_field: username}
  shield: {address: {failures: 30}, user: {failures: 5}}
services: []
`, service.URL()), setup{})
	// A query of the client could override a parameter of the user service's URL.
	want(t, "with a query", g.Raw(t, rawWithBody("POST", "/token?realm=admins", `{"username":"dave","password":"right"}`, "content-type: application/json")), http.StatusOK, "")
	if got := only(t, service); got.Path != "/users/authenticate" {
		t.Errorf("the user service got %s", got.Path)
	}
	spellings := []string{"alice", "Alice", "ALICE", " alice", "alice ", `aLiCe\u00a0`, `a\u0301lice`, "\uff41lice", `\u0061lice`}
	for _, c := range []struct {
		what string
		name func(n int) string
		most int
	}{
		{"one user", func(n int) string { return spellings[n%len(spellings)] }, 6},
		{"one address", func(n int) string { return fmt.Sprintf("user-%d", n) }, 31},
	} {
		service.Reset()
		for n := 0; ; n++ {
			lines := []string{"content-type: application/json"}
			for _, header := range []string{"x-forwarded-for", "x-envoy-external-address", "x-real-ip", "forwarded", "user-agent", "x-request-id", "cf-connecting-ip"} {
				lines = append(lines, fmt.Sprintf("%s: 198.51.100.%d", header, n))
			}
			got := g.Raw(t, rawWithBody("POST", "/token", fmt.Sprintf(`{"username":"%s","password":"wrong-%d"}`, c.name(n), n), lines...))
			if got.Status == http.StatusTooManyRequests {
				if got.Header.Get("Retry-After") == "" || !json.Valid([]byte(got.Body)) {
					t.Errorf("%s: the answer is %+v, want Retry-After and JSON", c.what, got)
				}
				if reached := len(service.Requests()); reached != n {
					t.Errorf("%s: %d guesses reached the user service, want the %d before", c.what, reached, n)
				}
				break
			}
			want(t, c.what, got, http.StatusUnauthorized, `"wrong user name or password"`)
			if n == c.most {
				t.Errorf("%s: %d guesses were let pass", c.what, n+1)
				break
			}
		}
	}
	// Bodies that two parsers read differently.
	service.Reset()
	const form = "content-type: application/x-www-form-urlencoded"
	for _, body := range []string{`{"a":"&username=alice&password=g1&b="}`, "a=1;username=alice", "username[]=alice", "username=bob&username=alice"} {
		if got := g.Raw(t, rawWithBody("POST", "/token", body, form)); got.Status != http.StatusBadRequest || !json.Valid([]byte(got.Body)) {
			t.Errorf("%s: the answer is %+v, want 400 in JSON", body, got)
		}
	}
	if reached := service.Requests(); len(reached) > 0 {
		t.Errorf("ambiguous logins reached the user service: %+v", reached)
	}
}
