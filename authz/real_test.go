package authz

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"gatepost/codec"
	"gatepost/convention"
	"gatepost/envoy"
	"gatepost/envoy/envoytest"
	"gatepost/tokens"
)

// recording is the codec, with the bytes of each check kept as Envoy sent them.
type recording struct {
	encoding.CodecV2
	mu     sync.Mutex
	checks [][]byte
}

func (r *recording) Unmarshal(data mem.BufferSlice, v any) error {
	r.mu.Lock()
	r.checks = append(r.checks, data.Materialize())
	r.mu.Unlock()
	return r.CodecV2.Unmarshal(data, v)
}

// behindEnvoy starts an Envoy that asks g about everything and has nothing else between a client and the upstream:
// no filter strips what the client sent. Each rule has a path of its own, /service.
func behindEnvoy(t *testing.T, g *testServer, upstream *envoytest.Recorder, rules ...Rule) (address string, r *recording) {
	t.Helper()
	r = &recording{CodecV2: codec.New()}
	server := grpc.NewServer(append(ServerOptions(), grpc.ForceServerCodecV2(r))...)
	g.Register(server)
	asked, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(asked) }()
	t.Cleanup(server.Stop)

	address = envoytest.Addr(t)
	resources := envoytest.Forward(t, address, upstream.Addr())
	askFirst(t, resources[0].(*listenerv3.Listener), rules)
	envoytest.Start(t, envoytest.Options{GRPC: asked.Addr().String(), Resources: resources})
	return address, r
}

// askFirst puts ext_authz before a listener's router, and the rules on routes.
func askFirst(t *testing.T, l *listenerv3.Listener, rules []Rule) {
	t.Helper()
	pack := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	filter := l.GetFilterChains()[0].GetFilters()[0]
	hcm := new(hcmv3.HttpConnectionManager)
	if err := filter.GetTypedConfig().UnmarshalTo(hcm); err != nil {
		t.Fatal(err)
	}
	const name = "envoy.filters.http.ext_authz"
	ask := &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&extauthzv3.ExtAuthz{
		Services: &extauthzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: envoy.ClusterGRPC}},
			Timeout:         durationpb.New(envoytest.Deadline), // Envoy's 200 ms are too short beside other load
		}},
		TransportApiVersion: corev3.ApiVersion_V3,
		StatusOnError:       &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		ValidateMutations:   true,
	})}}
	hcm.HttpFilters = append([]*hcmv3.HttpFilter{ask}, hcm.GetHttpFilters()...)
	host := hcm.GetRouteConfig().GetVirtualHosts()[0]
	host.TypedPerFilterConfig = map[string]*anypb.Any{name: pack(shop.Extensions())}
	everything := host.GetRoutes()[0]
	host.Routes = nil
	for _, rule := range rules {
		route := proto.Clone(everything).(*routev3.Route)
		route.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/" + rule.Service}}
		route.TypedPerFilterConfig = map[string]*anypb.Any{name: pack(rule.Extensions())}
		host.Routes = append(host.Routes, route)
	}
	host.Routes = append(host.Routes, everything) // a route that somebody forgot the rule of
	filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: pack(hcm)}
}

