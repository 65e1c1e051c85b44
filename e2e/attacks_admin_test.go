package e2e

import (
	"fmt"
	"net/http"
	"testing"
)

// A public service whose upstream is the admin address (as in Envoy Gateway's CVE-2025-24030 and
// Contour's CVE-2021-32783) lets no client list or end sessions.
func TestServiceThatPointsToTheAdminAddressIsRejected(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]string{"directly": "", "through a trusted proxy": "client_addresses: {trusted_proxies: [127.0.0.0/8]}"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			noServiceReachesTheAdminAddress(t, more)
		})
	}
}

func noServiceReachesTheAdminAddress(t *testing.T, more string) {
	g := prepare(t, "services: []", setup{})
	g.Define(more + fmt.Sprintf(`
tokens: {authenticator: {url: "%s/users/authenticate"}}
services:
  - {name: inside, path: /inside, authenticate: false, upstreams: ["http://%s"]}
`, users(t).URL(), g.Admin))
	g.Run()
	g.AwaitReady()
	g.Login("alice")
	for _, header := range []string{
		"X-Plain: 1", "X-Envoy-External-Address: ", "Connection: x-envoy-external-address", "X-Forwarded-For: 10.0.0.1",
	} {
		for _, call := range [][2]string{
			{"GET", "/inside/api/v1/status"}, {"GET", "/inside/api/v1/users/alice/sessions"}, {"DELETE", "/inside/api/v1/users/alice/sessions"},
			{"POST", "/inside/api/v1/lookup"}, {"GET", "/inside/api/v1/overview"}, {"GET", "/inside/api/v1/support"},
			{"GET", "/inside/api/v1/denials/live"}, {"POST", "/inside/api/v1/revisions/1/rollback"},
			{"GET", "/inside/metrics"}, {"GET", "/inside/healthz"}, {"GET", "/inside/readyz"}, {"GET", "/inside/"}, {"GET", "/inside/debug/pprof/"},
			{"POST", "/inside/api/v1/exchange"}, {"GET", "/inside/api/v1/certificates"}, {"GET", "/inside/app.js"},
		} {
			got, err := g.TryRaw(call[0] + " " + call[1] + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + header + "\r\n\r\n")
			if err != nil || got.Status != http.StatusForbidden && got.Status != http.StatusBadRequest {
				t.Errorf("%s %s with %q: %d %s, %v, want 403", call[0], call[1], header, got.Status, got.Body, err)
			}
		}
	}
}
