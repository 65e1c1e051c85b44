package authz

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatepost/tokens"
)

// policy asks in the name of one server and reads as allow and deny.
type policy struct {
	*testing.T
	*testServer
}

func (p policy) allow(name string, r *authv3.CheckRequest) *authv3.OkHttpResponse {
	p.Helper()
	ok := p.check(p.T, r).GetOkResponse()
	if ok == nil {
		p.Errorf("%s: denied (%v)", name, p.Recent()[0].Reason)
	}
	return ok
}

func (p policy) deny(name string, want Reason, r *authv3.CheckRequest) *authv3.DeniedHttpResponse {
	p.Helper()
	refused := p.check(p.T, r).GetDeniedResponse()
	if refused == nil {
		p.Fatalf("%s: allowed", name)
	}
	if got := p.Recent()[0].Reason; got != want.String() {
		p.Errorf("%s: denied because of %s, want %s", name, got, want)
	}
	return refused
}

var (
	secured     = Rule{Service: "orders", Authenticate: true, Longest: time.Minute}
	publicRule  = Rule{Service: "items"}
	fromBrowser = Shared{UserHeader: "x-user-id", Origins: []string{"https://shop.example", "http://localhost:3000"}}
)

func authorization(v string) map[string]string { return map[string]string{"authorization": v} }

func TestASecuredServiceAsksForAToken(t *testing.T) {
	p := policy{t, newTestServer(t)}
	uuid := p.store.open(t, tokens.FormatUUID, "ann").Reveal()
	secret := p.store.open(t, tokens.FormatSecret, "bob").Reveal()
	stranger, _ := tokens.Mint(tokens.FormatUUID)

	for _, known := range []string{uuid, secret, "Bearer " + uuid, "bearer " + uuid, "BEARER " + secret, "Bearer  " + uuid} {
		p.allow(known, asking(shop, secured, authorization(known)))
	}
	p.deny("no header", ReasonTokenMissing, asking(shop, secured, nil))
	p.deny("empty header", ReasonTokenMissing, asking(shop, secured, authorization("")))
	p.deny("unknown", ReasonTokenUnknown, asking(shop, secured, authorization(stranger.Reveal())))

	p.store.asked = 0
	for _, malformed := range []string{
		uuid + "," + uuid, "Bearer " + uuid + ",Bearer " + uuid, uuid + ", " + uuid, uuid + ",", "," + uuid,
		"Basic " + uuid, "Basic YW5uOnB3", "Digest " + uuid, "Bearer", "Bearer ", "bearer", "Bearer\t" + uuid,
		"Bearer \t" + uuid, uuid + "\t", "\t" + uuid, uuid + " ", uuid + " x", "Bearer Bearer " + uuid, "Bearer:" + uuid,
		strings.ToUpper(uuid), uuid[:35], uuid + "0", uuid[:35] + "!", "!!!", "Bearer !", `"` + uuid + `"`, "token=" + uuid,
		secret[:len(secret)-1] + "!", strings.Repeat("a", 1<<15), "null", "undefined", "Bearer undefined", uuid + "\x00",
	} {
		p.deny(malformed, ReasonTokenMalformed, asking(shop, secured, authorization(malformed)))
	}
	if p.store.asked != 0 {
		t.Errorf("the store was asked %d times about what cannot be a token", p.store.asked)
	}
}

func TestAPublicServiceAsksForNothing(t *testing.T) {
	p := policy{t, newTestServer(t)}
	for _, value := range []string{"", "Basic YW5uOnB3", "Bearer nonsense", "a,b"} {
		ok := p.allow(value, asking(shop, publicRule, authorization(value)))
		if len(ok.GetHeaders()) != 0 {
			t.Errorf("%q: headers set: %v", value, ok.GetHeaders())
		}
		if got := ok.GetHeadersToRemove(); !slices.Equal(got, []string{"x-user-id"}) {
			t.Errorf("%q: removed: %q, want the identity header and no other", value, got)
		}
	}
	if p.store.asked != 0 {
		t.Errorf("the store was asked %d times", p.store.asked)
	}
}

