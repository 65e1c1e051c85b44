package endpoint

import (
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"gatepost/convention"
	"gatepost/tokens"

	"github.com/google/uuid"
)

func TestMethodsAndPaths(t *testing.T) {
	g := newGateway(t, users(t, ann))
	token := g.login()
	allowed := map[string]string{
		"/token": "POST", "/token/revoke": "POST", "/token/refresh": "POST", "/token/introspect": "POST",
		"/token/sessions": "GET, DELETE", "/token/sessions/x": "DELETE",
	}
	for path, allow := range allowed {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO"} {
			if strings.Contains(allow, method) {
				continue
			}
			a := g.call(method, path, "", "Authorization", token)
			if method == "HEAD" { // has no body
				a.is(t, 405)
			} else {
				a.isText(t, 405, "Method not allowed")
			}
			a.has(t, "Allow", allow)
		}
	}
	for _, path := range []string{"/", "/tokens", "/token/", "/token/x", "/Token", "/token/revoke/x", "/token/sessions/", "/token/sessions/x/y",
		"//token", "/token//revoke", "/x/../token", "/token/./revoke", "/token%2frevoke"} {
		g.call("POST", path, "", "Authorization", token).isText(t, 404, "Could not find any resources for given path.")
	}
	if !g.isLive(token) {
		t.Error("one of these calls ended the session")
	}
}

func TestRevoke(t *testing.T) {
	g := newGateway(t, users(t, ann))
	inForm := func(token string) (string, string) {
		return "token=" + token + "&token_type_hint=access_token", formType
	}
	t.Run("the token in Authorization", func(t *testing.T) {
		for _, scheme := range []string{"", "Bearer ", "bearer  "} {
			token := g.login()
			g.call("POST", "/token/revoke", "", "Authorization", scheme+token).is(t, 200)
			if g.isLive(token) {
				t.Error("the token is still live")
			}
		}
	})
	t.Run("the token in the form, whatever is in Authorization", func(t *testing.T) {
		one, other := g.login(), g.login()
		body, contentType := inForm(one)
		a := g.call("POST", "/token/revoke", body, "Content-Type", contentType, "Authorization", other)
		a.is(t, 200)
		a.has(t, "Cache-Control", "no-store")
		if g.isLive(one) || !g.isLive(other) {
			t.Error("the wrong token was revoked")
		}
	})
	t.Run("unknown and malformed tokens are accepted", func(t *testing.T) {
		for _, token := range []string{uuid.NewString(), "nonsense", "", strings.Repeat("a", 10_000)} {
			body, contentType := inForm(token)
			g.call("POST", "/token/revoke", body, "Content-Type", contentType).is(t, 200)
		}
		g.call("POST", "/token/revoke", "", "Authorization", "Basic YTpi").is(t, 200)
		g.call("POST", "/token/revoke", "", "Authorization", uuid.NewString()).is(t, 200)
	})
	t.Run("no token", func(t *testing.T) {
		a := g.call("POST", "/token/revoke", "")
		a.isText(t, 401, convention.TextUnauthorized)
		a.has(t, "WWW-Authenticate", `Bearer realm="gatepost"`)
	})
	t.Run("a body that is not a form revokes nothing", func(t *testing.T) {
		token := g.login()
		for body, contentType := range map[string]string{`{"token":"x"}`: "application/json", "token=x": "text/plain", "token=y": ""} {
			g.call("POST", "/token/revoke", body, "Content-Type", contentType, "Authorization", token).isText(t, 415, textNotAForm)
		}
		g.call("POST", "/token/revoke", "token=a&token=b", "Content-Type", formType, "Authorization", token).isText(t, 400, textUnreadable)
		g.call("POST", "/token/revoke", "token=%zz", "Content-Type", formType, "Authorization", token).isText(t, 400, textUnreadable)
		g.call("POST", "/token/revoke", "x="+strings.Repeat("a", maxForm), "Content-Type", formType, "Authorization", token).isText(t, 413, convention.TextTooLarge)
		if !g.isLive(token) {
			t.Error("the token was revoked")
		}
	})
	t.Run("the store is unavailable", func(t *testing.T) {
		token := g.login()
		// unavailable takes precedence
		g.store.fail(fmt.Errorf("%w: %w", tokens.ErrUnavailable, tokens.ErrUnknown))
		defer g.store.fail(nil)
		g.call("POST", "/token/revoke", "", "Authorization", token).isText(t, 503, textUnavailable)
		if n := g.counter("gatepost_token_calls_total", "revoke", "store_unavailable"); n != 1 {
			t.Errorf("%v counted", n)
		}
	})
}

