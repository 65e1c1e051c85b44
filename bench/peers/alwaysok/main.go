// Command alwaysok is a peer of the benchmark: an ext_authz server on grpc-go that allows every
// request, with the generated types and default settings. It is the lower limit for ext_authz
// servers that are written the usual way.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	statusv1 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

type always struct {
	authv3.UnimplementedAuthorizationServer
}

// Check allows the request and sets the user.
func (always) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{
		Status: &statusv1.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user-id", Value: "user-1"}}},
		}},
	}, nil
}

func main() {
	grpcAddress := flag.String("grpc", "127.0.0.1:9001", "where to listen: host:port or unix:/path")
	flag.Parse()
	listener, err := listen(*grpcAddress)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, always{})
	log.Fatal(server.Serve(listener))
}

func listen(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return net.Listen("unix", path)
	}
	return net.Listen("tcp", address)
}
