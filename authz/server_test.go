package authz

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"gatepost/convention"
	"gatepost/logqueue"
	"gatepost/tokens"
)

// serve puts services on a gRPC server and returns a connection to it.
func serve(t testing.TB, register func(*grpc.Server), opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	server := grpc.NewServer(opts...)
	register(server)
	listener := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
	})
	return conn
}

func TestCheckOverGRPCBesideOtherServices(t *testing.T) {
	g := newTestServer(t)
	token := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	conn := serve(t, func(s *grpc.Server) {
		g.Register(s)
		healthv1.RegisterHealthServer(s, health.NewServer())
	}, append(ServerOptions(), grpc.ChainUnaryInterceptor(g.Interceptor()))...)
	client := authv3.NewAuthorizationClient(conn)

	for range 3 { // the memory of one call is used by the next
		resp, err := client.Check(t.Context(), asking(shop, secured, authorization(token)))
		if err != nil || header(resp.GetOkResponse().GetHeaders(), "x-user-id") != "ann" {
			t.Fatalf("with a token: %v, %v", resp, err)
		}
		resp, err = client.Check(t.Context(), asking(shop, secured, nil))
		if err != nil || resp.GetDeniedResponse().GetStatus().GetCode() != 401 {
			t.Fatalf("without: %v, %v", resp, err)
		}
		resp, err = client.Check(t.Context(), asking(shop, publicRule, nil))
		if err != nil || resp.GetOkResponse() == nil {
			t.Fatalf("public: %v, %v", resp, err)
		}
	}
	if resp, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", resp, err)
	}
	watch, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := watch.Recv(); err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health, streamed: %v, %v", resp, err)
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func TestBytesThatAreNoCheckEndInAnError(t *testing.T) {
	g := newTestServer(t)
	conn := serve(t, g.Register, ServerOptions()...)
	for _, b := range [][]byte{{0x0a}, {0xff}, attributesOf(wire{}.str(10, "\xff")), httpOf(wire{}.str(5, "\xff"))} {
		var out []byte
		err := conn.Invoke(t.Context(), authv3.Authorization_Check_FullMethodName, b, &out, grpc.ForceCodecV2(rawCodec{}))
		if status.Code(err) != codes.Internal {
			t.Errorf("%x: %v, answer %x", b, err, out)
		}
	}
	counted := func() float64 { return testutil.ToFloat64(g.failures.unreadable) }
	for end := time.Now().Add(5 * time.Minute); counted() != 4; time.Sleep(time.Millisecond) { // gRPC answers first
		if time.Now().After(end) {
			t.Fatalf("unreadable checks counted: %v", counted())
		}
	}
}

func TestAServerWithoutTheCodecLetsNothingPass(t *testing.T) {
	g := newTestServer(t)
	client := authv3.NewAuthorizationClient(serve(t, g.Register))
	if resp, err := client.Check(t.Context(), asking(shop, publicRule, nil)); err == nil {
		t.Errorf("answered %v", resp)
	}
}

func TestAPanicIsAnErrorAndNotAnAnswer(t *testing.T) {
	g := newTestServer(t)
	token := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	g.store.outage = func(context.Context) error { panic("lost my mind") }
	ask := asking(shop, secured, authorization(token))

	for name, register := range map[string]func(*grpc.Server){
		"hot":       g.Register,
		"generated": func(s *grpc.Server) { authv3.RegisterAuthorizationServer(s, g.Server) },
	} {
		for _, opts := range [][]grpc.ServerOption{
			ServerOptions(),
			append(ServerOptions(), grpc.ChainUnaryInterceptor(g.Interceptor())),
		} {
			g.log.Reset()
			client := authv3.NewAuthorizationClient(serve(t, register, opts...))
			resp, err := client.Check(t.Context(), ask)
			if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "mind") {
				t.Errorf("%s: %v, %v", name, resp, err)
			}
			if got := strings.Count(g.log.String(), "a value of type string"); got != 1 || strings.Contains(g.log.String(), "mind") {
				t.Errorf("%s: logged %d times: %s", name, got, g.log)
			}
			if !strings.Contains(g.log.String(), "authz.(*call).Principal") {
				t.Errorf("%s: no stack in %s", name, g.log)
			}
		}
	}
}

