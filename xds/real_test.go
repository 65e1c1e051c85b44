package xds

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"gatepost/envoy/envoytest"
)

// checker stands in for the sidecar: it notes what it is asked and answers as it is told.
type checker struct {
	authv3.UnimplementedAuthorizationServer
	addr   string
	server *grpc.Server

	mu    sync.Mutex
	seen  []*authv3.AttributeContext
	reply func(*authv3.AttributeContext) *authv3.CheckResponse
}

func startChecker(t testing.TB) *checker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &checker{addr: l.Addr().String(), server: grpc.NewServer(), reply: allow}
	authv3.RegisterAuthorizationServer(c.server, c)
	served := make(chan error, 1)
	go func() { served <- c.server.Serve(l) }()
	t.Cleanup(func() { c.server.Stop(); <-served })
	return c
}

func (c *checker) Check(_ context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, req.GetAttributes())
	if r := c.reply(req.GetAttributes()); r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("no answer")
}

func (c *checker) answers(reply func(*authv3.AttributeContext) *authv3.CheckResponse) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.reply = nil, reply
}

func (c *checker) asked() []*authv3.AttributeContext {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*authv3.AttributeContext(nil), c.seen...)
}

func allow(*authv3.AttributeContext) *authv3.CheckResponse {
	return &authv3.CheckResponse{
		Status: &status.Status{Code: int32(code.Code_OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{setHeader("x-user-id", "ada")},
		}},
	}
}

func deny(statusCode typev3.StatusCode, body string, headers ...*corev3.HeaderValueOption) func(*authv3.AttributeContext) *authv3.CheckResponse {
	return func(*authv3.AttributeContext) *authv3.CheckResponse {
		return &authv3.CheckResponse{
			Status: &status.Status{Code: int32(code.Code_PERMISSION_DENIED)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
				Status: &typev3.HttpStatus{Code: statusCode}, Body: body, Headers: headers,
			}},
		}
	}
}

func noAnswer(*authv3.AttributeContext) *authv3.CheckResponse { return nil }

// gateway is a real Envoy with the configuration made from definitions, a stand-in for the sidecar, one for the
// token handler, and upstreams that record what reaches them.
type gateway struct {
	*checker
	t       testing.TB
	addr    string
	tokens  *envoytest.Recorder
	secured *envoytest.Recorder
	public  *envoytest.Recorder
}

// startGateway fills LISTEN, SECURED and PUBLIC into the definitions and starts Envoy with them.
func startGateway(t testing.TB, text string) *gateway {
	t.Helper()
	envoytest.Require(t)
	g := &gateway{checker: startChecker(t), t: t, addr: envoytest.Addr(t),
		tokens: envoytest.Upstream(t), secured: envoytest.Upstream(t), public: envoytest.Upstream(t)}
	text = strings.NewReplacer("LISTEN", g.addr, "SECURED", g.secured.URL(), "PUBLIC", g.public.URL()).Replace(text)
	snapshot := build(t, text)
	envoytest.Start(t, envoytest.Options{
		GRPC: g.checker.addr, HTTP: g.tokens.Addr(), Resources: messages(snapshot), Listen: []string{g.addr},
	})
	return g
}

// do sends a request; headers are "name: value".
func (g *gateway) do(method, path string, headers ...string) envoytest.Response {
	g.t.Helper()
	req := fmt.Sprintf("%s %s HTTP/1.1\r\nhost: gate.example:5500\r\nconnection: close\r\n", method, path)
	for _, h := range headers {
		req += h + "\r\n"
	}
	got := envoytest.Responses(envoytest.RawRequest(g.t, g.addr, []byte(req+"\r\n")))
	if len(got) != 1 {
		g.t.Fatalf("%s %s: %d answers", method, path, len(got))
	}
	return got[0]
}

const shop = `
listen: LISTEN
tokens: {path: /Token, authenticator: {url: "http://users.example/authenticate"}}
cors: {expose_headers: [x-total]}
services:
  - {name: orders, path: /orders, upstreams: ["SECURED"], allowed_methods: [GET, POST, DELETE]}
  - {name: items, path: /items, authenticate: false, upstreams: ["PUBLIC/base"], allowed_methods: [GET]}
  - {name: deep, path: /items/Deep, upstreams: ["SECURED"], keep_prefix: true}
`

func TestProbe(t *testing.T) {
	g := startGateway(t, shop)
	show := func(method, path string, headers ...string) {
		g.answers(g.reply)
		for _, r := range []*envoytest.Recorder{g.tokens, g.secured, g.public} {
			r.Reset()
		}
		res := g.do(method, path, headers...)
		t.Logf("== %s %s %v\n   %d %q\n   %v", method, path, headers, res.Status, res.Body, res.Header)
		for _, a := range g.asked() {
			t.Logf("   checked %v %v", a.GetContextExtensions(), a.GetRequest().GetHttp().GetHeaders())
		}
		for name, r := range map[string]*envoytest.Recorder{"tokens": g.tokens, "secured": g.secured, "public": g.public} {
			for _, q := range r.Requests() {
				t.Logf("   %s got %s %s %s %v", name, q.Method, q.Path, q.Host, q.Header)
			}
		}
	}
	o := "origin: https://shop.example"
	show("GET", "/orders/5?x=1", "authorization: abc", "x-user-id: evil", "x-forwarded-host: e", o)
	show("GET", "/ORDERS?x=1")
	show("GET", "/orders/")
	show("GET", "/ordersfoo", o)
	show("GET", "/ordersfoo")
	show("PUT", "/orders/5", o)
	show("PUT", "/orders/5")
	show("OPTIONS", "/orders/5", o, "access-control-request-method: GET")
	show("OPTIONS", "/orders/5", o, "access-control-request-method:")
	show("OPTIONS", "/orders/5", "origin:", "access-control-request-method: GET")
	show("OPTIONS", "/orders/5", "access-control-request-method: GET")
	show("OPTIONS", "/nobody", o, "access-control-request-method: GET")
	show("GET", "/Items/A/b", "x-user-id: evil", o)
	show("GET", "/items")
	show("GET", "/ITEMS/DEEP/Q")
	show("POST", "/TOKEN/", o)
	show("POST", "/token")
	show("GET", "/token", o)
	show("GET", "/token/sessions")
	show("DELETE", "/token/Sessions/abC")
	show("GET", "/token/x", o)
	show("GET", "/.gatepost/version")
	show("GET", "/orders%2f5", o)
	show("GET", "/orders%2f5")
	g.reply = noAnswer
	show("GET", "/orders/5", o)
	g.reply = deny(401, `"no"`)
	show("GET", "/orders/5", o)
	g.reply = deny(503, `"own"`, setHeader("retry-after", "7"))
	show("GET", "/orders/5", o)
	show("GET", "/items/5", o)
	g.public.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("access-control-allow-origin", "*")
		w.Header().Set("vary", "accept")
		w.WriteHeader(503)
	})
	show("GET", "/items/5", o)
	g.public.SetHandler(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	show("GET", "/items/5", o)
}