func TestRefresh(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		ann(w, r)
		w.Header().Set("scopes", "a b")
	}))
	for _, place := range []string{"Authorization", "refresh_token", "token"} {
		t.Run(place, func(t *testing.T) {
			old := g.login()
			var a answerOf
			if place == "Authorization" {
				a = g.call("POST", "/token/refresh", "", "Authorization", "Bearer "+old)
			} else {
				a = g.call("POST", "/token/refresh", "grant_type=refresh_token&"+place+"="+old, "Content-Type", formType)
			}
			var got map[string]any
			a.json(t, &got)
			next := a.Header.Get("token")
			want := map[string]any{"access_token": next, "token_type": "Bearer", "expires_in": 3600.0, "scope": "a b"}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("body %v", got)
			}
			a.has(t, "expires_in", "3600")
			a.has(t, "Access-Control-Expose-Headers", "token,expires_in")
			if g.isLive(old) || !g.isLive(next) || old == next {
				t.Error("the old token is live or the new one is not")
			}

			// The old token again: one of its two holders is an attacker.
			b := g.call("POST", "/token/refresh", "", "Authorization", old)
			b.isText(t, 401, convention.TextUnauthorized)
			b.has(t, "WWW-Authenticate", `Bearer realm="gatepost", error="invalid_token"`)
			if g.isLive(next) {
				t.Error("the session is still live")
			}
			if n := g.counter("gatepost_token_calls_total", "refresh", "reused"); n == 0 {
				t.Error("not counted")
			}
		})
	}
	t.Run("a session is refreshed until its end at most", func(t *testing.T) {
		g.settings.SessionLifetime = 90 * time.Minute
		token := g.login()
		g.handler.config.Now = func() time.Time { return time.Now().Add(45 * time.Minute) }
		defer func() { g.handler.config.Now = time.Now }()
		a := g.call("POST", "/token/refresh", "", "Authorization", token)
		a.is(t, 200)
		a.has(t, "expires_in", "2700")
		g.handler.config.Now = func() time.Time { return time.Now().Add(91 * time.Minute) }
		g.call("POST", "/token/refresh", "", "Authorization", a.Header.Get("token")).isText(t, 401, convention.TextUnauthorized)
	})
	t.Run("tokens that are not live", func(t *testing.T) {
		before := g.store.count()
		for _, token := range []string{uuid.NewString(), "nonsense", "Basic YTpi", "a,b"} {
			a := g.call("POST", "/token/refresh", "", "Authorization", token)
			a.isText(t, 401, convention.TextUnauthorized)
			a.has(t, "WWW-Authenticate", `Bearer realm="gatepost", error="invalid_token"`)
		}
		g.call("POST", "/token/refresh", "").has(t, "WWW-Authenticate", `Bearer realm="gatepost"`)
		if g.store.count() != before {
			t.Error("a session was opened")
		}
	})
	t.Run("the store is unavailable", func(t *testing.T) {
		token := g.login()
		g.store.fail(tokens.ErrUnavailable)
		g.call("POST", "/token/refresh", "", "Authorization", token).isText(t, 503, textUnavailable)
		g.store.fail(nil)
		if !g.isLive(token) {
			t.Error("the token is not live any more")
		}
	})
}

func TestIntrospect(t *testing.T) {
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) {
		ann(w, r)
		w.Header().Set("scopes", "a b")
	}))
	token, other := g.login(), g.login()
	for _, body := range []string{"", "token=" + token} {
		var got map[string]any
		g.call("POST", "/token/introspect", body, "Content-Type", formType, "Authorization", "Bearer "+token).json(t, &got)
		if got["active"] != true || got["sub"] != "ann" || got["scope"] != "a b" || got["token_type"] != "Bearer" ||
			got["exp"].(float64)-got["iat"].(float64) != 3600 || got["sid"] == "" {
			t.Errorf("got %v", got)
		}
		if strings.Contains(fmt.Sprint(got), token) {
			t.Error("the response contains the token")
		}
	}
	for _, named := range []string{other, uuid.NewString(), "nonsense", ""} {
		a := g.call("POST", "/token/introspect", "token="+named, "Content-Type", formType, "Authorization", token)
		a.is(t, 200)
		if a.body != `{"active":false}` {
			t.Errorf("for another token: %s", a.body)
		}
	}
	a := g.call("POST", "/token/introspect", "token="+token, "Content-Type", formType)
	a.isText(t, 401, convention.TextUnauthorized)
	a.has(t, "WWW-Authenticate", `Bearer realm="gatepost"`)
	a = g.call("POST", "/token/introspect", "token="+token, "Content-Type", formType, "Authorization", uuid.NewString())
	a.isText(t, 401, convention.TextUnauthorized)
	a.has(t, "WWW-Authenticate", `Bearer realm="gatepost", error="invalid_token"`)
}

