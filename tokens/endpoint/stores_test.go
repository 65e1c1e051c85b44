package endpoint

import (
	"encoding/json"
	"testing"
	"time"

	"gatepost/convention"
	"gatepost/redisconn"
	"gatepost/tokens"
	"gatepost/tokens/boltstore"
	"gatepost/tokens/redisstore"
	"gatepost/tokens/redistest"
)

// onRealStores runs a test with each kind of store.
func onRealStores(t *testing.T, test func(t *testing.T, store tokens.Store)) {
	for name, open := range map[string]func(*testing.T) tokens.Store{
		"embedded": func(t *testing.T) tokens.Store {
			store, err := boltstore.Open(t.TempDir(), boltstore.Config{})
			if err != nil {
				t.Fatal(err)
			}
			return store
		},
		"Redis": func(t *testing.T) tokens.Store {
			options, err := redisconn.ParseURL(redistest.Start(t).URL())
			if err != nil {
				t.Fatal(err)
			}
			options.Timeout = time.Minute // a busy machine may need longer than the default
			store, err := redisstore.New(redisstore.Config{Conn: redisconn.Open(options)})
			if err != nil {
				t.Fatal(err)
			}
			return store
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := open(t)
			defer store.Close()
			test(t, store)
		})
	}
}

// The test runs all calls once.
func TestAllCallsOnRealStores(t *testing.T) {
	onRealStores(t, func(t *testing.T, store tokens.Store) {
		g := newGatewayOn(t, users(t, ann), store)
		first, second := g.login(), g.login()
		count := func(token string) int {
			var list struct{ Sessions []json.RawMessage }
			g.call("GET", "/token/sessions", "", "Authorization", token).json(t, &list)
			return len(list.Sessions)
		}
		if n := count(first); n != 2 {
			t.Errorf("%d sessions", n)
		}
		a := g.call("POST", "/token/refresh", "", "Authorization", first)
		a.is(t, 200)
		renewed := a.Header.Get("token")
		if g.isLive(first) || !g.isLive(renewed) || count(renewed) != 2 {
			t.Error("the refresh did not replace the old token")
		}
		b := g.call("POST", "/token/refresh", "", "Authorization", first)
		b.isText(t, 401, convention.TextUnauthorized)
		if g.isLive(renewed) || !g.isLive(second) {
			t.Error("a second refresh must end its own session only")
		}
		if n := g.counter("gatepost_token_calls_total", "refresh", "reused"); n != 1 {
			t.Errorf("%v reuses counted", n)
		}
		third := g.login()
		g.call("POST", "/token/revoke", "", "Authorization", third).is(t, 200)
		if g.isLive(third) || count(second) != 1 {
			t.Error("the revoke had no effect")
		}
		g.login()
		if a := g.call("DELETE", "/token/sessions", "", "Authorization", second); a.body != `{"ended":2}` {
			t.Errorf("ending all: %d %s", a.StatusCode, a.body)
		}
		g.call("GET", "/token/sessions", "", "Authorization", second).isText(t, 401, convention.TextUnauthorized)
	})
}

func TestRepeatedRefreshInGraceReturnsSameToken(t *testing.T) {
	onRealStores(t, func(t *testing.T, store tokens.Store) {
		g := newGatewayOn(t, users(t, ann), store)
		g.settings.RefreshGrace = time.Minute
		for _, format := range []tokens.Format{tokens.FormatUUID, tokens.FormatSecret} {
			g.settings.Format = string(format)
			first := g.login()
			refresh := func(token string) answerOf { return g.call("POST", "/token/refresh", "", "Authorization", token) }
			second := refresh(first).Header.Get("token")
			for range 3 {
				a := refresh(first)
				var body struct {
					AccessToken string `json:"access_token"`
					ExpiresIn   int    `json:"expires_in"`
				}
				a.json(t, &body)
				if got := a.Header.Get("token"); got != second || body.AccessToken != second || body.ExpiresIn < 3500 {
					t.Fatalf("got another token, or one for %d s", body.ExpiresIn)
				}
			}
			if !g.isLive(first) || !g.isLive(second) {
				t.Error("a token is not live in the grace")
			}
			var about map[string]any
			g.call("POST", "/token/introspect", "", "Authorization", first).json(t, &about)
			if left := time.Until(time.Unix(int64(about["exp"].(float64)), 0)); about["active"] != true || left > time.Minute {
				t.Errorf("the old token is reported as %v", about)
			}

			third := refresh(second).Header.Get("token")
			if g.isLive(first) || !g.isLive(second) || !g.isLive(third) {
				t.Error("the grace must cover the immediate predecessor only")
			}
			refresh(first).isText(t, 401, convention.TextUnauthorized)
			if g.isLive(second) || g.isLive(third) {
				t.Error("the reuse of an older token did not end the session")
			}

			fourth := g.login()
			fifth := refresh(fourth).Header.Get("token")
			g.call("POST", "/token/revoke", "", "Authorization", fifth).is(t, 200)
			if g.isLive(fourth) || g.isLive(fifth) {
				t.Error("a token is live after the revoke")
			}
		}
	})
}
