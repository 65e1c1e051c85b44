package xds

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

const withBodies = `
listen: LISTEN
services:
  - {name: small, path: /small, authenticate: false, upstreams: ["PUBLIC"], max_request_bytes: 1KB}
  - {name: secured, path: /secured, upstreams: ["SECURED"], max_request_bytes: 1000, rate_limits: [{requests: 1000000, by: user}]}
  - {name: texts, path: /texts, authenticate: false, upstreams: ["PUBLIC"], compression: true, max_request_bytes: 1KB, websocket: false}
  - {name: chat, path: /chat, authenticate: false, upstreams: ["PUBLIC"], compression: true, websocket: true}
  - {name: plain, path: /plain, authenticate: false, upstreams: ["PUBLIC"]}
`

// TestGatewayThatLooksAtBodies runs the tests of bodies on one Envoy.
func TestGatewayThatLooksAtBodies(t *testing.T) {
	t.Parallel()
	g := startGateway(t, withBodies)
	for name, test := range map[string]func(*testing.T, *gateway){
		"a large request is refused":          aLargeRequestIsRefused,
		"texts are compressed":                textsAreCompressed,
		"a compressed answer is the upstream": aCompressedAnswerIsTheUpstreams,
	} {
		t.Run(name, func(t *testing.T) { test(t, g.of(t)) })
	}
}

func aLargeRequestIsRefused(t *testing.T, g *gateway) {
	const chunked = "transfer-encoding: chunked"
	for _, c := range []struct {
		path, body string
		announced  bool
		status     int
	}{
		{"/small", strings.Repeat("x", 1000), true, 200},
		{"/small", strings.Repeat("x", 1000), false, 200},
		{"/small", strings.Repeat("x", 1001), true, 413},
		{"/small", strings.Repeat("x", 1001), false, 413},
		{"/SMALL/5", strings.Repeat("x", 1001), true, 413},
		{"/secured", strings.Repeat("x", 1001), true, 413},
		{"/texts", strings.Repeat("x", 1001), true, 413},
		{"/plain", strings.Repeat("x", 100_000), true, 200},
	} {
		g.public.Reset()
		head := fmt.Sprintf("content-length: %d", len(c.body))
		body := c.body
		if !c.announced {
			head, body = chunked, fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(c.body), c.body)
		}
		raw := envoytest.RawRequest(t, g.addr, append(request("POST", c.path, "connection: close", fromShop, head), body...))
		got := envoytest.Responses(raw)[0]
		if got.Status != c.status {
			t.Errorf("%s with %d bytes, announced %t: %d, want %d", c.path, len(c.body), c.announced, got.Status, c.status)
		}
		if c.status != 413 {
			continue
		}
		if got.Body != `"The request is too large."` || got.Header.Get("access-control-allow-origin") != "https://shop.example" {
			t.Errorf("%s: %s %v", c.path, got.Body, got.Header)
		}
		if c.announced && reached(g.public) != "" {
			t.Errorf("%s: the upstream was called", c.path)
		}
	}
	g.answers(deny(401, `"no"`))
	if got := envoytest.Responses(envoytest.RawRequest(t, g.addr, append(request("POST", "/secured", "connection: close", "content-length: 1001"), strings.Repeat("x", 1001)...)))[0]; got.Status != 401 {
		t.Errorf("without a token: %d, want 401", got.Status)
	}
}

// text is the body that the upstream sends in these tests.
var text = strings.Repeat("Once upon a time. ", 100)

func textsAreCompressed(t *testing.T, g *gateway) {
	for _, c := range []struct {
		name, path, accepts, contentType, more, want string
	}{
		{"all alike", "/texts", "gzip, br, zstd", "text/html; charset=utf-8", "", "zstd"},
		{"gzip alone", "/TEXTS", "gzip", "application/json", "", "gzip"},
		{"br alone", "/texts", "br", "application/json", "", "br"},
		{"what a client likes best", "/texts", "gzip;q=1, zstd;q=0.1", "text/plain", "", "gzip"},
		{"nothing", "/texts", "identity", "text/plain", "", ""},
		{"no header", "/texts", "", "text/plain", "", ""},
		{"an image", "/texts", "gzip", "image/png", "", ""},
		{"events", "/texts", "gzip", "text/event-stream", "", ""},
		{"a range", "/texts", "gzip", "text/plain", "range", ""},
		{"a small one", "/texts", "gzip", "text/plain", "small", ""},
		{"one that is compressed", "/texts", "gzip", "text/plain", "content-encoding", "br"},
		{"another service", "/plain", "gzip", "text/plain", "", ""},
	} {
		g.public.SetHandler(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", c.contentType)
			w.Header().Set("ETag", `"7"`)
			switch c.more {
			case "small":
				_, _ = io.WriteString(w, "small")
				return
			case "range":
				w.WriteHeader(http.StatusPartialContent)
			case "content-encoding":
				w.Header().Set("Content-Encoding", "br")
			}
			_, _ = io.WriteString(w, text)
		})
		var headers []string
		if c.accepts != "" {
			headers = append(headers, "accept-encoding: "+c.accepts)
		}
		got := g.do("GET", c.path, headers...)
		if got.Header.Get("content-encoding") != c.want {
			t.Errorf("%s: %q, want %q", c.name, got.Header.Get("content-encoding"), c.want)
		}
		if etag := got.Header.Get("etag"); (etag == `W/"7"`) != (c.want != "" && c.more == "") {
			t.Errorf("%s: the ETag is %s", c.name, etag)
		}
		if vary := got.Header.Values("vary"); c.want != "" && c.more == "" && !strings.Contains(strings.ToLower(strings.Join(vary, ",")), "accept-encoding") {
			t.Errorf("%s: Vary is %q", c.name, vary)
		}
	}
}

func aCompressedAnswerIsTheUpstreams(t *testing.T, g *gateway) {
	g.public.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, text)
	})
	reader, err := gzip.NewReader(strings.NewReader(g.do("GET", "/texts", "accept-encoding: gzip").Body))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(reader); err != nil || string(got) != text {
		t.Errorf("gzip: %d bytes, %v", len(got), err)
	}
	g.public.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		conn, buffer, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(buffer, "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"+text)
		_ = buffer.Flush()
	})
	raw := envoytest.RawRequest(t, g.addr, request("GET", "/chat", "accept-encoding: gzip", "connection: upgrade", "upgrade: websocket",
		"sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="))
	if !strings.Contains(string(raw), "101 Switching") || !strings.HasSuffix(string(raw), text) {
		t.Errorf("a WebSocket: %q", raw)
	}
}
