// Command redisget is a peer of the benchmark: the old gateway's rule in a typical implementation,
// with one Redis GET per check by go-redis. It serves ext_authz (grpc-go, the generated types), and
// plain HTTP for nginx's auth_request. It is complete and not tuned.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/redis/go-redis/v9"
	statusv1 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

func main() {
	grpcAddress := flag.String("grpc", "", "where ext_authz listens; empty: it does not")
	httpAddress := flag.String("http", "", "where auth_request listens; empty: it does not")
	redisURL := flag.String("redis", "redis://127.0.0.1:6379/0", "where the tokens are: keys whose value is the user")
	flag.Parse()
	options, err := redis.ParseURL(*redisURL)
	if err != nil {
		log.Fatal(err)
	}
	rule := rule{redis.NewClient(options)}
	failed := make(chan error)
	if *grpcAddress != "" {
		go func() { failed <- serveGRPC(*grpcAddress, rule) }()
	}
	if *httpAddress != "" {
		go func() { failed <- http.ListenAndServe(*httpAddress, rule) }()
	}
	log.Fatal(<-failed)
}

func serveGRPC(address string, r rule) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, overGRPC{rule: r})
	return server.Serve(listener)
}

// rule is the rule of the old gateway: the value of Authorization is a key in Redis.
type rule struct{ redis *redis.Client }

// user returns the token's user, and http.StatusOK, StatusUnauthorized or StatusServiceUnavailable.
func (r rule) user(ctx context.Context, authorization string) (string, int) {
	if authorization == "" {
		return "", http.StatusUnauthorized
	}
	user, err := r.redis.Get(ctx, authorization).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return "", http.StatusUnauthorized
	case err != nil:
		return "", http.StatusServiceUnavailable
	}
	return user, http.StatusOK
}

// ServeHTTP serves auth_request.
func (r rule) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	user, status := r.user(request.Context(), request.Header.Get("Authorization"))
	if status == http.StatusOK {
		w.Header().Set("X-User-Id", user)
	}
	w.WriteHeader(status)
}

type overGRPC struct {
	authv3.UnimplementedAuthorizationServer
	rule
}

// Check serves ext_authz.
func (o overGRPC) Check(ctx context.Context, request *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	user, status := o.user(ctx, request.GetAttributes().GetRequest().GetHttp().GetHeaders()["authorization"])
	if status != http.StatusOK {
		return &authv3.CheckResponse{
			Status: &statusv1.Status{Code: int32(codes.Unauthenticated)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
				Status: &typev3.HttpStatus{Code: typev3.StatusCode(status)},
			}},
		}, nil
	}
	return &authv3.CheckResponse{
		Status: &statusv1.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user-id", Value: user}}},
		}},
	}, nil
}