func TestOriginsAreHeldToWhateverTheService(t *testing.T) {
	p := policy{t, newTestServer(t)}
	token := p.store.open(t, tokens.FormatUUID, "ann").Reveal()
	for _, rule := range []Rule{secured, publicRule, {Service: "token"}, {Service: "not_found"}} {
		from := func(origin string) *authv3.CheckRequest {
			return asking(fromBrowser, rule, map[string]string{"authorization": token, "origin": origin})
		}
		p.allow("listed", from("https://shop.example"))
		p.allow("listed", from("http://localhost:3000"))
		p.deny("no origin", ReasonOriginRefused, asking(fromBrowser, rule, authorization(token)))
		for _, origin := range []string{
			"", "null", "*", "https://evil.example", "https://shop.example.evil.example", "https://shop.example:443",
			"https://shop.example/", "https://SHOP.example", "http://shop.example", "shop.example", "https://shop.exampl",
			"https://shop.example,https://shop.example", "https://shop.example,https://evil.example",
			"https://shop.example http://localhost:3000", " https://shop.example", "https://shop.example ", ",", "https://shop.example!",
		} {
			refused := p.deny(origin, ReasonOriginRefused, from(origin))
			if got := header(refused.GetHeaders(), "www-authenticate"); got != "" {
				t.Errorf("%q: challenged (%s) although no credentials would help", origin, got)
			}
		}
	}
	null := Shared{UserHeader: "x-user-id", Origins: []string{"null"}}
	p.deny("null, even if listed", ReasonOriginRefused, asking(null, publicRule, map[string]string{"origin": "null"}))
	p.allow("no list, any origin", asking(shop, publicRule, map[string]string{"origin": "null"}))
}

func TestWithoutARuleNothingPasses(t *testing.T) {
	p := policy{t, newTestServer(t)}
	token := authorization(p.store.open(t, tokens.FormatUUID, "ann").Reveal())
	whole := merged(shop.Extensions(), secured.Extensions())
	changed := func(key, value string) map[string]string {
		ext := merged(shop.Extensions(), secured.Extensions())
		ext[key] = value
		return ext
	}
	p.allow("whole", withExtensions(whole, token))
	p.deny("nothing", ReasonNoRule, withExtensions(nil, token))
	p.deny("route's part alone", ReasonNoRule, withExtensions(merged(secured.Extensions()), token))
	p.deny("host's part alone", ReasonNoRule, withExtensions(merged(shop.Extensions()), token))
	p.deny("unchecked", ReasonNoRule, withExtensions(merged(Unchecked()), token))
	p.deny("no service", ReasonNoRule, withExtensions(changed(keyService, ""), token))
	p.deny("no user header", ReasonNoRule, withExtensions(changed(keyUserHeader, ""), token))
	for _, value := range []string{"", "no", "False", "0", "true ", "TRUE"} {
		p.deny("authenticate "+value, ReasonNoRule, withExtensions(changed(keyAuthenticate, value), token))
	}
	p.deny("forward_token maybe", ReasonNoRule, withExtensions(changed(keyForwardToken, "maybe"), token))
	for _, value := range []string{"0", "-1", "1s", "1.5", "99999999999999999999", "9223372036855"} {
		p.deny("longest "+value, ReasonNoRule, withExtensions(changed(keyLongest, value), token))
	}
	p.deny("empty message", ReasonNoRule, &authv3.CheckRequest{})
}

func TestScopes(t *testing.T) {
	p := policy{t, newTestServer(t)}
	reader := authorization(p.store.open(t, tokens.FormatUUID, "ann", "orders:read").Reveal())
	both := authorization(p.store.open(t, tokens.FormatUUID, "ann", "orders:read", "orders:write").Reveal())
	none := authorization(p.store.open(t, tokens.FormatUUID, "ann").Reveal())
	needs := func(scopes ...string) Rule {
		return Rule{Service: "orders", Authenticate: true, Longest: time.Minute, Scopes: scopes}
	}

	p.allow("none needed", asking(shop, needs(), none))
	p.allow("one needed, held", asking(shop, needs("orders:read"), reader))
	p.allow("two needed, held", asking(shop, needs("orders:read", "orders:write"), both))
	p.deny("one needed, none held", ReasonScopeMissing, asking(shop, needs("orders:read"), none))
	p.deny("two needed, one held", ReasonScopeMissing, asking(shop, needs("orders:read", "orders:write"), reader))
	p.deny("a part of a name", ReasonScopeMissing, asking(shop, needs("orders"), both))
	p.deny("no token at all", ReasonTokenMissing, asking(shop, needs("orders:read"), nil))
}

