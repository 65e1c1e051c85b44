package endpoint

import (
	"encoding/json"
	"testing"

	"gatepost/redisconn"
	"gatepost/tokens"
	"gatepost/tokens/boltstore"
	"gatepost/tokens/redisstore"
	"gatepost/tokens/redistest"
)

// TestALifeOfTokensInTheRealStores goes once through all calls with each store that there is.
func TestALifeOfTokensInTheRealStores(t *testing.T) {
	for name, open := range map[string]func(*testing.T) tokens.Store{
		"embedded": func(t *testing.T) tokens.Store {
			store, err := boltstore.Open(t.TempDir(), boltstore.Options{})
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
			return redisstore.New(redisconn.Open(options))
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := open(t)
			defer store.Close()
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
			if g.opens(first) || !g.opens(renewed) || count(renewed) != 2 {
				t.Error("the refresh did not put the new token in the old one's place")
			}
			b := g.call("POST", "/token/refresh", "", "Authorization", first)
			b.says(t, 401, textUnauthorized)
			if g.opens(renewed) || !g.opens(second) {
				t.Error("a second refresh did not end its session and no other")
			}
			if n := g.counted("gatepost_token_calls_total", "refresh", "reused"); n != 1 {
				t.Errorf("%v reuses counted", n)
			}
			third := g.login()
			g.call("POST", "/token/revoke", "", "Authorization", third).is(t, 200)
			if g.opens(third) || count(second) != 1 {
				t.Error("the revoke did nothing")
			}
			g.login()
			if a := g.call("DELETE", "/token/sessions", "", "Authorization", second); a.body != `{"ended":2}` {
				t.Errorf("ending all: %d %s", a.StatusCode, a.body)
			}
			g.call("GET", "/token/sessions", "", "Authorization", second).says(t, 401, textUnauthorized)
		})
	}
}
