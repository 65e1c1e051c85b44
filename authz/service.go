package authz

import (
	"context"
	"sync"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gatepost/codec"
)

// ServerOptions are what a gRPC server must be made with for [Server.Register]. The codec reads a Check into a
// [Request] without the generated type. On a server with another codec each Check fails, so no request passes.
//
// The other options are for speed. Without stream workers each Check starts a goroutine, whose stack grows on its way
// through gRPC: a fifth of a Check's time. Without fixed windows gRPC sends a PING for each batch of requests, to
// measure a link that is a socket on the same machine.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec.New()),
		grpc.NumStreamWorkers(64),
		grpc.StaticStreamWindowSize(64 << 10),
		grpc.StaticConnWindowSize(1 << 20),
	}
}

// Register registers the server with g, which must have been made with [ServerOptions].
func (s *Server) Register(g *grpc.Server) {
	desc := authv3.Authorization_ServiceDesc // for its name and its file, which reflection shows
	desc.Methods = []grpc.MethodDesc{{MethodName: "Check", Handler: handleCheck}}
	g.RegisterService(&desc, s)
}

// calls are calls that are not in use. Nothing keeps a call: what outlives it copies its strings.
var calls = sync.Pool{New: func() any { return new(call) }}

// handleCheck is a grpc.MethodHandler.
func handleCheck(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	s := srv.(*Server)
	c := calls.Get().(*call)
	defer func() {
		*c = call{}
		calls.Put(c)
	}()
	if err := decode(&c.Request); err != nil {
		if code := status.Code(err); code != codes.Canceled && code != codes.DeadlineExceeded { // else the caller went away
			s.failures.unreadable.Inc()
		}
		return nil, err
	}
	if intercept == nil {
		return s.respond(ctx, c)
	}
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: authv3.Authorization_Check_FullMethodName}
	return intercept(ctx, &c.Request, info, func(ctx context.Context, _ any) (any, error) { return s.respond(ctx, c) })
}
