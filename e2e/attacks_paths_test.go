package e2e

import (
	"net/http"
	"testing"
)

// paths tries to reach a secured service or a blackhole by obfuscated paths. Nothing arrives, over
// HTTP/1 or HTTP/2.
func (f *fortress) paths(t *testing.T) {
	const (
		challenged = http.StatusUnauthorized // the path belongs to the secured service in any spelling
		malformed  = http.StatusBadRequest
		unknown    = http.StatusNotFound
	)
	for _, c := range []struct {
		name   string
		status int
		paths  []string
	}{
		{"CVE-2019-9901 dot segments", challenged, []string{
			"/items/../orders/1", "/items/x/../../orders", "/../orders", "/../../orders/1", "/./orders", "/orders/.", "/orders/./1", "/items/x/./../../orders/1",
		}},
		{"CVE-2019-9901 dot segments from a public path below a secured one", challenged, []string{
			"/orders/status/../1", "/orders/status/x/../../1", "/orders/status/..", "/orders/status;/../x",
		}},
		{"CVE-2026-33494 and CVE-2026-48020 escaped dot segments", challenged, []string{
			"/items/%2e%2e/orders/1", "/items/.%2E/orders/1", "/items/%2E./orders", "/%2e%2e/orders", "/%2e/orders", "/orders/status/%2e%2e/1",
		}},
		{"path parameters on dot segments", challenged, []string{
			"/items/..;/orders/1", "/items/..;x=y/orders/1", "/orders/status/..;/1", "/items/.;/../orders", "/items/x;/../../orders",
		}},
		{"path parameters on dot segments that were escaped", malformed, []string{
			"/items/%2e%2e;/orders", "/items/%2E%2e;x=1/orders", "/items/.%2e;/orders", "/items/%2e%2e%3b/orders", "/items/..%3b/orders", "/items/..%3B", "/items/%2e;/private", "/items/x/%2e%2e;y", "/orders/%2e%2e;/status",
		}},
		{"backslashes", challenged, []string{`/items\..\orders\1`, `/items/..\orders/1`, `/items/x\..\..\orders`, `/\orders`}},
		{"CVE-2026-26205 double slashes", challenged, []string{
			"//orders/1", "///orders", "//orders//1", "/items//private", "/items///private/x", "/orders//status/../x", "//items/../orders",
		}},
		{"CVE-2026-27587 letters in either case and escaped", challenged, []string{
			"/ORDERS/1", "/oRdErS", "/%6frders/1", "/%6Frders/1", "/%4frders", "/%4FRDERS", "/items/PRIVATE/x", "/items/%70rivate", "/items/privat%65/x", "/ITEMS/%50RIVATE",
		}},
		{"CVE-2025-54576 a query that looks like another path", challenged, []string{
			"/orders?/../items", "/orders?x=/items", "/orders/1?/status", "/items/../orders?/items", "/orders/?", "/orders??",
		}},
		{"CVE-2026-32811 a question mark that is escaped", challenged, []string{"/items/x%3f/../../orders", "/orders/%3fx", "/items/%3f/../private"}},
		{"CVE-2021-29492 escaped slashes", malformed, []string{
			"/items/..%2forders/1", "/items/..%2Forders", "/items%2f..%2forders", "/items/..%5corders/1", "/items/..%5Corders", "/items/%2e%2e%2forders", "/%2forders", "/orders%2f1",
			"/items/..;%2forders", "/items%2fprivate", "/orders/status%2f..%2f1",
		}},
		{"CVE-2021-32779 and CVE-2026-41059 fragments", malformed, []string{"/orders#", "/items#/../orders", "/items#", "/orders#/status", "/orders?x#y", "/orders?#", "/items/#/../../orders"}},
		{"CVE-2019-9900 NUL", malformed, []string{"/items/private%00", "/orders%00", "/items/..%00/orders", "/items/private\x00", "/orders\x00/status", "/items\x00/../orders"}},
		{"blanks and control characters", malformed, []string{"/items/ ../orders", "/items/\t../orders", "/items/.. /orders", "/ orders", "/orders\x7f", "/orders\x01", "/orders\v"}},
		{"invalid escapes", challenged, []string{"/orders/%", "/orders/%zz/1", "/orders/%u002e%u002e/items", "/items/%zz/../../orders", "/items/%/../private", "/items/%2/../private"}},
		{"targets that are no path", malformed, []string{"orders", "orders/1", "*", "?x", "../orders", ".", "http:/orders", "http:orders", "/orders /status", `\orders`}},
		{"GHSA-gx7w and CVE-2026-48794 a prefix ends at a segment", unknown, []string{
			"/ordersfoo", "/orders-x", "/orders.", "/orders./1", "/orders..", "/orders.json", "/orders%20", "/orders%20/1", "/orders%09", "/orders%3fx",
			"/itemsprivate", "/items-private", "/vaults", "/orders;x=1", "/orders;/1", "/orders%3bx/1",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var all []attempt
			for _, path := range c.paths {
				statuses := []int{c.status}
				if c.status == malformed {
					statuses = append(statuses, 0) // the stream or the connection is closed
				}
				all = append(all, f.h1(rawGet(path), c.status), f.h2("GET", path, "", nil, statuses...))
			}
			f.refuses(t, all...)
		})
	}
}

