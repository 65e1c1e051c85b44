package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/authz"
)

// The ext_authz servers that are measured alone, with the requests of an Envoy.
const (
	aloneGatepost = "gatepost serve"
	aloneAlwaysOK = "always-OK, grpc-go"
	aloneOPA      = "OPA"
)

// serverGoal measures G3: the cost of a check for the server, without Envoy. All servers receive
// the same bytes over a Unix socket (OPA over TCP).
func serverGoal(ctx context.Context, l *lab, _ func(string) bool) ([]finding, error) {
	const whatOK, whatOPA = "server CPU for a warm check ÷ always-OK", "server CPU for a warm check ÷ OPA"
	names := []string{aloneGatepost, aloneAlwaysOK}
	var subjects []subject
	gatepost, requests, err := l.aloneGatepost(ctx)
	if err != nil {
		return nil, err
	}
	subjects = append(subjects, gatepost)
	alwaysOK, err := l.aloneAlwaysOK(ctx, requests)
	if err != nil {
		return nil, err
	}
	subjects = append(subjects, alwaysOK)
	findings := []finding{{Goal: "G3", What: whatOK, Bound: atMost(0.55)}}
	if os.Getenv(envOPA) == "" {
		findings = append(findings, finding{Goal: "G3", What: whatOPA, Bound: atMost(0.20), Missing: "not measured: " + envOPA + " names no binary"})
	} else {
		opa, err := l.aloneOPA(ctx, requests)
		if err != nil {
			return nil, err
		}
		names, subjects = append(names, aloneOPA), append(subjects, opa)
		findings = append(findings, finding{Goal: "G3", What: whatOPA, Bound: atMost(0.20)})
	}
	got, err := l.rounds(ctx, subjects)
	if err != nil {
		return nil, err
	}
	l.keep("the ext_authz server alone", names, got)
	findings[0].Rounds = got.ratios(aloneGatepost, aloneAlwaysOK, cpu)
	findings[0] = findings[0].summarize()
	if findings[1].Missing == "" {
		findings[1].Rounds = got.ratios(aloneGatepost, aloneOPA, cpu)
		findings[1] = findings[1].summarize()
	}
	return findings, nil
}

// checks are serialized CheckRequests: valid ones, and one with an unknown token.
type checks struct {
	good [][]byte
	bad  []byte
}

// aloneGatepost is `gatepost serve`.
func (l *lab) aloneGatepost(ctx context.Context) (subject, checks, error) {
	socket, p, requests, err := l.serve(ctx, "gatepost-serve", l.program("gatepost"))
	if err != nil {
		return subject{}, checks{}, err
	}
	s, err := asked(aloneGatepost, socket, requests, true, p)
	return s, requests, err
}

// serve starts `gatepost serve` for an external Envoy, with tokens in its store. It returns the socket of ext_authz,
// and requests with the tokens. The command is the path of gatepost, or starts with a program that runs it.
func (l *lab) serve(ctx context.Context, name string, command ...string) (socket string, p *process, requests checks, err error) {
	store, err := l.redis(ctx)
	if err != nil {
		return "", nil, checks{}, err
	}
	up, err := l.upstream(ctx)
	if err != nil {
		return "", nil, checks{}, err
	}
	httpPort, err := freePort()
	if err != nil {
		return "", nil, checks{}, err
	}
	admin, err := freePort()
	if err != nil {
		return "", nil, checks{}, err
	}
	g := &gateway{address: "127.0.0.1:5500", file: filepath.Join(l.dir, name+".yaml")} // the address on which Envoy would listen
	if err := g.define(dataPath(up)); err != nil {
		return "", nil, checks{}, err
	}
	socket = "unix:" + filepath.Join(l.dir, name+".sock")
	p, err = l.start(name, command[0], append(command[1:], "serve", "--config", g.file, "--data", filepath.Join(l.dir, name+"-data"),
		"--redis", store.url(dbOther), "--grpc", socket, "--http", local(httpPort), "--admin", local(admin), "--log-format", "json")...)
	if err != nil {
		return "", nil, checks{}, err
	}
	if err := p.awaitListening(ctx, local(httpPort)); err != nil {
		return "", nil, checks{}, err
	}
	tokens, err := logins(ctx, "http://"+local(httpPort), "Bearer ")
	if err != nil {
		return "", nil, checks{}, err
	}
	requests, err = newChecks(tokens)
	return socket, p, requests, err
}

// dial returns a connection to an ext_authz server.
func dial(address string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	return conn, nil
}

func (l *lab) aloneAlwaysOK(ctx context.Context, requests checks) (subject, error) {
	path := filepath.Join(l.dir, "always-ok.sock")
	p, err := l.start("always-ok-alone", l.program("alwaysok"), "-grpc", "unix:"+path)
	if err != nil {
		return subject{}, err
	}
	listening := func() bool { _, err := os.Stat(path); return err == nil }
	if err := p.await(ctx, "to listen", listening); err != nil {
		return subject{}, err
	}
	return asked(aloneAlwaysOK, "unix:"+path, requests, false, p)
}

