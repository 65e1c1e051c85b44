package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"gatepost/envoy/envoytest"
)

// anotherTab opens another tab in the same browser.
func (b *tab) anotherTab() *tab {
	b.t.Helper()
	ctx, closeTab := chromedp.NewContext(b.ctx)
	b.t.Cleanup(closeTab)
	if err := chromedp.Do(ctx); err != nil {
		b.t.Fatalf("opening another tab: %v", err)
	}
	return &tab{b.t, ctx}
}

// Two tabs share a token and refresh it at the same time. Both get the same new token and stay
// logged in. Logging out in one ends the session of both.
func TestTwoTabsThatRefreshTogetherStayLoggedIn(t *testing.T) {
	t.Parallel()
	first := openBrowser(t)
	second := first.anotherTab()
	page := pages(t)
	onBothStores(t, func(t *testing.T, s setup) {
		service, orders := users(t), envoytest.Upstream(t)
		g := start(t, fmt.Sprintf(`
origins: [%q]
tokens:
  refresh_grace: 60s # the machine may be slow
  authenticator: {url: "%s/users/authenticate"}
services:
  - {name: orders, path: /orders, allowed_methods: [GET], upstreams: ["%s"]}
`, page, service.URL(), orders.URL()), s)
		with := func(method, token string) map[string]any {
			return map[string]any{"method": method, "headers": map[string]string{"Authorization": "Bearer " + token}}
		}
		tabs := []*tab{first, second}
		for _, b := range tabs {
			b.Open(page)
		}
		opened := first.Fetch(g.URL+"/token", map[string]any{
			"method": "POST", "headers": map[string]string{"Content-Type": "application/json"}, "body": `{"username":"alice","password":"right"}`,
		})
		reads(t, "a login", opened, http.StatusOK, "")
		token := opened.Headers["token"]
		for range 5 {
			var got [6]fetched // three calls per tab
			var all sync.WaitGroup
			for i := range got {
				all.Go(func() { got[i] = tabs[i%2].Fetch(g.URL+"/token/refresh", with("POST", token)) })
			}
			all.Wait()
			next := got[0].Headers["token"]
			for i, one := range got {
				reads(t, "a refresh", one, http.StatusOK, "")
				if one.Headers["token"] != next || next == "" || next == token {
					t.Errorf("refresh %d: its tab did not get the same new token as the other", i)
				}
			}
			for _, b := range tabs {
				reads(t, "the new token", b.Fetch(g.URL+"/orders", with("GET", next)), http.StatusOK, "")
				reads(t, "the old token, of a request that was under way", b.Fetch(g.URL+"/orders", with("GET", token)), http.StatusOK, "")
			}
			token = next
		}
		reads(t, "a log-out", first.Fetch(g.URL+"/token/revoke", with("POST", token)), http.StatusOK, "")
		for _, b := range tabs {
			reads(t, "after the log-out", b.Fetch(g.URL+"/orders", with("GET", token)), http.StatusUnauthorized, notAllowed)
		}
	})
}