// always gives the answer that it holds.
type always struct {
	authv3.UnimplementedAuthorizationServer
	answer *authv3.CheckResponse
}

func (a always) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return a.answer, nil
}

func TestNoAnswerButAnAllowOrADenialGoesOut(t *testing.T) {
	ok := &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}
	unauthorized := deny(codes.Unauthenticated, 401, "no")
	code := func(c codes.Code) *rpcstatus.Status { return &rpcstatus.Status{Code: int32(c)} }
	bad := map[string]*authv3.CheckResponse{
		"nil":                     nil,
		"zero":                    {},
		"ok without a response":   {Status: code(codes.OK)},
		"ok with a denial":        {Status: code(codes.OK), HttpResponse: unauthorized.HttpResponse},
		"denied with an allow":    {Status: code(codes.PermissionDenied), HttpResponse: ok},
		"denied without anything": {Status: code(codes.PermissionDenied)},
		"an allow of nothing":     {Status: code(codes.OK), HttpResponse: &authv3.CheckResponse_OkResponse{}},
		"denied with 200":         deny(codes.PermissionDenied, 200, "no"),
		"denied with 302":         deny(codes.PermissionDenied, 302, "no"),
		"denied with no status":   deny(codes.PermissionDenied, 0, "no"),
		"an error's response": {Status: code(codes.Unavailable), HttpResponse: &authv3.CheckResponse_ErrorResponse{
			ErrorResponse: unauthorized.GetDeniedResponse()}},
	}
	g := newTestServer(t)
	guards := map[string][]grpc.ServerOption{
		"interceptor": {grpc.ChainUnaryInterceptor(g.Interceptor())},
		"chained":     append(ServerOptions(), grpc.ChainUnaryInterceptor(g.Interceptor())),
	}
	for guard, opts := range guards {
		ask := func(a *authv3.CheckResponse) (*authv3.CheckResponse, error) {
			conn := serve(t, func(s *grpc.Server) { authv3.RegisterAuthorizationServer(s, always{answer: a}) }, opts...)
			return authv3.NewAuthorizationClient(conn).Check(t.Context(), &authv3.CheckRequest{})
		}
		for name, a := range bad {
			if resp, err := ask(a); status.Code(err) != codes.Internal {
				t.Errorf("%s, %s: got out: %v, %v", guard, name, resp, err)
			}
		}
		for _, a := range []*authv3.CheckResponse{allow(headerChanges{}), unauthorized} {
			if _, err := ask(a); err != nil {
				t.Errorf("%s, good answer: %v", guard, err)
			}
		}
	}
	if got := testutil.ToFloat64(g.failures.badAnswer); int(got) != len(guards)*len(bad) {
		t.Errorf("bad answers counted: %v of %d", got, len(guards)*len(bad))
	}
}

func TestNoTokenIsTold(t *testing.T) {
	g := newTestServer(t)
	g.denials.lines.PerSecond = 1 << 30
	var secrets []string
	for _, format := range []tokens.Format{tokens.FormatUUID, tokens.FormatSecret} {
		known := g.store.open(t, format, "ann")
		stranger, _ := tokens.Mint(format)
		for _, token := range []tokens.Token{known, stranger} {
			text := token.Reveal()
			secrets = append(secrets, text, token.Hash().Hex())
			for _, value := range []string{text, "Bearer " + text, text + "," + text, "Basic " + text, text + "!", "Bearer\t" + text} {
				for _, rule := range []Rule{secured, publicRule, {Service: "s", Authenticate: true, Longest: time.Minute, Scopes: []string{"x"}}} {
					g.check(t, asking(shop, rule, authorization(value)))
					g.check(t, asking(fromBrowser, rule, authorization(value)))
					g.check(t, withExtensions(nil, authorization(value)))
				}
			}
			g.store.outage = func(context.Context) error { return errDown }
			g.check(t, asking(shop, secured, authorization(text)))
			g.store.outage = func(context.Context) error { panic("at the store with " + text) }
			_, _ = g.Check(t.Context(), asking(shop, secured, authorization(text)))
			g.store.outage = nil
		}
	}
	families, err := g.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	recent, err := json.Marshal(g.Recent())
	if err != nil {
		t.Fatal(err)
	}
	told := g.log.String() + string(recent) + fmt.Sprint(families)
	if !strings.Contains(told, "store_unavailable") || !strings.Contains(told, "a value of type string") {
		t.Fatal("nothing was reported at all")
	}
	for _, secret := range append(secrets, "in-the-query") {
		if strings.Contains(told, secret) {
			t.Errorf("reported: %s", secret)
		}
	}
}