func TestSessions(t *testing.T) {
	user := "ann"
	g := newGateway(t, users(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("userid", user) }))
	mine, also := g.login(), g.login()
	user = "bob"
	bobs := g.login()

	type list struct {
		Sessions []struct {
			ID        string    `json:"id"`
			Current   bool      `json:"current"`
			Issued    time.Time `json:"issued"`
			Expires   time.Time `json:"expires"`
			UserAgent string    `json:"user_agent"`
			Address   string    `json:"client_address"`
		}
	}
	sessions := func(token string) (l list) {
		a := g.call("GET", "/token/sessions", "", "Authorization", token)
		a.json(t, &l)
		for _, secret := range []string{mine, also, bobs} {
			parsed, _ := tokens.Parse(secret)
			if strings.Contains(a.body, secret) || strings.Contains(a.body, parsed.Hash().Hex()) {
				t.Error("a token or its hash is listed")
			}
		}
		return l
	}
	l := sessions(mine)
	if len(l.Sessions) != 2 || l.Sessions[0].Current == l.Sessions[1].Current {
		t.Fatalf("listed %+v", l)
	}
	first := l.Sessions[0]
	if first.Address != "127.0.0.1" || first.UserAgent == "" || first.Expires.Sub(first.Issued) != time.Hour {
		t.Errorf("listed %+v", first)
	}
	id := func(token string) string {
		for _, s := range sessions(token).Sessions {
			if s.Current {
				return s.ID
			}
		}
		t.Fatal("no current session")
		return ""
	}

	for _, unknown := range []string{id(bobs), uuid.NewString(), "x", "%2e%2e%2f"} {
		g.call("DELETE", "/token/sessions/"+unknown, "", "Authorization", mine).isText(t, 404, convention.TextNotFound)
	}
	a := g.call("DELETE", "/token/sessions/"+id(also), "", "Authorization", mine)
	a.is(t, 200)
	if a.body != `{"ended":1}` || g.isLive(also) || !g.isLive(mine) || !g.isLive(bobs) {
		t.Errorf("ending one: %s", a.body)
	}
	user = "ann"
	g.login()
	a = g.call("DELETE", "/token/sessions", "", "Authorization", mine)
	a.is(t, 200)
	if a.body != `{"ended":2}` || g.isLive(mine) || !g.isLive(bobs) {
		t.Errorf("ending all: %s", a.body)
	}

	for _, c := range [][2]string{{"GET", "/token/sessions"}, {"DELETE", "/token/sessions"}, {"DELETE", "/token/sessions/x"}} {
		g.call(c[0], c[1], "", "Authorization", mine).isText(t, 401, convention.TextUnauthorized)
		g.call(c[0], c[1], "").has(t, "WWW-Authenticate", `Bearer realm="gatepost"`)
		g.call(c[0], c[1], "", "Authorization", bobs, "Authorization", bobs).isText(t, 401, convention.TextUnauthorized)
		g.store.fail(tokens.ErrUnavailable)
		g.call(c[0], c[1], "", "Authorization", bobs).isText(t, 503, textUnavailable)
		g.store.fail(errors.New("something else"))
		g.call(c[0], c[1], "", "Authorization", bobs).isText(t, 503, textUnavailable)
		g.store.fail(nil)
	}
}

// The endpoint rejects another token's session or an expired one from the store.
func TestStoreResultsAreChecked(t *testing.T) {
	g := newGateway(t, users(t, ann))
	token, other := g.login(), g.login()
	a, _ := tokens.Parse(token)
	b, _ := tokens.Parse(other)
	g.store.mu.Lock()
	g.store.sessions[a.Hash()] = g.store.sessions[b.Hash()]
	g.store.mu.Unlock()
	g.call("GET", "/token/sessions", "", "Authorization", token).isText(t, 401, convention.TextUnauthorized)
}
