package authz

import (
	"maps"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatepost/tokens"
)

// page is a gateway whose definitions let the token come in every way that there is.
var page = Shared{
	UserHeader: "x-user-id", Origins: []string{"https://shop.example"}, Cookie: "session", Subprotocol: "gatepost.bearer",
}

// opening is a request of a page's for a service.
func opening(rule Rule, headers map[string]string) *authv3.CheckRequest {
	all := map[string]string{"origin": "https://shop.example"}
	maps.Copy(all, headers)
	return asking(page, rule, all)
}

// wantLeft fails the test where an allow does not leave this of a header; "" where it goes as a whole.
func wantLeft(t *testing.T, what string, ok *authv3.OkHttpResponse, name, left string) {
	t.Helper()
	if got := header(ok.GetHeaders(), name); got != left {
		t.Errorf("%s: %s goes on as %q, want %q", what, name, got, left)
	}
	if removed := slices.Contains(ok.GetHeadersToRemove(), name); removed != (left == "") {
		t.Errorf("%s: %s is removed: %v", what, name, removed)
	}
}

func TestATokenMayComeInACookie(t *testing.T) {
	p := policy{t, newTestServer(t)}
	token := p.store.open(t, tokens.FormatUUID, "ann").Reveal()
	secret := p.store.open(t, tokens.FormatSecret, "ann").Reveal()
	for cookie, left := range map[string]string{
		"session=" + token:                         "",
		"session=" + secret:                        "",
		"a=1; session=" + token + "; b=2":          "a=1; b=2",
		"a=1;session=" + token + ";b=2":            "a=1; b=2",
		"session=" + token + "; session=" + token:  "",
		"session = " + token + " ;; b":             "b",
		"Session=" + token + "; session=" + token:  "Session=" + token,
		"xsession=1; session=" + token + "; s=a,b": "xsession=1; s=a,b",
		"session=; session=" + token:               "",
	} {
		wantLeft(t, cookie, p.allow(cookie, opening(secured, map[string]string{"cookie": cookie})), "cookie", left)
	}
	for _, cookie := range []string{"", "a=1", "session", "session=", "session= ", "sessions=" + token, "SESSION=" + token, "a=session=" + token} {
		p.deny(cookie, ReasonTokenMissing, opening(secured, map[string]string{"cookie": cookie}))
	}
	p.store.asked = 0
	for _, cookie := range []string{
		"session=x", `session="` + token + `"`, "session=Bearer " + token, "session=" + token + "; session=x", "session=" + token + "; session=" + secret,
		"session=" + token + ",b=2", "b=2,session=" + token, "b=2, session=" + token, "session=" + token + "; b=2,session=" + token, "a=b,c,session",
	} {
		p.deny(cookie, ReasonTokenMalformed, opening(secured, map[string]string{"cookie": cookie}))
	}
	if p.store.asked != 0 {
		t.Errorf("the store was asked %d times", p.store.asked)
	}
	p.deny("no cookie is named", ReasonTokenMissing, asking(fromBrowser, secured, map[string]string{"cookie": "session=" + token, "origin": "https://shop.example"}))
}

func TestATokenMayComeAsASubprotocol(t *testing.T) {
	p := policy{t, newTestServer(t)}
	token := p.store.open(t, tokens.FormatUUID, "ann").Reveal()
	secret := p.store.open(t, tokens.FormatSecret, "ann").Reveal()
	const name = "sec-websocket-protocol"
	for protocols, left := range map[string]string{
		"gatepost.bearer." + token:                                        "",
		"gatepost.bearer." + secret:                                       "",
		"gatepost.bearer." + token + ", chat":                             "chat",
		"chat,gatepost.bearer." + token + ",superchat":                    "chat, superchat",
		"gatepost.bearer." + token + ",gatepost.bearer." + token:          "",
		"gatepost.bearers, gatepost.bearer." + token:                      "gatepost.bearers",
		"gatepost.bearer, gatepost.bearer." + token + ", chat":            "chat",
		" ,gatepost.bearer." + token + "\t, , GATEPOST.BEARER.x , chat ,": "GATEPOST.BEARER.x, chat",
	} {
		wantLeft(t, protocols, p.allow(protocols, opening(secured, map[string]string{name: protocols})), name, left)
	}
	for _, protocols := range []string{"", "chat", "gatepost.bearer", token, "gatepost.bearerx." + token} {
		p.deny(protocols, ReasonTokenMissing, opening(secured, map[string]string{name: protocols}))
	}
	for _, protocols := range []string{
		"gatepost.bearer.", "gatepost.bearer.x", "gatepost.bearer." + token + "x", "gatepost.bearer. " + token,
		"gatepost.bearer." + token + ", gatepost.bearer." + secret, "gatepost.bearer." + token + " chat",
	} {
		p.deny(protocols, ReasonTokenMalformed, opening(secured, map[string]string{name: protocols}))
	}
	p.deny("no subprotocol is named", ReasonTokenMissing, asking(shop, secured, map[string]string{name: "gatepost.bearer." + token}))
}

