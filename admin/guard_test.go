package admin

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// everyPath is one path of each kind on the admin address. pathsOfThePage are those of the page and of profiles.
var (
	everyPath      = []string{"/healthz", "/readyz", "/metrics", "/api/v1/status", "/api/v1/users/alice/sessions"}
	pathsOfThePage = []string{"/", "/app.js", "/app.css", "/debug/pprof/cmdline", "/nothing"}
)

// TestEachPathIsGuarded: no part of the server is reached past the guard, whatever it is.
func TestEachPathIsGuarded(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{Local: true, Profiles: true})
	patterns := slices.Collect(maps.Keys(k.calls()))
	for _, path := range slices.Concat(everyPath, pathsOfThePage) {
		patterns = append(patterns, "GET "+path)
	}
	for _, pattern := range patterns {
		method, path, _ := strings.Cut(pattern, " ")
		path = strings.NewReplacer("{user}", "alice", "{id}", "none", "{number}", "1").Replace(path)
		k.want(t, method, path, http.StatusMisdirectedRequest, "not allowed on the admin address", "Host: rebound.evil.example")
		k.want(t, method, path, http.StatusForbidden, "other origins", "Sec-Fetch-Site: cross-site")
		k.want(t, method, path, http.StatusForbidden, "other origins", "Sec-Fetch-Site: same-site")
		k.want(t, method, path, http.StatusForbidden, "other origins", "Origin: https://evil.example")
		k.want(t, method, path, http.StatusForbidden, "not for the gateway's clients", "X-Envoy-External-Address: 203.0.113.7")
	}
}

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
		"127.0.0.1:18002": 200, "[::1]:18002": 200, "[::1]": 200, "localhost:18002": 200, "LocalHost": 200, "gatepost:18002": 421,
		"gw-1.prod.example:18002": 200, "Gw-1.Prod.Example": 200, "gw-2.prod.example": 421, "": 200,
	} {
		for _, path := range everyPath {
			k.want(t, "GET", path, code, "", "Host: "+host)
		}
	}
}

// A single label is a name of Docker or Kubernetes, and on a Unix socket any name. On loopback a browser may have
// resolved it in a network that is not the operator's.
func TestSingleLabelsAreRejectedOnLoopbackAlone(t *testing.T) {
	elsewhere := newKitWith(t, Config{TokenFile: tokensIn(t, twoTokens)})
	elsewhere.want(t, "GET", "/readyz", http.StatusOK, "", "Host: gatepost:18002")
	local := newKit(t)
	local.want(t, "GET", "/readyz", http.StatusMisdirectedRequest, "not allowed on the admin address", "Host: gatepost:18002")
	local.remote = "@" // as net/http has it of a Unix socket
	local.want(t, "GET", "/readyz", http.StatusOK, "", "Host: gatepost")
	local.want(t, "GET", "/readyz", http.StatusMisdirectedRequest, "", "Host: rebound.evil.example")
}
