package e2e

import (
	"net/http"
	"strings"
	"testing"
)

// credentials sends a valid token twice, in pieces, in the wrong place or slightly altered. None of
// these requests is authorized.
func (f *fortress) credentials(t *testing.T) {
	const denied, malformed, tooLarge = http.StatusUnauthorized, http.StatusBadRequest, http.StatusRequestHeaderFieldsTooLarge
	token, good := f.token, "authorization: "+f.token
	want(t, "the token as it should be", f.Raw(t, rawGet("/orders", good)), http.StatusOK, "")
	f.forget()
	for _, c := range []struct {
		name   string
		status int
		heads  [][]string
	}{
		{"CVE-2020-25017 CVE-2021-32777 CVE-2026-26308 given twice", denied, [][]string{
			{good, good}, {good, "authorization: x"}, {"authorization: x", good}, {good, "AUTHORIZATION: " + token},
			{"Authorization: Basic eDp5", good}, {good, "x-between: x", good},
		}},
		{"joined by a comma", denied, [][]string{
			{good + "," + token}, {good + ", " + token}, {good + ","}, {"authorization: ," + token}, {"authorization: Bearer " + token + ", Bearer " + token}, {"authorization: Bearer x, " + token},
		}},
		{"GHSA-w9mr-28mw-j8hg CVE-2024-45410 named by Connection", denied, [][]string{
			{good, "connection: authorization"}, {good, "connection: Authorization"}, {"connection: AUTHORIZATION", good}, {good, "connection: keep-alive, authorization"},
			{good, "connection: authorization,close"}, {good, "connection: close", "connection: authorization"},
		}},
		{"in another place", denied, [][]string{
			{"proxy-authorization: " + token}, {"x-authorization: " + token}, {"x-forwarded-authorization: " + token}, {"cookie: authorization=" + token}, {"cookie: token=" + token},
			{"token: " + token}, {"x-api-key: " + token}, {"x-auth-token: " + token}, {"www-authenticate: Bearer " + token}, {"x: \tAuthorization: " + token},
		}},
		{"of another form", denied, [][]string{
			{"authorization: Basic " + token}, {"authorization: Bearer" + token}, {"authorization: Bearer\t" + token}, {"authorization: Bearer: " + token}, {"authorization: Bearer token=" + token},
			{`authorization: "` + token + `"`}, {"authorization: {" + token + "}"}, {"authorization: urn:uuid:" + token}, {"authorization: " + strings.ReplaceAll(token, "-", "")},
			{"authorization: " + strings.ToUpper(token)}, {"authorization: " + token + " x"}, {"authorization: " + token + "x"}, {"authorization: " + token[:35]}, {"authorization: " + token + "%00"},
			{"authorization: " + other(token)}, {"authorization: *"}, {"authorization: null"}, {"authorization: Bearer"}, {"authorization: Bearer "}, {"authorization:"}, {"authorization: 0"},
			{"authorization: Bearer " + strings.Repeat(token, 100)}, {"authorization: " + strings.Repeat(" ", 4000) + "x"},
			{"authorization: tok:" + token}, {"authorization: ' or '1'='1"}, {"authorization: ../" + token}, {"authorization: " + token + "*"},
		}},
		{"CVE-2023-27488 bytes that are not UTF-8", denied, [][]string{
			{good + "\xff"}, {"authorization: \xff" + token}, {"authorization: \x80\x81"}, {"authorization: Bearer\xa0" + token}, {good, "authorization: \xff"}, {"authorization: " + token[:35] + "\xc1\xa1"},
			{"authorization: " + token[:8] + "\u2010" + token[9:]}, {"authorization: \uff22earer " + token},
		}},
		{"CVE-2019-9900 control characters", malformed, [][]string{
			{good + "\x00"}, {"authorization: \x00" + token}, {"authorization\x00: " + token}, {good + "\x00x"}, {"authorization: x\x00", good},
		}},
		{"behind a lone CR", denied, [][]string{{"authorization: x\r" + token}, {good + "\rx"}, {"x: y\r" + good}}},
		{"CVE-2019-18802 blanks about the name", malformed, [][]string{
			{"authorization : " + token}, {"authorization\t: " + token}, {"authorization\v: " + token}, {"auth orization: " + token}, {"authorization " + token}, {": " + token}, {"authorization\u00a0: " + token},
		}},
		{"CVE-2025-64484 underscores", malformed, [][]string{{"authorization_: " + token}, {"_authorization: " + token}, {good, "author_ization: x"}}},
		{"in a line that is folded into another", denied, [][]string{
			{"x-folded: a", " " + good}, {"x-folded:", "\t" + good}, {good, " x"}, {good, " " + token}, {good, "\t," + token},
		}},
		{"too long", tooLarge, [][]string{{"authorization: Bearer " + strings.Repeat("x", 20_000)}, {good, "x: " + strings.Repeat("y", 20_000)}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var all []attempt
			for _, lines := range c.heads {
				all = append(all, f.h1(rawGet("/orders/1", lines...), c.status))
			}
			f.refuses(t, all...)
		})
	}
	t.Run("in the query, the path, the target or the body", func(t *testing.T) {
		token := f.Login("erin") // a token in a path is logged, so this one is not secret any more
		f.forget()
		for _, target := range []string{
			"/orders?access_token=" + token, "/orders?token=" + token, "/orders?authorization=" + token, "/orders/" + token, "http://" + token + "@h/orders", "http://x:" + token + "@h/orders", "/orders;token=" + token,
		} {
			f.refused(t, target, f.Raw(t, rawGet(target)), denied, http.StatusNotFound)
		}
		f.refused(t, "a form", f.Raw(t, rawWithBody("POST", "/orders", "access_token="+token, "content-type: application/x-www-form-urlencoded")), denied)
		f.refused(t, "a trailer", f.Raw(t, rawRequest("POST", "/orders", "transfer-encoding: chunked", "trailer: authorization")+"0\r\n"+good+"\r\n\r\n"), denied)
	})
	t.Run("a token without the scope", func(t *testing.T) {
		for _, lines := range [][]string{{good}, {"authorization: Bearer " + token}, {good, "scopes: vault"}, {good, "x-scopes: vault"}, {good, "scope: vault"}} {
			f.refused(t, headerLines(lines), f.Raw(t, rawGet("/vault/1", lines...)), http.StatusForbidden)
		}
	})
}