func TestEndsOfADecision(t *testing.T) {
	g := newTestServer(t)
	known := g.store.open(t, tokens.FormatUUID, "ann", "a").Reveal()
	scoped := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, Scopes: []string{"a", "b"}}
	unquotable := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, Scopes: []string{`b"`}}
	const no = `"You are not allowed to access this API!"`
	const cannot = `"The gateway cannot decide about this request at the moment."`
	for _, c := range []struct {
		name              string
		ask               *authv3.CheckRequest
		outage            error
		status            int
		body              string
		challenge, repeat string
	}{
		{"origin", asking(fromBrowser, secured, authorization(known)), nil, 401, no, "", ""},
		{"missing", asking(shop, secured, nil), nil, 401, no, `Bearer realm="gatepost"`, ""},
		{"malformed", asking(shop, secured, authorization("x")), nil, 401, no, `Bearer realm="gatepost", error="invalid_token"`, ""},
		{"unknown", asking(shop, secured, authorization("00000000-0000-4000-8000-000000000000")), nil, 401, no, `Bearer realm="gatepost", error="invalid_token"`, ""},
		{"scope", asking(shop, scoped, authorization(known)), nil, 403, `"Your token does not allow this."`, `Bearer realm="gatepost", error="insufficient_scope", scope="a b"`, ""},
		{"scope that cannot be quoted", asking(shop, unquotable, authorization(known)), nil, 403, `"Your token does not allow this."`, `Bearer realm="gatepost", error="insufficient_scope"`, ""},
		{"store down", asking(shop, secured, authorization(known)), errDown, 503, cannot, "", "1"},
		{"store fails otherwise", asking(shop, secured, authorization(known)), context.DeadlineExceeded, 503, cannot, "", "1"},
		{"no rule", &authv3.CheckRequest{}, nil, 503, cannot, "", "1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.store.outage = nil
			if c.outage != nil {
				g.store.outage = func(context.Context) error { return c.outage }
			}
			refused := g.check(t, c.ask).GetDeniedResponse()
			if got := int(refused.GetStatus().GetCode()); got != c.status {
				t.Errorf("status %d, want %d", got, c.status)
			}
			if got := refused.GetBody(); got != c.body {
				t.Errorf("body %s, want %s", got, c.body)
			}
			for name, want := range map[string]string{
				"content-type": "application/json", "cache-control": "no-store", "www-authenticate": c.challenge, "retry-after": c.repeat,
			} {
				if got := header(refused.GetHeaders(), name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestTheUpstreamLearnsTheUserAndNotTheToken(t *testing.T) {
	p := policy{t, newTestServer(t)}
	token := authorization(p.store.open(t, tokens.FormatUUID, "ann@example.org").Reveal())

	ok := p.allow("as a rule", asking(shop, secured, token))
	if len(ok.GetHeaders()) != 1 || header(ok.GetHeaders(), "x-user-id") != "ann@example.org" {
		t.Errorf("headers set: %v", ok.GetHeaders())
	}
	if got := ok.GetHeaders()[0].GetAppendAction(); got != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
		t.Errorf("the user's id is set by %v: what the client sent must be overwritten", got)
	}
	if got := ok.GetHeadersToRemove(); !slices.Equal(got, []string{"authorization"}) {
		t.Errorf("removed: %q", got)
	}
	forward := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, ForwardToken: true}
	if got := p.allow("forward_token", asking(shop, forward, token)).GetHeadersToRemove(); len(got) != 0 {
		t.Errorf("forward_token, removed: %q", got)
	}
}

func TestAUserThatNoHeaderCanCarryDoesNotPass(t *testing.T) {
	p := policy{t, newTestServer(t)}
	for _, user := range []string{"ann", "ann@example.org", "Ann Müller", "安", "1", "a\u00a0b"} {
		p.allow(user, asking(shop, secured, authorization(p.store.open(t, tokens.FormatUUID, user).Reveal())))
	}
	for _, user := range []string{
		"", " ", "ann ", " ann", "ann\n", "ann\r\nx-admin: 1", "a\x00b", "a\tb", "\x1b[0m", "a\x7fb", "a\u0085b", "a\xffb",
	} {
		p.deny(user, ReasonBadUser, asking(shop, secured, authorization(p.store.open(t, tokens.FormatUUID, user).Reveal())))
	}
}

func TestAStoreThatAnswersWrongIsNotBelieved(t *testing.T) {
	p := policy{t, newTestServer(t)}
	ann := p.store.open(t, tokens.FormatUUID, "ann")
	bob := p.store.open(t, tokens.FormatUUID, "bob")
	p.store.live[bob.Hash()] = p.store.live[ann.Hash()]
	p.deny("another's session", ReasonStoreUnavailable, asking(shop, secured, authorization(bob.Reveal())))

	gone := *p.store.live[ann.Hash()]
	gone.Expires = time.Now().Add(-time.Nanosecond)
	p.store.live[ann.Hash()] = &gone
	p.deny("a session that has ended", ReasonTokenUnknown, asking(shop, secured, authorization(ann.Reveal())))

	p.store.outage = func(context.Context) error { return nil }
	p.deny("neither session nor error", ReasonStoreUnavailable, asking(shop, secured, authorization(ann.Reveal())))
}

func TestALookupEndsAtItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestServer(t)
		token := g.store.open(t, tokens.FormatUUID, "ann")
		var given time.Duration
		g.store.outage = func(ctx context.Context) error {
			at, _ := ctx.Deadline()
			given = time.Until(at)
			<-ctx.Done()
			return ctx.Err()
		}
		start := time.Now()
		resp, err := g.Check(t.Context(), asking(shop, secured, authorization(token.Reveal())))
		if err != nil || resp.GetDeniedResponse().GetStatus().GetCode() != 503 {
			t.Errorf("answer: %v, %v", resp, err)
		}
		if took := time.Since(start); given != LookupTimeout || took != LookupTimeout {
			t.Errorf("given %v, ended after %v, want %v", given, took, LookupTimeout)
		}
		if got := g.Recent()[0].Reason; got != "store_unavailable" {
			t.Errorf("reason %s", got)
		}
	})
}

