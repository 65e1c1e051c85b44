package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

// usersWithScopes is a user service that returns the scopes after the colon in the user's name.
func usersWithScopes(t *testing.T) *envoytest.Recorder {
	t.Helper()
	service := users(t)
	known := service.Handler()
	service.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		known.ServeHTTP(w, r)
		id, scopes, _ := strings.Cut(w.Header().Get("userid"), ":")
		if id != "" {
			w.Header().Set("userid", id)
			w.Header().Set("x-roles", scopes)
		}
	})
	return service
}

func TestServiceRequiresItsScopes(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, s setup) {
		users, reports := usersWithScopes(t), envoytest.Upstream(t)
		g := start(t, fmt.Sprintf(`
tokens: {authenticator: {url: %q, scopes_header: x-roles}}
services:
  - {name: read, path: /read, scopes: ["reports:read"], upstreams: [%[2]q]}
  - {name: write, path: /write, scopes: ["reports:read", "reports:write"], upstreams: [%[2]q]}
  - {name: open, path: /open, upstreams: [%[2]q]}
`, users.URL(), reports.URL()), s)
		for user, may := range map[string]string{
			"all:reports:read reports:write": "/open /read /write", "reader:reports:read": "/open /read", "writer:reports:write": "/open",
			"none:": "/open", "other:Reports:Read reports:reader reports": "/open",
		} {
			login := g.Do("POST", "/token", fmt.Sprintf(`{"username":%q,"password":"right"}`, user))
			token := "Authorization: Bearer " + login.Header.Get("token")
			for path, needed := range map[string]string{"/open": "", "/read": "reports:read", "/write": "reports:read reports:write"} {
				got := g.Do("GET", path, "", token, "Origin: "+shopOrigin)
				wantHeader(t, user+" "+path, got, "Access-Control-Allow-Origin", shopOrigin) // a page can read both responses
				if strings.Contains(may, path) {
					want(t, user+" "+path, got, http.StatusOK, "")
					only(t, reports)
					continue
				}
				want(t, user+" "+path, got, http.StatusForbidden, `"Your token does not allow this."`)
				wantHeader(t, user+" "+path, got, "WWW-Authenticate", fmt.Sprintf(`Bearer realm="gatepost", error="insufficient_scope", scope=%q`, needed))
				wantHeader(t, user+" "+path, got, "Content-Type", "application/json")
				none(t, reports)
			}
			// A refresh keeps the scopes.
			renewed := g.Do("POST", "/token/refresh", "", token).Header.Get("token")
			got := g.Do("GET", "/read", "", "Authorization: "+renewed)
			if allowed := strings.Contains(may, "/read"); allowed != (got.Status == http.StatusOK) || !allowed && got.Status != http.StatusForbidden {
				t.Errorf("%s with a token that was refreshed: %d", user, got.Status)
			}
			reports.Reset()
		}
	})
}