// A browser fails a WebSocket that it offered subprotocols for and that none was chosen of.
func TestTheNameOfTheFormIsTheAnswerWhereTheUpstreamChoosesNone(t *testing.T) {
	p := policy{t, newTestServer(t)}
	token := p.store.open(t, tokens.FormatUUID, "ann").Reveal()
	for protocols, answer := range map[string]string{
		"gatepost.bearer, gatepost.bearer." + token:       "gatepost.bearer",
		"gatepost.bearer." + token + ", gatepost.bearer":  "gatepost.bearer",
		"chat, gatepost.bearer, gatepost.bearer." + token: "gatepost.bearer",
		"chat, gatepost.bearer." + token:                  "",
	} {
		ok := p.allow(protocols, opening(secured, map[string]string{"sec-websocket-protocol": protocols}))
		if got := header(ok.GetResponseHeadersToAdd(), "sec-websocket-protocol"); got != answer {
			t.Errorf("%q: the answer has %q, want %q", protocols, got, answer)
		}
	}
}

func TestTwoTokensAreNone(t *testing.T) {
	p := policy{t, newTestServer(t)}
	ann, bob := p.store.open(t, tokens.FormatUUID, "ann").Reveal(), p.store.open(t, tokens.FormatUUID, "bob").Reveal()
	three := func(authorization, cookie, protocol string) *authv3.CheckRequest {
		h := map[string]string{}
		for name, value := range map[string]string{
			"authorization": authorization, "cookie": "session=" + cookie + "; a=1", "sec-websocket-protocol": "gatepost.bearer." + protocol + ", chat",
		} {
			if value != "gatepost.bearer., chat" {
				h[name] = value
			}
		}
		return opening(secured, h)
	}
	for name, r := range map[string]*authv3.CheckRequest{
		"all three": three("Bearer "+ann, ann, ann), "two": three(ann, ann, ""), "cookie and subprotocol": three("", ann, ann),
	} {
		ok := p.allow(name, r)
		wantLeft(t, name, ok, "cookie", "a=1")
		wantLeft(t, name, ok, "authorization", "")
	}
	for name, r := range map[string]*authv3.CheckRequest{
		"another cookie": three("Bearer "+ann, bob, ""), "another subprotocol": three(ann, "", bob), "both others": three("", bob, ann),
		"junk in the cookie": three(ann, "x", ""), "junk in the subprotocol": three(ann, ann, "x"), "junk in Authorization": three("Basic x", ann, ""),
	} {
		p.deny(name, ReasonTokenMalformed, r)
	}
}

func TestACookieNeedsAListedOrigin(t *testing.T) {
	p := policy{t, newTestServer(t)}
	cookie := map[string]string{"cookie": "session=" + p.store.open(t, tokens.FormatUUID, "ann").Reveal()}
	p.allow("the listed one", opening(secured, cookie))
	p.deny("none", ReasonOriginRefused, asking(page, secured, cookie))
	for _, origin := range []string{"https://evil.example", "null", ""} {
		forged := maps.Clone(cookie)
		forged["origin"] = origin
		p.deny(origin, ReasonOriginRefused, asking(page, secured, forged))
	}
	p.deny("a rule that lists none", ReasonNoRule, asking(Shared{UserHeader: "x-user-id", Cookie: "session"}, secured, cookie))
}

func TestTheCookieReachesNoUpstreamThatIsNotToSeeTheToken(t *testing.T) {
	p := policy{t, newTestServer(t)}
	token := p.store.open(t, tokens.FormatUUID, "ann").Reveal()
	headers := map[string]string{"cookie": "a=1; session=" + token, "sec-websocket-protocol": "gatepost.bearer." + token}
	for _, rule := range []Rule{publicRule, {Service: "token"}} {
		ok := p.allow(rule.Service, opening(rule, headers))
		wantLeft(t, rule.Service, ok, "cookie", "a=1")
		wantLeft(t, rule.Service, ok, "sec-websocket-protocol", "")
	}
	wantLeft(t, "hidden", p.allow("hidden", opening(publicRule, map[string]string{"cookie": "a=1,session=" + token})), "cookie", "")

	forward := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, ForwardToken: true}
	ok := p.allow("forward_token", opening(forward, headers))
	if len(ok.GetHeaders()) != 1 || len(ok.GetHeadersToRemove()) != 0 {
		t.Errorf("forward_token: set %v, removed %v", ok.GetHeaders(), ok.GetHeadersToRemove())
	}
	public := publicRule
	public.ForwardToken = true
	ok = p.allow("forward_token of a public service", opening(public, headers))
	if len(ok.GetHeaders()) != 0 || !slices.Equal(ok.GetHeadersToRemove(), []string{"x-user-id"}) {
		t.Errorf("forward_token of a public service: set %v, removed %v", ok.GetHeaders(), ok.GetHeadersToRemove())
	}
}

func TestARequestThatCouldOutlastItsTokenEndsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := policy{t, newTestServer(t)}
		token := authorization(p.store.open(t, tokens.FormatUUID, "ann").Reveal()) // for an hour
		ends := func(name string, longest time.Duration, want string) {
			t.Helper()
			rule := Rule{Service: "orders", Authenticate: true, Longest: longest}
			if got := header(p.allow(name, asking(shop, rule, token)).GetHeaders(), "x-envoy-upstream-stream-duration-ms"); got != want {
				t.Errorf("%s: the stream may live %q ms, want %q", name, got, want)
			}
		}
		ends("a stream without an end of its own", 0, "3600000")
		ends("a request that ends by itself", time.Hour, "")
		ends("a request that is over before", time.Minute, "")
		time.Sleep(time.Hour - time.Minute + time.Nanosecond)
		ends("a minute before the end, less a moment", time.Minute, strconv.Itoa(60_000))
		ends("a stream", 0, "60000")
		time.Sleep(time.Minute - 2*time.Nanosecond)
		ends("a nanosecond before the end", 0, "1") // 0 would be no bound
	})
}
