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

// errBadResponse reports a CheckResponse that is neither an allow nor a denial of this package. Envoy lets a request
// pass if the status is 0, whatever else the response holds, and an empty response has status 0.
var errBadResponse = errors.New("bad response to a check")

// Interceptor turns a panic into an error, and also a response to a Check that is neither an allow nor a denial. Envoy
// then answers 503. It guards the other methods of a server, and Check against interceptors after it.
func (s *Server) Interceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		defer s.recovered(info.FullMethod, &err)
		if resp, err = handler(ctx, req); err != nil || info.FullMethod != authv3.Authorization_Check_FullMethodName {
			return resp, err
		}
		check, _ := resp.(*authv3.CheckResponse)
		if bad := validateResponse(check); bad != nil {
			s.failures.badAnswer.Inc()
			s.logger.LogAttrs(ctx, slog.LevelError, "bad response to a check replaced by an error", slog.Any("error", bad))
			return nil, status.Error(codes.Internal, "bad response")
		}
		return resp, nil
	}
}

// recovered turns a panic into an error of the call, and logs it with its stack. It must be deferred. The error holds
// no detail of the panic.
func (s *Server) recovered(method string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	s.failures.panicked.Inc()
	s.logger.Error("panic", "method", method, "panic", panics.Text(p), "stack", panics.Stack())
	*err = status.Error(codes.Internal, "internal error")
}

// validateResponse returns nil for a response that may be sent, and errBadResponse for every other.
func validateResponse(r *authv3.CheckResponse) error {
	if r == nil {
		return fmt.Errorf("%w: nil", errBadResponse)
	}
	if _, marked := r.GetDynamicMetadata().GetFields()[MetadataHit]; marked { // only the module sets it
		return fmt.Errorf("%w: metadata with the mark of the module", errBadResponse)
	}
	if r.GetStatus().GetCode() == int32(codes.OK) {
		if r.GetOkResponse() == nil {
			return fmt.Errorf("%w: status 0 without an OkResponse", errBadResponse)
		}
		return nil
	}
	refused := r.GetDeniedResponse()
	if refused == nil {
		return fmt.Errorf("%w: status %d without a DeniedResponse", errBadResponse, r.GetStatus().GetCode())
	}
	if code := refused.GetStatus().GetCode(); code < 400 || code > 599 {
		return fmt.Errorf("%w: denied with HTTP status %d", errBadResponse, code)
	}
	return nil
}