func TestACallerThatGoesAwayIsNoFaultOfTheStore(t *testing.T) {
	g := newTestServer(t)
	token := g.store.open(t, tokens.FormatUUID, "ann")
	ctx, cancel := context.WithCancel(t.Context())
	g.store.outage = func(inner context.Context) error {
		cancel()
		<-inner.Done()
		return inner.Err()
	}
	resp, err := g.Check(ctx, asking(shop, secured, authorization(token.Reveal())))
	if err != nil || resp.GetOkResponse() != nil {
		t.Errorf("answer: %v, %v", resp, err)
	}
	if got := g.Recent(); len(got) != 0 {
		t.Errorf("told as a denial: %v", got)
	}
}

// model is the policy once more, in as few words as it can be said in: the HTTP status for a request.
func model(rule Rule, shared Shared, origin, authorization, cookie, protocols string, live map[string]*tokens.Session, down bool) int {
	if len(shared.Origins) > 0 && (origin == "null" || !slices.Contains(shared.Origins, origin)) {
		return 401
	}
	if !rule.Authenticate {
		return 200
	}
	var texts []string
	if authorization != "" {
		texts = append(texts, regexp.MustCompile(`^(?i:bearer +)?`).ReplaceAllString(authorization, ""))
	}
	if shared.Cookie != "" {
		if regexp.MustCompile(`,[ \t]*` + shared.Cookie + `[ \t]*(?:[=,;]|$)`).MatchString(cookie) {
			return 401 // several Cookie headers
		}
		for _, m := range regexp.MustCompile(`(?:^|;)[ \t]*`+shared.Cookie+`[ \t]*=([^;]*)`).FindAllStringSubmatch(cookie, -1) {
			if value := strings.Trim(m[1], " \t"); value != "" {
				texts = append(texts, value)
			}
		}
	}
	if shared.Subprotocol != "" {
		for _, m := range regexp.MustCompile(`(?:^|,)[ \t]*`+shared.Subprotocol+`\.([^,]*)`).FindAllStringSubmatch(protocols, -1) {
			texts = append(texts, strings.Trim(m[1], " \t"))
		}
	}
	if len(texts) == 0 {
		return 401
	}
	for _, text := range texts {
		if _, err := tokens.Parse(text); err != nil || text != texts[0] {
			return 401
		}
	}
	if down {
		return 503
	}
	s := live[texts[0]]
	if s == nil {
		return 401
	}
	for _, needed := range rule.Scopes {
		if !slices.Contains(s.Scopes, needed) {
			return 403
		}
	}
	return 200
}

