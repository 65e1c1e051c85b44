package envoytest_test

import (
	"net/http"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestUpstreamRecordsRequests(t *testing.T) {
	upstream := envoytest.Upstream(t)
	addr := envoytest.Addr(t)
	e := envoytest.Start(t, envoytest.Options{Resources: envoytest.Forward(t, addr, upstream.Addr())})

	t.Run("raw bytes over HTTP/1.1", func(t *testing.T) {
		upstream.Reset()
		raw := envoytest.RawRequest(t, addr, []byte("POST /a%2Fb?c=%20 HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 2\r\nx-odd: 1\r\n\r\nhi"))
		responses := envoytest.Responses(raw)
		if len(responses) != 1 || responses[0].Status != 200 {
			t.Fatalf("answer %q, want one with 200", raw)
		}
		if want := `"path":"/a%2Fb?c=%20"`; !strings.Contains(responses[0].Body, want) {
			t.Errorf("echo %s, want %s in it", responses[0].Body, want)
		}
		got := upstream.Requests()
		if len(got) != 1 {
			t.Fatalf("%d requests reached the upstream, want 1", len(got))
		}
		r := got[0]
		if r.Method != "POST" || r.Path != "/a%2Fb?c=%20" || r.Host != "shop.example" || r.Body != "hi" || r.Header.Get("X-Odd") != "1" {
			t.Errorf("recorded %+v", r)
		}
		if !strings.HasPrefix(upstream.Raw(), "POST /a%2Fb?c=%20 HTTP/1.1\r\n") {
			t.Errorf("recorded bytes %q", upstream.Raw())
		}
	})

	t.Run("the answer to a HEAD has no body to wait for", func(t *testing.T) {
		raw := envoytest.RawRequest(t, addr, []byte("HEAD / HTTP/1.1\r\nhost: h\r\n\r\n"))
		if !strings.HasPrefix(string(raw), "HTTP/1.1 200 OK\r\n") {
			t.Errorf("answer %q", raw)
		}
	})

	t.Run("two requests in one write get two responses", func(t *testing.T) {
		raw := envoytest.RawRequest(t, addr, []byte("GET /1 HTTP/1.1\r\nhost: h\r\n\r\nGET /2 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"))
		if got := envoytest.Responses(raw); len(got) != 2 {
			t.Errorf("%d responses in %q, want 2", len(got), raw)
		}
	})

	t.Run("HTTP/2 by prior knowledge", func(t *testing.T) {
		upstream.Reset()
		res, err := envoytest.H2Client(t).Get("http://" + addr + "/two")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.ProtoMajor != 2 || res.StatusCode != 200 || len(upstream.Requests()) != 1 {
			t.Errorf("response %s over %s, %d requests recorded", res.Status, res.Proto, len(upstream.Requests()))
		}
	})

	t.Run("an HTTP/2 request that no client library would send", func(t *testing.T) {
		upstream.Reset()
		head := [][2]string{{":method", "FOO"}, {":scheme", "http"}, {":authority", "h"}, {":path", "/odd?%2F"}}
		if a := envoytest.H2Request(t, addr, head, "body"); a.Status != "200" || !strings.Contains(a.Body, `"body":"body"`) {
			t.Errorf("answer %+v", a)
		}
		if got := upstream.Requests(); len(got) != 1 || got[0].Method != "FOO" || got[0].Path != "/odd?%2F" {
			t.Errorf("recorded %+v", got)
		}
		if a := envoytest.H2Request(t, addr, append(head, [2]string{"transfer-encoding", "chunked"}), ""); !a.Closed && a.Reset == "" {
			t.Errorf("a field that HTTP/2 forbids got a response: %+v", a)
		}
		if n := len(upstream.Requests()); n != 1 {
			t.Errorf("%d requests reached the upstream, want 1", n)
		}
	})

	t.Run("a handler replaces the response", func(t *testing.T) {
		upstream.SetHandler(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
		res, err := envoytest.Client(t).Get("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusTeapot {
			t.Errorf("answer %s, want 418", res.Status)
		}
	})

	if n := e.Stat("http.test.downstream_rq_completed"); n < 6 {
		t.Errorf("Envoy counted %d requests, want at least 6", n)
	}
}

func TestStopEndsTheProcess(t *testing.T) {
	upstream := envoytest.Upstream(t)
	addr := envoytest.Addr(t)
	e := envoytest.Start(t, envoytest.Options{Resources: envoytest.Forward(t, addr, upstream.Addr())})
	if !e.Ready() || !envoytest.Accepts(addr) {
		t.Fatal("Envoy is not ready after Start")
	}
	e.Stop()
	if e.Ready() || envoytest.Accepts(addr) {
		t.Error("Envoy is there after Stop")
	}
}

func TestValidateReturnsEnvoysErrors(t *testing.T) {
	good := envoytest.Forward(t, envoytest.Addr(t), "127.0.0.1:1")
	if verdict := envoytest.ValidateResources(t, good...); verdict != "" {
		t.Errorf("good resources: %s", verdict)
	}
	if verdict := envoytest.ValidateResources(t, good[0]); !strings.Contains(verdict, "unknown cluster 'upstream'") {
		t.Errorf("a route to nowhere: %q, want that the cluster is unknown", verdict)
	}
}