// harmlessPaths reach a public service under the path that was matched, without anything that the
// service could interpret differently (CVE-2023-33189, CVE-2025-66490, CVE-2026-40912).
func (f *fortress) harmlessPaths(t *testing.T) {
	for path, seen := range map[string]string{
		"/items/%252e%252e/orders/1":   "/base/%252e%252e/orders/1", // decoded once, it is still one segment
		"/items/%252e%252e%252forders": "/base/%252e%252e%252forders",
		"/items/%252f..%252forders":    "/base/%252f..%252forders",
		"/items/%255c..%255corders":    "/base/%255c..%255corders",
		"/items/../items/./5":          "/base/5",
		"/items/%2e%2e/items/5":        "/base/5",
		"/items//../orders/1":          "/base/orders/1", // `..` removes the empty segment
		"/items//..//orders/1":         "/base/orders/1",
		"/items/;/../orders/1":         "/base/orders/1",
		"/items/%23/../orders":         "/base/orders",
		"/items/..;/items/5":           "/base/5",
		"/items/.../orders":            "/base/.../orders",
		"/items/....//orders":          "/base/..../orders",
		`/items\5`:                     "/base/5",
		"/items/a%20b":                 "/base/a%20b",
		"/items?/../orders":            "/base?/../orders",
		"/items?x=%2f..%2forders%00":   "/base?x=%2f..%2forders%00",
		"/items/5?../../orders":        "/base/5?../../orders",
		"/order":                       "/base",
		"/order/s":                     "/base/s",
		"/orders/STATUS/x":             "/base/x",
		"/orders/status/../status/x":   "/base/x",
		"/orders/status//../x":         "/base/x",
	} {
		f.forget()
		want(t, "HTTP/1 "+path, f.Raw(t, rawGet(path)), http.StatusOK, "")
		h1 := only(t, f.public)
		want(t, "HTTP/2 "+path, f.H2(t, "GET", path, ""), http.StatusOK, "")
		h2 := only(t, f.public)
		if h1.Path != seen || h2.Path != seen {
			t.Errorf("%s reached the upstream as %s, over HTTP/2 as %s, want %s", path, h1.Path, h2.Path, seen)
		}
		none(t, f.secured)
	}
	// Letters that a lenient server might fold into others. HTTP/1 rejects these bytes; from HTTP/2
	// they are escaped.
	for path, seen := range map[string]string{
		"/items/\uff0e\uff0e/orders":  "/base/%EF%BC%8E%EF%BC%8E/orders",
		"/items/..\uff0forders":       "/base/..%EF%BC%8Forders",
		"/items/\x80../orders":        "/base/%80../orders",
		"/items/\xc0\xae\xc0\xae/x":   "/base/%C0%AE%C0%AE/x",
		"/items/privat\u0435":         "/base/privat%D0%B5",
		"/order/\u017f":               "/base/%C5%BF",
		"/items/\u2044..\u2044orders": "/base/%E2%81%84..%E2%81%84orders",
	} {
		f.forget()
		f.refused(t, "HTTP/1 "+path, f.Raw(t, rawGet(path)), http.StatusBadRequest)
		want(t, "HTTP/2 "+path, f.H2(t, "GET", path, ""), http.StatusOK, "")
		if got := only(t, f.public); got.Path != seen {
			t.Errorf("%q reached the upstream as %s, want %s", path, got.Path, seen)
		}
		none(t, f.secured)
	}
}

