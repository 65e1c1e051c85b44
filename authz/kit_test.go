package authz

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"gatepost/tokens"
)

func TestMain(m *testing.M) {
	runBenchServer() // does not return where this process is one
	goleak.VerifyTestMain(m)
}

// sessions is a store in memory. An entry of outage is what a look-up of any token ends in.
type sessions struct {
	mu     sync.Mutex
	live   map[tokens.Hash]*tokens.Session
	outage func(context.Context) error
	asked  int
}

func (s *sessions) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	s.mu.Lock()
	s.asked++
	found, outage := s.live[h], s.outage
	s.mu.Unlock()
	if outage != nil {
		return nil, outage(ctx)
	}
	if found == nil {
		return nil, tokens.ErrUnknown
	}
	return found, nil
}

// open keeps a session for an hour and returns its token.
func (s *sessions) open(t testing.TB, f tokens.Format, user string, scopes ...string) tokens.Token {
	t.Helper()
	token, err := tokens.Mint(f)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s.live[token.Hash()] = &tokens.Session{
		Hash: token.Hash(), ID: "public-id", User: user, Scopes: scopes,
		Issued: now, Expires: now.Add(time.Hour), Ends: now.Add(time.Hour),
	}
	return token
}

// testServer is a server and everything that it reports.
type testServer struct {
	*Server
	store    *sessions
	log      *bytes.Buffer
	registry *prometheus.Registry
}

func newTestServer(t testing.TB) *testServer {
	t.Helper()
	g := &testServer{
		store:    &sessions{live: map[tokens.Hash]*tokens.Session{}},
		log:      new(bytes.Buffer),
		registry: prometheus.NewPedanticRegistry(),
	}
	server, err := New(Config{
		Sessions:   tokens.LookupFunc(g.store.Lookup),
		Logger:     slog.New(slog.NewJSONHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registerer: g.registry,
	})
	if err != nil {
		t.Fatal(err)
	}
	g.Server = server
	return g
}

// check asks in both ways, by the generated types and by bytes, and fails the test if the answers differ. Both have
// the same time, since the time that a token is still valid for is part of the answer.
func (g *testServer) check(t testing.TB, r *authv3.CheckRequest) *authv3.CheckResponse {
	t.Helper()
	clock, at := g.now, g.now()
	g.now = func() time.Time { return at }
	defer func() { g.now = clock }()
	resp, err := g.Check(t.Context(), r)
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	raw, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var c call
	if err := c.UnmarshalMessage(raw); err != nil {
		t.Fatalf("reading bytes: %v", err)
	}
	same, err := g.respond(t.Context(), &c)
	if err != nil {
		t.Fatalf("respond: %v", err)
	}
	if !proto.Equal(resp, same) {
		t.Fatalf("two answers to one request:\n%v\n%v", resp, same)
	}
	if err := validateResponse(resp); err != nil {
		t.Fatal(err)
	}
	return resp
}

var (
	shop = Shared{UserHeader: "x-user-id"}
	// everywhere is what is shared where a decision depends on every header that it can.
	everywhere = Shared{UserHeader: "x-user-id", Origins: []string{"https://shop.example"}, Cookie: "__Host-s", Subprotocol: "gatepost.bearer"}
)

// asking is a CheckRequest as Envoy sends it for a route with the rule, on a virtual host with the shared part.
func asking(shared Shared, rule Rule, headers map[string]string) *authv3.CheckRequest {
	return withExtensions(merged(shared.Extensions(), rule.Extensions()), headers)
}

// merged merges as Envoy does: the route's own over the virtual host's.
func merged(parts ...*extauthzv3.ExtAuthzPerRoute) map[string]string {
	all := map[string]string{}
	for _, p := range parts {
		maps.Copy(all, p.GetCheckSettings().GetContextExtensions())
	}
	return all
}

func withExtensions(ext, headers map[string]string) *authv3.CheckRequest {
	h := map[string]string{"x-request-id": "5f0c7a2e-0000-4000-8000-000000000001"}
	maps.Copy(h, headers)
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "192.0.2.7", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 40000}},
		}}},
		Destination: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "192.0.2.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 5500}},
		}}},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "11111", Method: "GET", Path: "/orders/5?key=in-the-query", Host: "shop.example", Scheme: "http",
			Protocol: "HTTP/1.1", Size: -1, Headers: h,
		}},
		ContextExtensions: ext,
	}}
}

var errDown = errors.Join(tokens.ErrUnavailable, errors.New("connection refused"))

// header returns the value of an answer's header; "" where there is none.
func header(list []*corev3.HeaderValueOption, name string) string {
	for _, h := range list {
		if h.GetHeader().GetKey() == name {
			return h.GetHeader().GetValue()
		}
	}
	return ""
}