func (l *lab) aloneOPA(ctx context.Context, requests checks) (subject, error) {
	port, err := freePort()
	if err != nil {
		return subject{}, err
	}
	p, err := l.opa(port)
	if err != nil {
		return subject{}, err
	}
	if err := p.awaitListening(ctx, local(port)); err != nil {
		return subject{}, err
	}
	return asked(aloneOPA, local(port), requests, false, p)
}

// newChecks returns the requests that Envoy sends for a secured service with these values of
// Authorization.
func newChecks(authorizations []string) (checks, error) {
	var c checks
	for _, value := range authorizations {
		raw, err := checkRequest(value)
		if err != nil {
			return c, err
		}
		c.good = append(c.good, raw)
	}
	var err error
	c.bad, err = checkRequest("Bearer 6e1cffff-ffff-4fff-8fff-ffffffffffff")
	return c, err
}

func checkRequest(authorization string) ([]byte, error) {
	rule := authz.Rule{Service: "orders", Authenticate: true, Longest: 15 * time.Second}.With(authz.Shared{UserHeader: "x-user-id"})
	peer := func(port uint32) *authv3.AttributeContext_Peer {
		return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}}}
	}
	return proto.Marshal(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: peer(45678), Destination: peer(5500),
		Request: &authv3.AttributeContext_Request{
			Time: timestamppb.Now(),
			Http: &authv3.AttributeContext_HttpRequest{
				Id: "1234567890123456789", Method: "GET", Path: "/orders/5", Host: "127.0.0.1:5500", Scheme: "http", Protocol: "HTTP/1.1",
				Headers: map[string]string{"authorization": authorization, "x-request-id": "7a1f7f3e-7c4a-4b7e-9d0b-0d2a0f2b1c11"},
			},
		},
		ContextExtensions: rule.GetCheckSettings().GetContextExtensions(),
		MetadataContext:   &corev3.Metadata{}, RouteMetadataContext: &corev3.Metadata{},
	}})
}

// asked is a subject with gRPC clients: as many clients as wrk has, on as many connections as an
// Envoy with two workers.
func asked(name, address string, requests checks, refuses bool, p *process) (subject, error) {
	var conns []*grpc.ClientConn
	for range 2 {
		conn, err := dial(address)
		if err != nil {
			return subject{}, err
		}
		conns = append(conns, conn)
	}
	return subject{
		name: name,
		run: func(ctx context.Context, during time.Duration) (outcome, error) {
			return askAll(ctx, conns, requests, during)
		},
		check: func(ctx context.Context) error {
			want := codes.OK
			if refuses {
				want = codes.Unauthenticated
			}
			return errors.Join(expect(ctx, conns[0], requests.good[0], codes.OK), expect(ctx, conns[0], requests.bad, want))
		},
		processes: []*process{p},
	}, nil
}

// askAll sends requests for a duration; each client sends one after the other.
func askAll(ctx context.Context, conns []*grpc.ClientConn, requests checks, during time.Duration) (outcome, error) {
	var answered atomic.Int64
	var wrong atomic.Pointer[error]
	begin := time.Now()
	end := begin.Add(during)
	var clients sync.WaitGroup
	for i := range connections {
		clients.Go(func() {
			for n := i; time.Now().Before(end) && wrong.Load() == nil; n++ {
				if err := expect(ctx, conns[i%len(conns)], requests.good[n%len(requests.good)], codes.OK); err != nil {
					wrong.Store(&err)
					return
				}
				answered.Add(1)
			}
		})
	}
	clients.Wait()
	if err := wrong.Load(); err != nil {
		return outcome{}, *err
	}
	got := outcome{Requests: int(answered.Load()), Microseconds: int(time.Since(begin).Microseconds())}
	return got, got.wrong()
}

// expect sends one request and returns an error if the response is not the wanted one.
func expect(ctx context.Context, conn *grpc.ClientConn, request []byte, want codes.Code) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // the same timeout as Envoy's
	defer cancel()
	var raw []byte
	if err := conn.Invoke(ctx, authv3.Authorization_Check_FullMethodName, request, &raw, grpc.ForceCodecV2(bytesCodec{})); err != nil {
		return fmt.Errorf("%w: %w", errWrong, err)
	}
	var answer authv3.CheckResponse
	if err := proto.Unmarshal(raw, &answer); err != nil {
		return fmt.Errorf("%w: %w", errWrong, err)
	}
	if got := codes.Code(answer.GetStatus().GetCode()); got != want {
		return fmt.Errorf("%w: a check returned %v, not %v", errWrong, got, want)
	}
	return nil
}

// bytesCodec passes messages through as bytes.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
