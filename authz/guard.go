package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gatepost/panics"
)

// ErrBadAnswer says that a CheckResponse is none of the two that this package gives. Envoy takes status 0 for a
// yes whatever else the answer holds, and an answer that nobody filled in has status 0.
var ErrBadAnswer = errors.New("bad answer to a check")

// Interceptor turns a panic into an error, and an answer to a Check that is neither an allow nor a denial into one
// too: Envoy then answers 503. A server that [Server.Register] was called on needs it for its other
// methods alone; Check is guarded already.
func (s *Server) Interceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		defer s.recovered(info.FullMethod, &err)
		if resp, err = handler(ctx, req); err != nil || info.FullMethod != authv3.Authorization_Check_FullMethodName {
			return resp, err
		}
		if bad := sound(resp); bad != nil {
			s.failures.badAnswer.Inc()
			s.logger.LogAttrs(ctx, slog.LevelError, "bad answer held back", slog.Any("error", bad))
			return nil, status.Error(codes.Internal, "bad answer")
		}
		return resp, nil
	}
}

// recovered ends a panic as an error of the call and logs it with its stack. It is to be deferred. The caller learns
// nothing of what went wrong.
func (s *Server) recovered(method string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	s.failures.panicked.Inc()
	s.logger.Error("panic", "method", method, "panic", panics.Text(p), "stack", panics.Stack())
	*err = status.Error(codes.Internal, "internal error")
}

// sound returns nil for an answer that may go out, and [ErrBadAnswer] for every other.
func sound(resp any) error {
	switch r := resp.(type) {
	case *authv3.CheckResponse:
		return soundResponse(r)
	case *answer:
		if r == nil || len(r.bytes) == 0 {
			return fmt.Errorf("%w: empty", ErrBadAnswer)
		}
		return nil // made from the same two makers
	default:
		return fmt.Errorf("%w: %T", ErrBadAnswer, resp)
	}
}

func soundResponse(r *authv3.CheckResponse) error {
	if r == nil {
		return fmt.Errorf("%w: nil", ErrBadAnswer)
	}
	if r.GetStatus().GetCode() == int32(codes.OK) {
		if r.GetOkResponse() == nil {
			return fmt.Errorf("%w: status 0 without an OkResponse", ErrBadAnswer)
		}
		return nil
	}
	if r.GetDynamicMetadata() != nil { // it could be taken for a mark of the module
		return fmt.Errorf("%w: a denial with metadata", ErrBadAnswer)
	}
	refused := r.GetDeniedResponse()
	if refused == nil {
		return fmt.Errorf("%w: status %d without a DeniedResponse", ErrBadAnswer, r.GetStatus().GetCode())
	}
	if code := refused.GetStatus().GetCode(); code < 400 || code > 599 {
		return fmt.Errorf("%w: denied with HTTP status %d", ErrBadAnswer, code)
	}
	return nil
}
