package xds

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

// TestNoTrailersReachAnHTTP2Upstream: a server could take the user from them. (Envoy sends none by HTTP/1.1.)
func TestNoTrailersReachAnHTTP2Upstream(t *testing.T) {
	trailers := make(chan http.Header, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // trailers come after the body
		trailers <- r.Trailer
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	g := startGateway(t, strings.ReplaceAll(`
listen: LISTEN
services:
  - {name: secured, path: /secured, upstreams: ["UPSTREAM"]}
  - {name: public, path: /public, authenticate: false, upstreams: ["UPSTREAM"]}
  - {name: calls, path: /calls, grpc: true, upstreams: ["UPSTREAM"]}
`, "UPSTREAM", "h2c://"+server.Listener.Addr().String()))
	client := envoytest.H2Client(t)
	for _, path := range []string{"/secured", "/SECURED", "/public", "/calls"} {
		body := io.MultiReader(strings.NewReader("hi")) // without a Content-Length
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+g.addr+path, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Trailer = http.Header{"X-User-Id": {"mallory"}, "Remote-User": {"mallory"}, "X-Checksum": {"5"}}
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d", path, response.StatusCode)
		}
		for name, values := range <-trailers { // the header Trailer has announced the names
			if len(values) > 0 {
				t.Errorf("%s: the upstream received the trailer %s: %q", path, name, values)
			}
		}
	}
}
