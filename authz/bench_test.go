package authz

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/codec"
	"gatepost/tokens"
)

// The benchmarks of a check over gRPC start each server as a process of its own, so that its CPU time and its
// allocations can be told from those of the load: the figures to read are server-ns/op and server-allocs/op.
//
//	go test ./authz -run '^$' -bench Check -count 5

const benchServerEnv = "GATEPOST_AUTHZ_BENCH_SERVER" // "mode socket"

const benchToken = "6e1c0000-0000-4000-8000-00000000000a"

// asEnvoySends is a request as Envoy 1.40 sends it where allowed_headers has the three that are needed.
func asEnvoySends(tb testing.TB, headers map[string]string) []byte {
	tb.Helper()
	r := asking(Shared{UserHeader: "x-user-id", Origins: []string{"https://shop.example"}}, secured, headers)
	r.Attributes.Request.Time = timestamppb.Now()
	raw, err := proto.Marshal(r)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func benchHeaders() map[string]string {
	return map[string]string{"authorization": "Bearer " + benchToken, "origin": "https://shop.example"}
}

func benchAuthorizer() *Server {
	token, err := tokens.Parse(benchToken)
	if err != nil {
		panic(err)
	}
	live := map[tokens.Hash]*tokens.Session{token.Hash(): {Hash: token.Hash(), User: "4711", Expires: time.Now().Add(time.Hour)}}
	s, err := New(Config{Sessions: tokens.LookupFunc((&sessions{live: live}).Lookup)})
	if err != nil {
		panic(err)
	}
	return s
}

// usage is what a server process has used since it began.
type usage struct {
	CPU            time.Duration
	Mallocs, Bytes uint64
}

// runBenchServer is the main function of a server process, where the environment says that this is one.
func runBenchServer() {
	var mode, socket string
	if n, _ := fmt.Sscan(os.Getenv(benchServerEnv), &mode, &socket); n != 2 {
		return
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		panic(err)
	}
	var server *grpc.Server
	switch mode {
	case "hot":
		authorizer := benchAuthorizer()
		server = grpc.NewServer(append(ServerOptions(), grpc.UnaryInterceptor(authorizer.Interceptor()))...) // as the program does
		authorizer.Register(server)
	case "generated":
		server = grpc.NewServer()
		authv3.RegisterAuthorizationServer(server, benchAuthorizer())
	case "alwaysok":
		server = grpc.NewServer()
		authv3.RegisterAuthorizationServer(server, always{answer: allow(headerChanges{})})
	default:
		panic(mode)
	}
	go func() { _ = server.Serve(listener) }()
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var ru syscall.Rusage
		var ms runtime.MemStats
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
		runtime.ReadMemStats(&ms)
		_ = json.NewEncoder(os.Stdout).Encode(usage{time.Duration(ru.Utime.Nano() + ru.Stime.Nano()), ms.Mallocs, ms.TotalAlloc})
	}
	os.Exit(0)
}

// benchServer is a server process and its connections.
type benchServer struct {
	conns []*grpc.ClientConn
	ask   func() usage
}

func startBenchServer(b *testing.B, mode string, env ...string) *benchServer {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "s")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), env...), benchServerEnv+"="+mode+" "+socket)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		b.Fatalf("the server did not start: %q", lines.Text())
	}
	s := &benchServer{ask: func() usage {
		var u usage
		if _, err := fmt.Fprintln(in); err != nil {
			b.Fatal(err)
		}
		lines.Scan()
		if err := json.Unmarshal(lines.Bytes(), &u); err != nil {
			b.Fatal(err)
		}
		return u
	}}
	for range 2 { // Envoy holds one for each of its workers
		conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		s.conns = append(s.conns, conn)
	}
	b.Cleanup(func() {
		for _, conn := range s.conns {
			_ = conn.Close()
		}
		_ = in.Close()
		_ = cmd.Wait()
	})
	return s
}

// load sends n checks from 64 clients; each answer must be the first one's length.
func (s *benchServer) load(b *testing.B, n int, request []byte) {
	var left atomic.Int64
	left.Store(int64(n))
	var clients sync.WaitGroup
	for i := range 64 {
		conn := s.conns[i%len(s.conns)]
		clients.Go(func() {
			var out []byte
			for left.Add(-1) >= 0 {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) // Envoy sends grpc-timeout
				err := conn.Invoke(ctx, authv3.Authorization_Check_FullMethodName, request, &out, grpc.ForceCodecV2(rawCodec{}))
				cancel()
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
}

func BenchmarkCheck(b *testing.B) {
	for _, c := range []struct {
		name, mode string
		headers    map[string]string
		env        string
	}{
		{"hot", "hot", benchHeaders(), "GOGC=100"}, // as the program and its peers run
		{"alwaysok", "alwaysok", benchHeaders(), "GOGC=100"},
		{"hot_gogc400", "hot", benchHeaders(), "GOGC=400"},
		{"alwaysok_gogc400", "alwaysok", benchHeaders(), "GOGC=400"},
		{"generated", "generated", benchHeaders(), "GOGC=100"},
		{"denied", "hot", map[string]string{"authorization": "Bearer x", "origin": "https://shop.example"}, "GOGC=100"},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := startBenchServer(b, c.mode, c.env)
			request := asEnvoySends(b, c.headers)
			s.load(b, 2000, request)
			before := s.ask()
			b.ResetTimer()
			s.load(b, b.N, request)
			b.StopTimer()
			after := s.ask()
			per := func(v float64, unit string) { b.ReportMetric(v/float64(b.N), unit) }
			per(float64(after.CPU-before.CPU), "server-ns/op")
			per(float64(after.Mallocs-before.Mallocs), "server-allocs/op")
			per(float64(after.Bytes-before.Bytes), "server-B/op")
		})
	}
}

// BenchmarkDecision is a check without gRPC: from the bytes of the request to the bytes of the answer.
func BenchmarkDecision(b *testing.B) {
	raw := asEnvoySends(b, benchHeaders())
	s := benchAuthorizer()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	b.Run("bytes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var c call
			if err := c.UnmarshalMessage(raw); err != nil {
				b.Fatal(err)
			}
			resp, err := s.respond(ctx, &c)
			if err != nil {
				b.Fatal(err)
			}
			if bytes, err := codec.New().Marshal(resp); err != nil || bytes.Len() < 20 {
				b.Fatal(bytes, err)
			}
		}
	})
	b.Run("generated", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var r authv3.CheckRequest
			if err := proto.Unmarshal(raw, &r); err != nil {
				b.Fatal(err)
			}
			resp, err := s.Check(ctx, &r)
			if err != nil || resp.GetOkResponse() == nil {
				b.Fatal(resp, err)
			}
			if _, err := proto.Marshal(resp); err != nil {
				b.Fatal(err)
			}
		}
	})
}