func TestADenialIsToldInOneLine(t *testing.T) {
	g := newTestServer(t)
	token := g.store.open(t, tokens.FormatUUID, "ann")
	ask := asking(fromBrowser, secured, map[string]string{"authorization": token.Reveal(), "origin": "https://shop.example"})
	if _, err := g.Check(t.Context(), ask); err != nil {
		t.Fatal(err)
	}
	if g.log.Len() != 0 || len(g.Recent()) != 0 {
		t.Errorf("an allowed request was logged: %s", g.log)
	}
	delete(g.store.live, token.Hash())
	if _, err := g.Check(t.Context(), ask); err != nil {
		t.Fatal(err)
	}
	var line map[string]any
	if err := json.Unmarshal(g.log.Bytes(), &line); err != nil {
		t.Fatalf("%v: %s", err, g.log)
	}
	want := Denial{
		Service: "orders", Decision: "deny", Reason: "token_unknown", RequestID: "5f0c7a2e-0000-4000-8000-000000000001",
		Method: "GET", Host: "shop.example", Path: "/orders/5", Origin: "https://shop.example", Client: "192.0.2.7", Token: token.Hash().String(),
	}
	for key, value := range map[string]string{
		"level": "INFO", "service": want.Service, "decision": want.Decision, "reason": want.Reason, "request_id": want.RequestID,
		"method": want.Method, "host": want.Host, "path": want.Path, "origin": want.Origin, "client": want.Client, "token": want.Token,
	} {
		if line[key] != value {
			t.Errorf("%s: %v, want %s", key, line[key], value)
		}
	}
	got := g.Recent()[0]
	want.Time = got.Time
	if got != want {
		t.Errorf("kept %+v, want %+v", got, want)
	}
}

func TestAnOutageIsLoggedAsAWarningAndNotAsADenial(t *testing.T) {
	g := newTestServer(t)
	token := g.store.open(t, tokens.FormatUUID, "ann")
	g.store.outage = func(context.Context) error { return errDown }
	if _, err := g.Check(t.Context(), asking(shop, secured, authorization(token.Reveal()))); err != nil {
		t.Fatal(err)
	}
	var line map[string]any
	if err := json.Unmarshal(g.log.Bytes(), &line); err != nil {
		t.Fatalf("%v: %s", err, g.log)
	}
	if line["level"] != "WARN" || line["msg"] != "request could not be decided" || line["reason"] != "store_unavailable" || line["error"] == nil ||
		line["event.action"] != string(convention.EventRequestUndecided) {
		t.Errorf("the log is %s", g.log)
	}
}

func TestAFloodFillsNeitherTheLogNorTheMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTestServer(t)
		long := asking(shop, secured, authorization("x"))
		long.Attributes.Request.Http.Path = "/" + strings.Repeat("é", 10_000)
		flood := func(n int) {
			for range n {
				if _, err := g.Check(t.Context(), long); err != nil {
					t.Fatal(err)
				}
			}
		}
		flood(10_000)
		if got := strings.Count(g.log.String(), "\n"); got != logqueue.LinesAtOnce {
			t.Errorf("%d lines, want %d", got, logqueue.LinesAtOnce)
		}
		if got := len(g.Recent()); got != keptDenials {
			t.Errorf("%d kept, want %d", got, keptDenials)
		}
		if got := len(g.Recent()[0].Path); got > longestField+3 {
			t.Errorf("a path of %d bytes is kept", got)
		}
		if got := testutil.ToFloat64(g.denials.leftOutTotal); got != 10_000-logqueue.LinesAtOnce {
			t.Errorf("lines left out: %v", got)
		}
		g.log.Reset()
		time.Sleep(time.Second)
		flood(1)
		if !strings.Contains(g.log.String(), `"lines_left_out":9900`) {
			t.Errorf("the next line does not say what was left out: %s", g.log)
		}
	})
}

