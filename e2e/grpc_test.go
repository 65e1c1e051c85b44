package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"gatepost/envoy/envoytest"
	"gatepost/testcert"
)

// callee is a gRPC server. It sends the metadata of a call back in its trailer.
type callee struct {
	testpb.UnimplementedTestServiceServer
	// ended receives the error of each call that ended while it waited.
	ended chan error
}

func (s *callee) trailer(ctx context.Context) metadata.MD {
	in, _ := metadata.FromIncomingContext(ctx)
	return metadata.Pairs("users", fmt.Sprint(in.Get("x-user-id")), "tokens", fmt.Sprint(in.Get("authorization")))
}

func (s *callee) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if err := grpc.SetTrailer(ctx, s.trailer(ctx)); err != nil {
		return nil, err
	}
	if in.GetFillUsername() { // for a call that waits until something ends it
		<-ctx.Done()
		s.ended <- ctx.Err()
		return nil, ctx.Err()
	}
	if code := in.GetResponseStatus(); code != nil {
		return nil, status.Error(codes.Code(code.GetCode()), code.GetMessage())
	}
	return &testpb.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (s *callee) StreamingOutputCall(in *testpb.StreamingOutputCallRequest, out grpc.ServerStreamingServer[testpb.StreamingOutputCallResponse]) error {
	out.SetTrailer(s.trailer(out.Context()))
	for range in.GetResponseParameters() {
		if err := out.Send(&testpb.StreamingOutputCallResponse{}); err != nil {
			return err
		}
	}
	return nil
}

func (s *callee) StreamingInputCall(in grpc.ClientStreamingServer[testpb.StreamingInputCallRequest, testpb.StreamingInputCallResponse]) error {
	in.SetTrailer(s.trailer(in.Context()))
	for n := int32(0); ; n++ {
		if _, err := in.Recv(); errors.Is(err, io.EOF) {
			return in.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: n})
		} else if err != nil {
			return err
		}
	}
}

func (s *callee) FullDuplexCall(both grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	both.SetTrailer(s.trailer(both.Context()))
	for {
		if _, err := both.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			s.ended <- err
			return err
		}
		if err := both.Send(&testpb.StreamingOutputCallResponse{}); err != nil {
			return err
		}
	}
}

// startCallee returns the server and its address.
func startCallee(t *testing.T, options ...grpc.ServerOption) (*callee, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &callee{ended: make(chan error, 16)}
	server := grpc.NewServer(options...)
	testpb.RegisterTestServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-served })
	return s, listener.Addr().String()
}

// caller is a gRPC client of the gateway. The context has a token if token is not empty.
func caller(t *testing.T, g *gateway, token string) (testpb.TestServiceClient, context.Context) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+g.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx := t.Context()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return testpb.NewTestServiceClient(conn), metadata.AppendToOutgoingContext(ctx, "x-user-id", spoofed)
}

const grpcShop = `
tokens:
  lifetime: %s
  authenticator: {url: "%s/users/authenticate"}
services:
  - {name: calls, path: /grpc.testing.TestService, grpc: true, upstreams: ["%s"]%s}
`

func TestCallsThroughTheGateway(t *testing.T) {
	t.Parallel()
	server, address := startCallee(t)
	g := start(t, fmt.Sprintf(grpcShop, "1h", users(t).URL(), "h2c://"+address, ""), setup{})
	token := g.Login("alice")
	client, ctx := caller(t, g, token)
	server.takesCalls(t, client, ctx)

	t.Run("a status of the server", func(t *testing.T) {
		_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(codes.AlreadyExists), Message: "twice: ✓"}})
		if got := status.Convert(err); got.Code() != codes.AlreadyExists || got.Message() != "twice: ✓" {
			t.Errorf("the status is %v", got)
		}
	})
	t.Run("without a token", func(t *testing.T) {
		client, ctx := caller(t, g, "")
		_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
		wantCode(t, err, codes.Unauthenticated)
		stream, err := client.FullDuplexCall(ctx)
		if err == nil {
			_, err = stream.Recv()
		}
		wantCode(t, err, codes.Unauthenticated)
	})
	t.Run("another service", func(t *testing.T) {
		conn, err := grpc.NewClient("passthrough:///"+g.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = testpb.NewUnimplementedServiceClient(conn).UnimplementedCall(ctx, &testpb.Empty{})
		wantCode(t, err, codes.Unimplemented)
	})
	t.Run("a revoked token", func(t *testing.T) {
		want(t, "the revoke", g.Do("POST", "/token/revoke", "", "Authorization: "+token), http.StatusOK, "")
		_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
		wantCode(t, err, codes.Unauthenticated)
	})
}

