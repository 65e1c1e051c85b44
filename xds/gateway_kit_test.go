package xds

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"gatepost/codec"
	"gatepost/envoy/envoytest"
	"gatepost/testrun"
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

// startChecker starts the server, with the other services that register adds.
func startChecker(t testing.TB, register ...func(*grpc.Server)) *checker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &checker{addr: l.Addr().String(), server: grpc.NewServer(grpc.ForceServerCodecV2(codec.New())), reply: allow}
	authv3.RegisterAuthorizationServer(c.server, c)
	for _, add := range register {
		add(c.server)
	}
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
	log     lines
}

// lines are the lines of an access log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(line))
	return len(line), nil
}

// await returns the lines when there are n.
func (l *lines) await(t testing.TB, n int) (all []string) {
	t.Helper()
	envoytest.Eventually(t, fmt.Sprintf("%d lines of the access log", n), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		all = append([]string(nil), l.all...)
		return len(all) >= n
	})
	if len(all) != n {
		t.Fatalf("%d lines, want %d:\n%s", len(all), n, strings.Join(all, ""))
	}
	return all
}

// until returns the lines before the first one that is the last.
func (l *lines) until(t testing.TB, isLast func(line string) bool) (before []string) {
	t.Helper()
	envoytest.Eventually(t, "the last line of the access log", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		n := slices.IndexFunc(l.all, isLast)
		before = slices.Clone(l.all[:max(n, 0)])
		return n >= 0
	})
	return before
}

// startGateway fills LISTEN, SECURED and PUBLIC into the definitions and starts Envoy with them.
func startGateway(t testing.TB, text string) *gateway {
	t.Helper()
	return startGatewayWith(t, text, testOptions)
}

func startGatewayWith(t testing.TB, text string, options Options, register ...func(*grpc.Server)) *gateway {
	t.Helper()
	testrun.Plain(t)
	envoytest.Require(t)
	g := &gateway{checker: startChecker(t, register...), t: t, addr: envoytest.Addr(t),
		tokens: envoytest.Upstream(t), secured: envoytest.Upstream(t), public: envoytest.Upstream(t)}
	text = strings.NewReplacer("LISTEN", g.addr, "SECURED", g.secured.URL(), "PUBLIC", g.public.URL()).Replace(text)
	snapshot := buildWith(t, text, options)
	envoytest.Start(t, envoytest.Options{
		GRPC: g.checker.addr, HTTP: g.tokens.Addr(), Resources: messages(snapshot), Listen: []string{g.addr}, AccessLog: &g.log,
	})
	return g
}

// of returns the gateway for one of several tests: nothing was recorded, and everybody answers as at first.
func (g *gateway) of(t *testing.T) *gateway {
	g.answers(allow)
	for _, upstream := range []*envoytest.Recorder{g.tokens, g.secured, g.public} {
		usual := upstream.Handler()
		t.Cleanup(func() { upstream.SetHandler(usual.ServeHTTP) })
		upstream.Reset()
	}
	return &gateway{checker: g.checker, t: t, addr: g.addr, tokens: g.tokens, secured: g.secured, public: g.public}
}

// do sends a request over a connection that it closes; headers are "name: value". The answer to a HEAD is not read.
func (g *gateway) do(method, path string, headers ...string) envoytest.Response {
	g.t.Helper()
	return g.raw(method, path, append([]string{"connection: close"}, headers...)...)
}

// raw is do without a Connection header.
func (g *gateway) raw(method, path string, headers ...string) envoytest.Response {
	g.t.Helper()
	got := envoytest.Responses(envoytest.RawRequest(g.t, g.addr, request(method, path, headers...)))
	if method == "HEAD" { // what is answered has no body, though it tells of one
		return envoytest.Response{}
	}
	if len(got) != 1 {
		g.t.Fatalf("%s %s: %d answers", method, path, len(got))
	}
	return got[0]
}

func request(method, path string, headers ...string) []byte {
	text := fmt.Sprintf("%s %s HTTP/1.1\r\nhost: gate.example:5500\r\n", method, path)
	for _, h := range headers {
		text += h + "\r\n"
	}
	return []byte(text + "\r\n")
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

// reached returns what came to an upstream since the last time: "METHOD path", one line each.
func reached(r *envoytest.Recorder) string {
	var out []string
	for _, q := range r.Requests() {
		out = append(out, q.Method+" "+q.Path)
	}
	r.Reset()
	return strings.Join(out, "\n")
}
