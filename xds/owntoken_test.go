package xds

import (
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/tokens"
)

// TestATokenOfThisGatewayReachesNoPublicUpstream: in every form in which clients send it. Other credentials pass, and
// nobody is asked.
func TestATokenOfThisGatewayReachesNoPublicUpstream(t *testing.T) {
	t.Parallel()
	g := startGateway(t, shop+`  - {name: raw, path: /raw, authenticate: false, forward_token: true, upstreams: ["PUBLIC"]}
  - {name: passed, path: /passed, forward_token: true, upstreams: ["SECURED"]}
`)
	mint := func(format tokens.Format) string {
		token, err := tokens.Mint(format)
		if err != nil {
			t.Fatal(err)
		}
		return token.Reveal()
	}
	// sends returns the Authorization that comes to the upstream.
	sends := func(method, path string, upstream *envoytest.Recorder, lines ...string) string {
		t.Helper()
		upstream.Reset()
		g.do(method, path, lines...)
		got := upstream.Requests()
		if len(got) != 1 {
			t.Fatalf("%s %s %q: %d requests came through", method, path, lines, len(got))
		}
		return strings.Join(got[0].Header.Values("authorization"), ",")
	}
	for _, token := range []string{mint(tokens.FormatUUID), mint(tokens.FormatSecret)} {
		for _, value := range []string{
			token, "Bearer " + token, "bearer " + token, "BEARER " + token, "bEaReR   " + token, "Bearer\t" + token, " \t" + token + " \t",
			token + "," + token, "Bearer " + token + ", Basic YTpi", "Basic YTpi,Bearer " + token, "Basic YTpi , " + token + " , x", "\xff," + token, token + ",\xff\xfe",
		} {
			for _, path := range []string{"/items", "/items/5", "/ITEMS/5"} {
				if got := sends("GET", path, g.public, "authorization: "+value); got != "" {
					t.Errorf("%s: %q reached the upstream as %q", path, value, got)
				}
			}
			for method, path := range map[string]string{"GET": "/raw", "PUT": "/RAW/x"} {
				if got := sends(method, path, g.public, "authorization: "+value); got != strings.Trim(value, " \t") {
					t.Errorf("%s: %q reached the upstream as %q", path, value, got)
				}
			}
		}
		for _, lines := range [][]string{
			{"authorization: Basic YTpi", "authorization: Bearer " + token}, {"authorization: " + token, "Authorization: Basic YTpi"}, {"authorization:", "authorization: " + token},
		} {
			if got := sends("GET", "/items", g.public, lines...); got != "" {
				t.Errorf("%q reached the upstream as %q", lines, got)
			}
		}
		for _, value := range []string{
			"Basic YTpi", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "Bearer", "Digest nonce=\"" + token + "\"", "Token " + token, "Bearer x" + token, "Bearer " + token + "x",
			"Bearer " + token[1:], "Bearer" + token, "x", "\xff" + token, strings.Repeat("a", 4000), "AWS4-HMAC-SHA256 Credential=a/b, Signature=" + token,
		} {
			if got := sends("GET", "/items", g.public, "authorization: "+value); got != value {
				t.Errorf("%q reached the upstream as %q", value, got)
			}
		}
		if got := sends("POST", "/token/revoke", g.tokens, "authorization: "+token); got != token {
			t.Errorf("the token handler got %q", got)
		}
		if got := sends("POST", "/token", g.tokens, "authorization: Bearer "+token); got != "" {
			t.Errorf("a login came with %q", got)
		}
		if got := sends("POST", "/Token/", g.tokens, "authorization: Basic YTpi"); got != "Basic YTpi" {
			t.Errorf("a login came with %q", got)
		}
	}
	if got := sends("GET", "/items", g.public); got != "" {
		t.Errorf("without a token the upstream got %q", got)
	}
	if n := len(g.asked()); n != 0 {
		t.Errorf("%d checks for public services", n)
	}
	token := mint(tokens.FormatUUID)
	for _, path := range []string{"/passed", "/PASSED/5"} {
		if got := sends("GET", path, g.secured, "authorization: "+token); got != token {
			t.Errorf("%s: a secured service with forward_token got %q", path, got)
		}
	}
}