// credentialsH2 covers HTTP/2, which has other limits for names and values.
func (f *fortress) credentialsH2(t *testing.T) {
	token := f.token
	want(t, "the token as it should be", f.H2(t, "GET", "/orders", "", [2]string{"authorization", token}), http.StatusOK, "")
	f.forget()
	var all []attempt
	for _, fields := range [][][2]string{
		nil,
		{{"authorization", token}, {"authorization", token}},
		{{"authorization", "x"}, {"authorization", token}},
		{{"authorization", token + "," + token}},
		{{"authorization", token + "\xff"}},
		{{"proxy-authorization", token}},
		{{"cookie", "authorization=" + token}, {"cookie", token}},
		{{"authorization", other(token)}},
	} {
		all = append(all, f.h2("GET", "/orders/1", "", fields, http.StatusUnauthorized))
	}
	for _, fields := range [][][2]string{
		{{"Authorization", token}},
		{{"authorization ", token}},
		{{"authorization:", token}},
		{{":authorization", token}},
		{{"authorization", token + "\x00"}},
		{{"authorization", token + "\r\n"}},
		{{"authorization", token}, {"connection", "authorization"}},
		{{"author_ization", token}},
	} {
		all = append(all, f.h2("GET", "/orders/1", "", fields, 0, http.StatusBadRequest, http.StatusUnauthorized))
	}
	f.refuses(t, all...)
	// Envoy responds to gRPC clients in gRPC's format.
	got := f.H2(t, "POST", "/orders/service/Method", "\x00\x00\x00\x00\x00", [2]string{"content-type", "application/grpc"}, [2]string{"te", "trailers"})
	if got.Header.Get("grpc-status") != "16" {
		t.Errorf("gRPC without a token: %+v, want the status 16 (unauthenticated)", got)
	}
	f.nothing(t)
}

