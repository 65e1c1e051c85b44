package admin

import (
	"net/http"
	"testing"
)

// everyPath is one path of each kind on the admin address.
var everyPath = []string{"/healthz", "/readyz", "/metrics", "/api/v1/status", "/api/v1/users/alice/sessions"}

func TestPagesOfOtherOriginsAreRejected(t *testing.T) {
	k := newKit(t)
	id, _ := k.login(t, "alice")
	for _, header := range []string{
		"Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", // a page on another port of localhost is same-site
		"Origin: https://evil.example", "Origin: http://127.0.0.1:3000", "Origin: null",
	} {
		for _, path := range everyPath {
			k.want(t, "GET", path, http.StatusForbidden, "other origins", header)
			k.want(t, "HEAD", path, http.StatusForbidden, "", header)
		}
		k.want(t, "DELETE", "/api/v1/sessions/"+id, http.StatusForbidden, "other origins", header)
	}
	k.want(t, "GET", "/api/v1/users/alice/sessions", http.StatusOK, id)
}

func TestOperatorsBrowserMayReadFromTheAddressBar(t *testing.T) {
	k := newKit(t)
	for _, path := range everyPath {
		k.want(t, "GET", path, http.StatusOK, "", "Sec-Fetch-Site: none")
		k.want(t, "GET", path, http.StatusOK, "", "Sec-Fetch-Site: same-origin", "Origin: http://127.0.0.1:18002", "Host: 127.0.0.1:18002")
	}
}

// With DNS rebinding, a page makes its own name resolve to loopback. Its requests are then
// same-origin and have the headers of a scraper; only the name in Host differs.
func TestPublicDNSNamesAreRejectedOnEveryPath(t *testing.T) {
	k := newKit(t)
	for host, code := range map[string]int{
		"rebound.evil.example": 421, "rebound.evil.example:18002": 421, "127.0.0.1.evil.example": 421, "metrics.of.the.team": 421,
		"127.0.0.1:18002": 200, "[::1]:18002": 200, "[::1]": 200, "localhost:18002": 200, "gatepost:18002": 200,
		"gw-1.prod.example:18002": 200, "Gw-1.Prod.Example": 200, "gw-2.prod.example": 421, "": 200,
	} {
		for _, path := range everyPath {
			k.want(t, "GET", path, code, "", "Host: "+host)
		}
	}
}