// targetsAndHosts tries to select the destination by other means than the path.
func (f *fortress) targetsAndHosts(t *testing.T) {
	t.Run("targets in absolute form", func(t *testing.T) {
		var all []attempt
		for _, target := range []string{
			"http://h/orders/1", "http://h/items/../orders", "http://items/orders", "http://user@h/orders", "HTTP://h/orders", "http://h//orders", "http://127.0.0.1:1/orders",
			"http://h/items/../orders?x=http://h/items",
		} {
			all = append(all, f.h1(rawGet(target), http.StatusUnauthorized), f.h2("GET", target, "", nil, 0, http.StatusBadRequest))
		}
		for _, target := range []string{"https://h/orders", "ftp://h/orders", "http:///orders", "http://h:x/orders", "http://", "//h/orders#"} {
			all = append(all, f.h1(rawGet(target), http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound))
			if f.tls != nil { // a URL with https is for this listener
				all[len(all)-1].statuses = append(all[len(all)-1].statuses, http.StatusUnauthorized)
			}
		}
		f.refuses(t, all...)
		want(t, "a public path", f.Raw(t, rawGet("http://elsewhere.example/items/5")), http.StatusOK, "")
		if got := only(t, f.public); got.Path != "/base/5" {
			t.Errorf("the upstream got %s", got.Path)
		}
	})
	t.Run("hosts that do not matter (CVE-2026-27588)", func(t *testing.T) {
		for _, lines := range [][]string{
			{"host: items"}, {"host: h", "host: evil"}, {"Host: evil", "HOST: h"}, {"host: 127.0.0.1:1"}, {"host: h."}, {"host:"}, {"host: h, evil"}, {"host: h/items"}, {"host: [::1]"},
			{"host: h", "x-forwarded-host: items"}, {"host: h", "x-host: items"}, {"host: h", "x-forwarded-server: items"},
		} {
			f.refused(t, headerLines(lines), f.Raw(t, "GET /orders HTTP/1.1\r\n"+headerLines(lines)+"\r\n"), http.StatusUnauthorized, http.StatusBadRequest)
		}
	})
	t.Run("CVE-2019-18802 invalid hosts", func(t *testing.T) {
		for _, lines := range [][]string{{}, {"host : h"}, {"host: h\x00"}, {" host: h"}, {"host\t: h"}, {"host: h h"}, {"ho st: h"}} {
			got := f.Raw(t, "GET /items HTTP/1.1\r\n"+headerLines(lines)+"\r\n")
			f.refused(t, headerLines(lines), got, http.StatusBadRequest)
		}
	})
	t.Run("CVE-2023-35944 the scheme in another case, or another", func(t *testing.T) {
		var all []attempt
		for _, scheme := range []string{"HTTP", "https", "HTTPS", "ftp", "http ", "javascript"} {
			all = append(all, f.h2("GET", "/orders", "", [][2]string{{":scheme", scheme}}, http.StatusUnauthorized, http.StatusForbidden, http.StatusBadRequest, 0))
		}
		f.refuses(t, all...)
	})
	t.Run("CVE-2023-27491 fields that hold more than one thing", func(t *testing.T) {
		var all []attempt
		for _, fields := range [][][2]string{
			{{":path", "/items HTTP/1.1\r\nhost: h\r\n\r\nGET /smuggled"}}, {{":path", "/items /orders"}}, {{":authority", "h\r\nx: y"}}, {{":authority", "user@h"}},
			{{":method", "GET /orders"}}, {{":method", "GET\r\n"}}, {{":method", ""}}, {{":path", ""}}, {{":scheme", "http://h/orders"}},
			{{"x", "y\r\nz: w"}}, {{"x\r\ny", "z"}}, {{"x y", "z"}}, {{"", "z"}}, {{"x", "y\x00z"}}, {{"X-Upper", "y"}}, {{"x-user:id", "y"}},
		} {
			all = append(all, f.h2("GET", "/items", "", fields, 0, http.StatusBadRequest, http.StatusForbidden, http.StatusMethodNotAllowed))
		}
		// A pseudo-field twice, after other fields, or of responses.
		for _, fields := range [][][2]string{
			{{":path", "/items"}, {":path", "/orders"}}, {{":path", "/orders"}, {":path", "/items"}}, {{":method", "GET"}, {":method", "OPTIONS"}},
			{{":scheme", "http"}, {":scheme", "https"}}, {{":authority", "h"}, {":authority", "evil"}}, {{":status", "200"}}, {{":protocol", "websocket"}},
		} {
			all = append(all, f.h2("GET", "/items", "", fields, 0, http.StatusBadRequest))
		}
		all = append(all, attempt{"a path after a header", func() (answer, error) {
			return f.tryFields([][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "h"}, {"x", "y"}, {":path", "/items"}}, "")
		}, []int{0, http.StatusBadRequest}})
		f.refuses(t, all...)
	})
}