// claims sends headers that changed the decision of other gateways. They have no effect.
func (f *fortress) claims(t *testing.T) {
	for name, lines := range map[string][]string{
		"CVE-2026-40575 the original path":            {"x-forwarded-uri: /items", "x-original-uri: /items", "x-original-url: /items", "x-rewrite-url: /items", "x-auth-request-redirect: /items"},
		"CVE-2026-35051 a prefix":                     {"x-forwarded-prefix: /items", "x-forwarded-path: /items", "x-script-name: /items"},
		"CVE-2023-27487 CVE-2024-7207 Envoy's path":   {"x-envoy-original-path: /items", "x-envoy-original-url: /items"},
		"CVE-2026-33495 the scheme":                   {"x-forwarded-proto: https", "x-forwarded-scheme: https", "x-forwarded-ssl: on", "front-end-https: on"},
		"CVE-2024-45806 an internal caller":           {"x-envoy-internal: true", "x-forwarded-for: 127.0.0.1", "x-envoy-external-address: 10.0.0.1", "x-real-ip: 127.0.0.1", "forwarded: for=127.0.0.1"},
		"CVE-2026-34457 a health check":               {"user-agent: kube-probe/1.31", "user-agent: GoogleHC/1.0", "user-agent: ELB-HealthChecker/2.0"},
		"a decision that was made already":            {"x-envoy-auth-failure-mode-allowed: true", "x-ext-authz-check-result: allowed", "x-envoy-authz: ok", "x-auth-request-user: alice", "x-user-id: alice"},
		"the rule of another route":                   {"service: items", "authenticate: false", "x-envoy-route: items", "x-envoy-decorator-operation: items"},
		"another cluster":                             {"x-envoy-upstream-alt-stat-name: items", "x-envoy-upstream-rq-timeout-ms: 1", "x-envoy-retry-on: 5xx", "cluster: items", "x-envoy-force-trace: true"},
		"a page's own request":                        {"sec-fetch-site: same-origin", "sec-fetch-mode: navigate", "origin: null", "x-requested-with: XMLHttpRequest"},
		"a method override":                           {"x-http-method-override: OPTIONS", "access-control-request-method: GET", "origin: https://a.example"},
		"an expectation and a range, before the body": {"range: bytes=0-", "if-none-match: *", "cache-control: only-if-cached"},
	} {
		t.Run(name, func(t *testing.T) {
			all := []attempt{f.h1(rawGet("/items/../orders", lines...), http.StatusUnauthorized)}
			for _, line := range lines {
				all = append(all, f.h1(rawGet("/orders/1", line), http.StatusUnauthorized))
			}
			f.refuses(t, all...)
		})
	}
}

// endedSessions: a token that was revoked, or refreshed twice, is rejected (CVE-2026-34454,
// CVE-2024-21492).
func (f *fortress) endedSessions(t *testing.T) {
	revoked, refreshed := f.Login("carol"), f.Login("carol")
	if revoked == refreshed || revoked == f.token {
		t.Fatal("two logins got the same token")
	}
	want(t, "revoking", f.Do("POST", "/token/revoke", "", "Authorization: "+revoked), http.StatusOK, "")
	renewed := f.Do("POST", "/token/refresh", "", "Authorization: "+refreshed)
	want(t, "refreshing", renewed, http.StatusOK, "")
	want(t, "refreshing once more", f.Do("POST", "/token/refresh", "", "Authorization: "+renewed.Header.Get("token")), http.StatusOK, "")
	f.forget()
	for name, token := range map[string]string{"revoked": revoked, "refreshed": refreshed} {
		for _, path := range []string{"/orders/1", "/items/private", "/vault"} {
			f.refused(t, name+" "+path, f.Raw(t, rawGet(path, "authorization: "+token)), http.StatusUnauthorized)
		}
		f.refused(t, name+" token refreshed", f.Do("POST", "/token/refresh", "", "Authorization: "+token), http.StatusUnauthorized)
	}
}
