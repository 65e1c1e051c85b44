package authz

import (
	"context"
	"fmt"
	"sync"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// ServerOptions are what a gRPC server must be made with for [Server.Register]. The codec gives Check its request
// as bytes, and does for every other method what gRPC's own codec does; on a server without it each Check ends in
// an error, so no request passes.
//
// The rest is for speed and changes nothing else. Without stream workers each check starts a goroutine, whose stack
// grows on its way through gRPC: a fifth of a check's time. Without fixed windows gRPC sends a PING for each batch of
// requests, to measure a link that is a socket on the same machine.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.NumStreamWorkers(64),
		grpc.StaticStreamWindowSize(64 << 10),
		grpc.StaticConnWindowSize(1 << 20),
	}
}

// Register puts the server in service on g, which must have been made with [ServerOptions].
func (s *Server) Register(g *grpc.Server) {
	desc := authv3.Authorization_ServiceDesc // for its name and its file, which reflection shows
	desc.Methods = []grpc.MethodDesc{{MethodName: "Check", Handler: handleCheck}}
	g.RegisterService(&desc, s)
}

// calls are requests that are not in use. Nothing keeps a request: what outlives a call copies its strings.
var calls = sync.Pool{New: func() any { return new(request) }}

// handleCheck is a grpc.MethodHandler.
func handleCheck(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	s := srv.(*Server)
	q := calls.Get().(*request)
	defer func() {
		*q = request{}
		calls.Put(q)
	}()
	if err := decode(q); err != nil {
		if c := status.Code(err); c != codes.Canceled && c != codes.DeadlineExceeded { // else the caller went away
			s.failures.unreadable.Inc()
		}
		return nil, err
	}
	if intercept == nil {
		return s.checkBytes(ctx, q)
	}
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: authv3.Authorization_Check_FullMethodName}
	return intercept(ctx, q, info, func(ctx context.Context, req any) (any, error) {
		q, ok := req.(*request)
		if !ok {
			return nil, status.Errorf(codes.Internal, "an interceptor put a %T in the place of the request", req)
		}
		return s.checkBytes(ctx, q)
	})
}

// checkBytes is [Server.Check] with the request read and the answer written without the generated types.
func (s *Server) checkBytes(ctx context.Context, q *request) (a any, err error) {
	defer s.recovered(authv3.Authorization_Check_FullMethodName, &err)
	v := s.decide(ctx, q)
	return newAnswer(&v)
}

// pieced is a message that is kept in pieces, which need not be put together to be sent. They are not changed any more.
type pieced interface {
	Pieces() (mem.BufferSlice, error)
}

// codec is gRPC's codec for protobuf, but for the two types of Check and for what is pieced.
type codec struct{ proto encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(protocodec.Name)} }

func (c codec) Name() string { return c.proto.Name() }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	q, ours := v.(*request)
	if !ours {
		return c.proto.Unmarshal(data, v)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	return q.readBytes(b.ReadOnlyData())
}

// Marshal is the last place that an answer passes: none that is not sound goes out, whichever way it came.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	switch r := v.(type) {
	case *answer:
		if err := sound(r); err != nil {
			return nil, err
		}
		return r.slice[:], nil
	case *authv3.CheckResponse:
		if err := soundResponse(r); err != nil {
			return nil, err
		}
	case pieced:
		return r.Pieces()
	}
	return c.proto.Marshal(v)
}

// answer is a CheckResponse as bytes, in the form in which gRPC takes it. It is never changed once made.
type answer struct {
	bytes mem.SliceBuffer
	slice [1]mem.Buffer // &bytes
	room  [160]byte     // for bytes, where they are few
}

func (a *answer) set(b []byte) *answer {
	a.bytes = b
	a.slice[0] = &a.bytes
	return a
}

// newAnswer returns the bytes of a verdict's answer.
func newAnswer(v *verdict) (*answer, error) {
	switch v.reason {
	case public, tokenKnown:
		a := new(answer)
		return a.set(v.appendAllow(a.room[:0])), nil
	case scopeMissing: // it names the scopes
		return marshalAnswer(v)
	default:
		return readyDenials[v.reason], nil
	}
}

func marshalAnswer(v *verdict) (*answer, error) {
	b, err := proto.Marshal(v.response())
	if err != nil {
		return nil, status.Error(codes.Internal, fmt.Sprintf("writing an answer: %v", err))
	}
	return new(answer).set(b), nil
}

// readyDenials are the answers that depend on nothing but the reason.
var readyDenials = func() (ready [reasons]*answer) {
	for r := range reasons {
		if r.decision() != allowed && r != scopeMissing {
			ready[r], _ = marshalAnswer(&verdict{reason: r}) // constants: a test reads each back
		}
	}
	return ready
}()
