// Command oneroute is a peer of the benchmark: a typical control plane, go-control-plane's
// SnapshotCache with one route table for all services, over delta ADS. To add a service it builds a
// new snapshot, as such control planes do. POST /add?n=N adds the N-th service.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typesv3 "github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	node      = "bench"
	routeName = "routes"
)

func main() {
	grpcAddress := flag.String("grpc", "127.0.0.1:9002", "where Envoy asks")
	httpAddress := flag.String("http", "127.0.0.1:9003", "where services are added")
	services := flag.Int("services", 10, "how many services there are at the start")
	port := flag.Uint("port", 5501, "where Envoy is to listen")
	upstream := flag.Uint("upstream", 8080, "the port of the service behind all of them")
	flag.Parse()

	p := &plane{cache: cachev3.NewSnapshotCache(true, cachev3.IDHash{}, nil), port: uint32(*port), upstream: uint32(*upstream)}
	for n := range *services {
		p.add(n)
	}
	if err := p.publish(); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", *grpcAddress)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, serverv3.NewServer(context.Background(), p.cache, nil))
	go func() { log.Fatal(server.Serve(listener)) }()
	http.HandleFunc("POST /add", p.serveAdd)
	log.Fatal(http.ListenAndServe(*httpAddress, nil))
}

type plane struct {
	cache          cachev3.SnapshotCache
	port, upstream uint32

	mu       sync.Mutex
	version  int
	routes   []*routev3.Route
	clusters []typesv3.Resource
}

func (p *plane) serveAdd(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("n"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(n)
	if err := p.publish(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (p *plane) add(n int) {
	name := fmt.Sprintf("svc%d", n)
	p.routes = append(p.routes, &routev3.Route{
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/" + name}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}, PrefixRewrite: "/",
		}},
	})
	p.clusters = append(p.clusters, &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: address(p.upstream)},
			}}},
		}}},
	})
}

func (p *plane) publish() error {
	p.version++
	snapshot, err := cachev3.NewSnapshot(strconv.Itoa(p.version), map[resourcev3.Type][]typesv3.Resource{
		resourcev3.ClusterType:  p.clusters,
		resourcev3.ListenerType: {p.listener()},
		resourcev3.RouteType: {&routev3.RouteConfiguration{
			Name:         routeName,
			VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: p.routes}},
		}},
	})
	if err != nil {
		return err
	}
	return p.cache.SetSnapshot(context.Background(), node, snapshot)
}

func (p *plane) listener() *listenerv3.Listener {
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: "bench",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: routeName,
			ConfigSource: &corev3.ConfigSource{
				ResourceApiVersion:    corev3.ApiVersion_V3,
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			},
		}},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&routerv3.Router{})},
		}},
	}
	return &listenerv3.Listener{
		Name:    "bench",
		Address: address(p.port),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(manager)},
		}}}},
	}
}

func address(port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

func pack(m proto.Message) *anypb.Any {
	packed, err := anypb.New(m)
	if err != nil {
		log.Fatal(err)
	}
	return packed
}