func FuzzDecisionIsTheModels(f *testing.F) {
	const ann, bob = "6e1c0000-0000-4000-8000-00000000000a", "6e1c0000-0000-4000-8000-00000000000b"
	live := map[string]*tokens.Session{}
	g := newTestServer(f)
	for text, scopes := range map[string][]string{ann: {"a", "b"}, bob: nil} {
		token, err := tokens.Parse(text)
		if err != nil {
			f.Fatal(err)
		}
		live[text] = &tokens.Session{Hash: token.Hash(), User: "u" + text, Scopes: scopes, Expires: time.Now().Add(24 * time.Hour)}
		g.store.live[token.Hash()] = live[text]
	}
	for _, value := range []string{ann, "Bearer " + ann, "bearer  " + bob, bob + "," + ann, "", "Basic x", "Bearer\t" + ann, ann + "!", "6e1c0000-0000-4000-8000-00000000000c"} {
		f.Add(true, "a", "https://shop.example", "https://shop.example", value, "c="+value, "p."+value, false)
		f.Add(true, "", "", "", value, "c="+ann, "p."+ann+", chat", false)
		f.Add(true, "", "https://shop.example", "https://shop.example", "", "a=1; c="+value+";b", "", false)
		f.Add(true, "", "https://shop.example", "https://shop.example", ann, "a=1,c="+value, "p, p."+ann, false)
		f.Add(true, "b c", "", "null", value, "", "", true)
		f.Add(false, "", "https://a.example null", "null", value, "", "", false)
		f.Add(false, "", "https://a.example", "https://a.example,https://a.example", value, "", "", false)
	}
	f.Fuzz(func(t *testing.T, authenticate bool, scopes, origins, origin, value, cookie, protocols string, down bool) {
		r := asking(Shared{}, Rule{}, map[string]string{"origin": origin, "authorization": value, "cookie": cookie, "sec-websocket-protocol": protocols})
		shared := Shared{UserHeader: "x-user-id", Origins: strings.Fields(origins), Subprotocol: "p"}
		if len(shared.Origins) > 0 {
			shared.Cookie = "c"
		}
		rule := Rule{Service: "s", Authenticate: authenticate, Scopes: strings.Fields(scopes)}
		for _, text := range append(shared.Origins, rule.Scopes...) {
			if !regexp.MustCompile(`^[!-+\--~]+$`).MatchString(text) { // definitions take no other
				t.Skip("no origin or scope that a definition may have")
			}
		}
		r.Attributes.ContextExtensions = merged(shared.Extensions(), rule.Extensions())
		g.store.outage = nil
		if down {
			g.store.outage = func(context.Context) error { return errDown }
		}
		resp, err := g.Check(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		got := 200
		if refused := resp.GetDeniedResponse(); refused != nil {
			got = int(refused.GetStatus().GetCode())
		}
		if want := model(rule, shared, origin, value, cookie, protocols, live, down); got != want {
			t.Errorf("%v %v origin %q authorization %q cookie %q protocols %q down %v: %d, the model says %d", rule, shared, origin, value, cookie, protocols, down, got, want)
		}
		if got == 200 && authenticate {
			user := strings.TrimPrefix(header(resp.GetOkResponse().GetHeaders(), "x-user-id"), "u")
			if user == "" || !strings.Contains(value+cookie+protocols, user) {
				t.Errorf("authorization %q cookie %q protocols %q pass as %q", value, cookie, protocols, user)
			}
			left := header(resp.GetOkResponse().GetHeaders(), "cookie") + header(resp.GetOkResponse().GetHeaders(), "sec-websocket-protocol")
			if strings.Contains(left, "c="+user) || strings.Contains(left, "p."+user) && !strings.Contains(left, "p."+user+".") {
				t.Errorf("cookie %q protocols %q: the upstream still sees %q", cookie, protocols, left)
			}
		}
	})
}