func TestRecentIsNewestFirst(t *testing.T) {
	g := newTestServer(t)
	for i := range keptDenials + 50 {
		ask := asking(shop, secured, map[string]string{"x-request-id": fmt.Sprint(i)})
		if _, err := g.Check(t.Context(), ask); err != nil {
			t.Fatal(err)
		}
		if got := g.Recent()[0].RequestID; got != fmt.Sprint(i) {
			t.Fatalf("newest is %s, want %d", got, i)
		}
	}
	if got := g.Recent()[keptDenials-1].RequestID; got != "50" {
		t.Errorf("oldest is %s, want 50", got)
	}
}

func TestDecisionsAreCounted(t *testing.T) {
	g := newTestServer(t)
	token := g.store.open(t, tokens.FormatUUID, "ann").Reveal()
	for _, ask := range []*authv3.CheckRequest{
		asking(shop, secured, authorization(token)), asking(shop, secured, authorization(token)), asking(shop, secured, nil),
		asking(shop, publicRule, nil), {},
	} {
		if _, err := g.Check(t.Context(), ask); err != nil {
			t.Fatal(err)
		}
	}
	for labels, want := range map[[3]string]float64{
		{"orders", "allow", "token_known"}:  2,
		{"orders", "deny", "token_missing"}: 1,
		{"items", "allow", "public"}:        1,
		{"(none)", "error", "no_rule"}:      1,
	} {
		if got := testutil.ToFloat64(g.counts.decisions.WithLabelValues(labels[:]...)); got != want {
			t.Errorf("%v: %v, want %v", labels, got, want)
		}
	}
	if _, err := New(Config{Sessions: tokens.LookupFunc(g.store.Lookup), Registerer: g.registry}); err == nil {
		t.Error("a second server registered the same metrics")
	}
	if problems, err := testutil.GatherAndLint(g.registry); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestServicesBeyondTheBoundAreCountedTogether(t *testing.T) {
	const limit = 100
	long := strings.Repeat("x", maxName+1)
	for name, count := range map[string]func(c *counts, service string){
		"decisions": func(c *counts, service string) { c.add(service, ReasonTokenKnown) },
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newCounts()
			c.limit = limit
			for i := range 3 * limit {
				count(c, fmt.Sprintf("s%d", i))
				count(c, fmt.Sprintf("s%d%s", i, long))
			}
			count(c, "s0")
			services := map[string]float64{}
			registry := prometheus.NewRegistry()
			registry.MustRegister(c.decisions)
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range families[0].GetMetric() {
				for _, label := range m.GetLabel() {
					if label.GetName() == "service" {
						services[label.GetValue()] += m.GetCounter().GetValue()
					}
				}
			}
			if len(services) > limit+1 {
				t.Errorf("%d services are counted by name, want %d", len(services), limit)
			}
			if services["s0"] != 2 || services[serviceOther] != 3*limit+2*limit+1 {
				t.Errorf("s0 was counted %v times, all others together %v times", services["s0"], services[serviceOther])
			}
		})
	}
}

func TestEachUseOfASessionIsTold(t *testing.T) {
	g := newTestServer(t)
	token := g.store.open(t, tokens.FormatUUID, "ann", "a").Reveal()
	var told []string
	g.seen = func(h tokens.Principal, address string) { told = append(told, h.User()+" "+address) }
	scoped := Rule{Service: "orders", Authenticate: true, Longest: time.Minute, Scopes: []string{"b"}}
	for _, r := range []*authv3.CheckRequest{
		asking(shop, secured, authorization(token)), asking(shop, secured, authorization(token)),
		// None of these is a use.
		asking(shop, publicRule, authorization(token)), asking(shop, secured, nil), asking(shop, scoped, authorization(token)),
		asking(fromBrowser, secured, authorization(token)),
	} {
		if _, err := g.Check(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"ann 192.0.2.7", "ann 192.0.2.7"}; !slices.Equal(told, want) {
		t.Errorf("told of %q, want %q", told, want)
	}
}
