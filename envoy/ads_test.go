package envoy_test

import (
	"context"
	"net"
	"strconv"
	"testing"

	"gatepost/envoy"
	"gatepost/envoy/envoytest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
)

// serveADS starts a control plane that serves the same listener and cluster to every Envoy. It
// stops with the test.
func serveADS(t *testing.T, network, addr string, listener, cluster types.Resource) {
	t.Helper()
	snapshot, err := cachev3.NewSnapshot("1", map[resourcev3.Type][]types.Resource{
		resourcev3.ListenerType: {listener},
		resourcev3.ClusterType:  {cluster},
	})
	if err != nil {
		t.Fatal(err)
	}
	cache := cachev3.NewSnapshotCache(true, cachev3.IDHash{}, nil)
	if err := cache.SetSnapshot(t.Context(), envoy.DefaultNodeID, snapshot); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	ctx, cancel := context.WithCancel(context.Background())
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, serverv3.NewServer(ctx, cache, nil))
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		cancel()
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serving ADS: %v", err)
		}
	})
}

func TestEnvoyIsNotReadyBeforeItHasItsConfiguration(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, network string }{
		{"over TCP, by IP", "tcp"},
		{"over TCP, by name", "name"},
		{"over a unix socket", "unix"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			network, bind, grpcAddr := "tcp", envoytest.Addr(t), ""
			grpcAddr = bind
			switch tc.network {
			case "unix":
				dir, err := envoy.PrivateDir()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = dir.Remove() })
				network, bind, grpcAddr = "unix", dir.GRPC()[len("unix:"):], dir.GRPC()
			case "name":
				port := envoytest.Port(t)
				bind = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
				grpcAddr = net.JoinHostPort("localhost", strconv.Itoa(port))
			}
			upstream := envoytest.Upstream(t)
			addr := envoytest.Addr(t)
			e := envoytest.Start(t, envoytest.Options{GRPC: grpcAddr, NotReady: true})
			envoytest.Eventually(t, "Envoy has looked for its control plane", func() bool {
				return e.Stat("cluster.gatepost-grpc.upstream_cx_connect_fail") > 0
			})
			if e.Ready() || envoytest.Accepts(addr) {
				t.Error("Envoy is ready without a configuration")
			}
			resources := envoytest.Forward(t, addr, upstream.Addr())
			serveADS(t, network, bind, resources[0], resources[1])
			envoytest.Eventually(t, "Envoy is ready", e.Ready)
			if status, err := get(t, addr); status != 200 {
				t.Errorf("the answer is %d, %v; want 200 as soon as Envoy is ready", status, err)
			}
		})
	}
}