// takesCalls makes calls of each kind, and checks that each arrives with the user and without the token.
func (s *callee) takesCalls(t *testing.T, client testpb.TestServiceClient, ctx context.Context) {
	t.Helper()
	check := func(t *testing.T, trailer metadata.MD, err error) {
		t.Helper()
		if err != nil || !slices.Equal(trailer.Get("users"), []string{"[alice]"}) || !slices.Equal(trailer.Get("tokens"), []string{"[]"}) {
			t.Errorf("the call ended with %v, and the server received %v", err, trailer)
		}
	}
	t.Run("unary", func(t *testing.T) {
		var trailer metadata.MD
		body := make([]byte, 1<<20)
		got, err := client.UnaryCall(ctx, &testpb.SimpleRequest{Payload: &testpb.Payload{Body: body}}, grpc.Trailer(&trailer))
		check(t, trailer, err)
		if len(got.GetPayload().GetBody()) != len(body) {
			t.Error("the payload is not whole")
		}
	})
	t.Run("a stream of the server", func(t *testing.T) {
		stream, err := client.StreamingOutputCall(ctx, &testpb.StreamingOutputCallRequest{ResponseParameters: make([]*testpb.ResponseParameters, 20)})
		n := -1
		for ; err == nil; n++ {
			_, err = stream.Recv()
		}
		if !errors.Is(err, io.EOF) || n != 20 {
			t.Fatalf("%d messages, and then %v", n, err)
		}
		check(t, stream.Trailer(), nil)
	})
	t.Run("a stream of the client", func(t *testing.T) {
		stream, err := client.StreamingInputCall(ctx)
		for range 20 {
			if err == nil {
				err = stream.Send(&testpb.StreamingInputCallRequest{})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := stream.CloseAndRecv()
		check(t, stream.Trailer(), err)
		if got.GetAggregatedPayloadSize() != 20 {
			t.Errorf("%d messages arrived", got.GetAggregatedPayloadSize())
		}
	})
	t.Run("streams of both", func(t *testing.T) {
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 { // each message is answered before the next one is sent
			if err := stream.Send(&testpb.StreamingOutputCallRequest{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		check(t, stream.Trailer(), nil)
	})
}

func wantCode(t *testing.T, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("the call ended with %v, want %v", err, code)
	}
}

// TestNoCallOutlivesItsToken: calls end by themselves, though neither side ends them. A call without an answer gets a
// status, and a stream that has begun is reset.
func TestNoCallOutlivesItsToken(t *testing.T) {
	t.Parallel()
	server, address := startCallee(t)
	g := start(t, fmt.Sprintf(grpcShop, "2s", users(t).URL(), "h2c://"+address, ""), setup{})
	client, ctx := caller(t, g, g.Login("alice"))
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&testpb.StreamingOutputCallRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	_, err = client.UnaryCall(ctx, &testpb.SimpleRequest{FillUsername: true})
	wantCode(t, err, codes.Unavailable)
	_, err = stream.Recv()
	wantCode(t, err, codes.Internal)
	for range 2 {
		<-server.ended
	}
}

// TestDeadlineOfACallEndsIt: by Envoy, without the help of the client and of the server. It may be longer than the
// default timeout of a service.
func TestDeadlineOfACallEndsIt(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{}, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		ended <- struct{}{}
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	g := start(t, fmt.Sprintf(grpcShop, "1h", users(t).URL(), "h2c://"+server.Listener.Addr().String(), ", authenticate: false"), setup{})
	got := g.H2(t, "POST", "/grpc.testing.TestService/UnaryCall", "", [2]string{"content-type", "application/grpc"},
		[2]string{"te", "trailers"}, [2]string{"grpc-timeout", "50m"})
	if code := got.Header.Get("grpc-status"); code != strconv.Itoa(int(codes.DeadlineExceeded)) {
		t.Errorf("the call ended with %+v", got)
	}
	<-ended
}

// TestUpstreamWithTLSIsCalledByWhatItOffers: HTTP/2 for gRPC and others, HTTP/1.1 for a server without HTTP/2, and for
// a service with WebSockets.
func TestUpstreamWithTLSIsCalledByWhatItOffers(t *testing.T) {
	t.Parallel()
	ca, dir := testcert.New(t), t.TempDir()
	roots := ca.Write(filepath.Join(dir, "ca.pem"))
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	ca.Issue(certFile, keyFile)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	serve := func(http2 bool) string {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", r.Proto, tls.VersionName(r.TLS.Version))
		}))
		server.EnableHTTP2 = http2
		server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		server.StartTLS()
		t.Cleanup(server.Close)
		return server.URL
	}
	server, address := startCallee(t, grpc.Creds(credentials.NewServerTLSFromCert(&pair)))
	g := start(t, fmt.Sprintf(grpcShop, "1h", users(t).URL(), "https://"+address, "")+fmt.Sprintf(`
  - {name: both, path: /both, authenticate: false, upstreams: ["%[1]s"]}
  - {name: sockets, path: /sockets, authenticate: false, websocket: true, upstreams: ["%[1]s"]}
  - {name: old, path: /old, authenticate: false, upstreams: ["%[2]s"]}
`, serve(true), serve(false)), setup{Args: []string{"--ca-file", roots}})
	for path, answer := range map[string]string{"/both": "HTTP/2.0 TLS 1.3", "/sockets": "HTTP/1.1 TLS 1.3", "/old": "HTTP/1.1 TLS 1.3"} {
		want(t, path, g.Do("GET", path, ""), http.StatusOK, answer)
	}
	client, ctx := caller(t, g, g.Login("alice"))
	server.takesCalls(t, client, ctx)
}

// TestH2CUpstreamThatIsDown is UNAVAILABLE, and not an answer of HTTP.
func TestH2CUpstreamThatIsDown(t *testing.T) {
	t.Parallel()
	g := start(t, fmt.Sprintf(grpcShop, "1h", users(t).URL(), "h2c://"+envoytest.Addr(t), ", authenticate: false"), setup{})
	client, ctx := caller(t, g, "")
	_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
	wantCode(t, err, codes.Unavailable)
}