func TestAnswersOnARealEnvoy(t *testing.T) {
	g := newTestServer(t)
	upstream := envoytest.Upstream(t)
	forward := Rule{Service: "forward", Authenticate: true, Longest: time.Minute, ForwardToken: true}
	scoped := Rule{Service: "scoped", Authenticate: true, Longest: time.Minute, Scopes: []string{"a", "b"}}
	address, sent := behindEnvoy(t, g, upstream, secured, publicRule, forward, scoped)
	token := g.store.open(t, tokens.FormatUUID, "Ann Müller").Reveal()
	stranger, _ := tokens.Mint(tokens.FormatUUID)

	// Whatever a client says about who it is, in every case of letters and twice, must be gone.
	client := envoytest.Client(t)
	spoofed := http.Header{"X-User-Id": {"root", "admin"}}
	ask := func(path string, authorization ...string) (*http.Response, string) {
		t.Helper()
		upstream.Reset()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = spoofed.Clone()
		req.Header["Authorization"] = authorization
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}

	passes := func(path string, user, forwarded []string, authorization ...string) {
		t.Helper()
		resp, body := ask(path, authorization...)
		got := upstream.Requests()
		if resp.StatusCode != 200 || len(got) != 1 {
			t.Fatalf("%s: %d %s, %d requests reached the upstream", path, resp.StatusCode, body, len(got))
		}
		if h := got[0].Header["X-User-Id"]; !slices.Equal(h, user) {
			t.Errorf("%s: the upstream learns the user %q, want %q", path, h, user)
		}
		if h := got[0].Header["Authorization"]; !slices.Equal(h, forwarded) {
			t.Errorf("%s: the upstream sees Authorization %q, want %q", path, h, forwarded)
		}
	}
	passes("/orders", []string{"Ann Müller"}, nil, token)
	passes("/orders", []string{"Ann Müller"}, nil, "Bearer "+token)
	passes("/forward", []string{"Ann Müller"}, []string{"Bearer " + token}, "Bearer "+token)
	passes("/items", nil, nil)
	passes("/items", nil, []string{"Basic eA=="}, "Basic eA==")

	stopped := func(path string, status int, challenge string, authorization ...string) {
		t.Helper()
		resp, body := ask(path, authorization...)
		if n := len(upstream.Requests()); n != 0 {
			t.Errorf("%s: %d requests reached the upstream", path, n)
		}
		var text string
		if err := json.Unmarshal([]byte(body), &text); resp.StatusCode != status || err != nil {
			t.Errorf("%s: %d %q, want %d and a JSON string", path, resp.StatusCode, body, status)
		}
		for name, want := range map[string]string{
			"Content-Type": "application/json", "Cache-Control": "no-store", "Www-Authenticate": challenge,
		} {
			if got := resp.Header.Get(name); got != want || len(resp.Header[name]) > 1 {
				t.Errorf("%s: %s: %q, want %q once", path, name, resp.Header[name], want)
			}
		}
		if retry := resp.Header.Get("Retry-After"); (retry == "1") != (status == 503) {
			t.Errorf("%s: %d with Retry-After %q", path, status, retry)
		}
	}
	const invalid = convention.Challenge + `, error="invalid_token"`
	stopped("/orders", 401, convention.Challenge)
	stopped("/orders", 401, convention.Challenge, "")
	stopped("/orders", 401, invalid, stranger.Reveal())
	stopped("/orders", 401, invalid, token, token)
	stopped("/orders", 401, invalid, "Bearer "+token, "Basic eA==")
	stopped("/orders", 401, invalid, "Basic eA==")
	stopped("/orders", 401, invalid, "Bearer\t"+token)
	stopped("/orders", 401, invalid, "Bearer "+token[:35]+"\xe9")
	stopped("/scoped", 403, convention.Challenge+`, error="insufficient_scope", scope="a b"`, token)
	stopped("/forgotten", 503, "", token)
	g.store.outage = func(context.Context) error { return errDown }
	stopped("/orders", 503, "", token)

	g.store.outage = func(context.Context) error { panic("at the store") }
	if resp, _ := ask("/orders", token); resp.StatusCode != 503 || len(upstream.Requests()) != 0 {
		t.Errorf("a panic: %d, %d requests reached the upstream", resp.StatusCode, len(upstream.Requests()))
	}

	sent.mu.Lock()
	defer sent.mu.Unlock()
	if len(sent.checks) == 0 {
		t.Fatal("no check was recorded")
	}
	for _, b := range sent.checks { // what a real Envoy writes is read as the generated type reads it
		same(t, b)
	}
	var q Request
	if err := q.UnmarshalMessage(sent.checks[0]); err != nil || q.service != "orders" || q.client() != "127.0.0.1" || q.path != "/orders" || q.method != "GET" {
		t.Errorf("read %+v, %v", q, err)
	}
}
