package xds

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"testing"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// http3 returns a client that speaks HTTP/3 and names a server.
func (g *httpsGateway) http3(t *testing.T, name string, patience time.Duration) *http.Client {
	t.Helper()
	transport := &http3.Transport{
		TLSClientConfig: &tls.Config{ServerName: name, RootCAs: g.ca.Pool()},
		QUICConfig:      &quic.Config{HandshakeIdleTimeout: patience},
		Dial: func(ctx context.Context, _ string, config *tls.Config, quicConfig *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, g.tlsAddr, config, quicConfig)
		},
	}
	t.Cleanup(func() { transport.Close() })
	return &http.Client{Transport: transport}
}

func TestHTTP3HasTheCertificatesRoutesAndRulesOfHTTPS(t *testing.T) {
	t.Parallel()
	g := startHTTPS(t, "", "  http3: true\n", "a.example", "b.example")
	if got := g.get("127.0.0.1", "", "a.example", "/items/5"); got.Header.Get("alt-svc") != `h3=":`+g.tlsAddr[len("127.0.0.1:"):]+`"; ma=86400` {
		t.Errorf("alt-svc is %q", got.Header.Get("alt-svc"))
	}
	if got := g.do("GET", "/items/5"); got.Header.Get("alt-svc") != "" {
		t.Errorf("without TLS, alt-svc is %q", got.Header.Get("alt-svc"))
	}
	for _, name := range []string{"a.example", "b.example"} {
		client := g.http3(t, name, time.Minute)
		get := func(path, token string) (*http.Response, string) {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+name+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("authorization", token)
			req.Header.Set("x-user-id", "mallory")
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil || res.ProtoMajor != 3 || res.TLS.PeerCertificates[0].DNSNames[0] != name {
				t.Errorf("%s: %s, %v, the certificate of %v", path, res.Proto, err, res.TLS.PeerCertificates[0].DNSNames)
			}
			return res, string(body)
		}
		g.answers(deny(typev3.StatusCode_Unauthorized, "no"))
		if res, body := get("/orders/5", "x"); res.StatusCode != http.StatusUnauthorized || body != "no" {
			t.Errorf("a denied request: %s %s", res.Status, body)
		}
		g.answers(allow)
		g.secured.Reset()
		if res, _ := get("/orders/5", "good"); res.StatusCode != http.StatusOK {
			t.Errorf("an allowed request: %s", res.Status)
		}
		got := g.secured.Requests()
		if len(got) != 1 || got[0].Path != "/5" || got[0].Header.Get("x-user-id") != "ada" {
			t.Errorf("the upstream got %+v", got)
		}
		if res, _ := get("/nothing", ""); res.StatusCode != http.StatusNotFound {
			t.Errorf("an unknown path: %s", res.Status)
		}
	}
	if res, err := g.http3(t, "other.example", time.Second).Get("https://other.example/items"); err == nil {
		res.Body.Close()
		t.Error("a name that no certificate has is served")
	}
}
