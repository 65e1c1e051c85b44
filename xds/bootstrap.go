package xds

import (
	"fmt"
	"maps"
	"slices"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Bootstrap is the same configuration in the form of one static file, so that an Envoy can be asked about it
// (`envoy --mode validate`) without a control plane. The clusters of Gatepost itself are given, or, by name
// alone, stood in for by ones that lead nowhere.
func (s *Snapshot) Bootstrap(opts Options, own ...*clusterv3.Cluster) (*bootstrapv3.Bootstrap, error) {
	static := &bootstrapv3.Bootstrap_StaticResources{Clusters: own}
	for _, name := range []string{opts.GRPCCluster, opts.HTTPCluster} {
		if !slices.ContainsFunc(own, func(c *clusterv3.Cluster) bool { return c.GetName() == name }) {
			static.Clusters = append(static.Clusters, standIn(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.clusters.byName)) {
		static.Clusters = append(static.Clusters, s.clusters.byName[name].(*clusterv3.Cluster))
	}
	for _, name := range slices.Sorted(maps.Keys(s.listeners.byName)) {
		l, err := s.withRoutes(s.listeners.byName[name].(*listenerv3.Listener))
		if err != nil {
			return nil, fmt.Errorf("writing a static configuration: %w", err)
		}
		static.Listeners = append(static.Listeners, l)
	}
	return &bootstrapv3.Bootstrap{StaticResources: static}, nil
}

// withRoutes is the listener with its routes inside, instead of where to ask for them.
func (s *Snapshot) withRoutes(l *listenerv3.Listener) (*listenerv3.Listener, error) {
	hcm, err := managerOf(l)
	if err != nil {
		return nil, err
	}
	list := &hcmv3.ScopedRouteConfigurationsList{}
	for _, name := range slices.Sorted(maps.Keys(s.routes.byName)) {
		list.ScopedRouteConfigurations = append(list.ScopedRouteConfigurations, s.routes.byName[name].(*routev3.ScopedRouteConfiguration))
	}
	hcm.GetScopedRoutes().ConfigSpecifier = &hcmv3.ScopedRoutes_ScopedRouteConfigurationsList{ScopedRouteConfigurationsList: list}
	packed, err := anypb.New(hcm)
	if err != nil {
		return nil, err
	}
	l = proto.CloneOf(l)
	l.FilterChains[0].Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
	return l, nil
}

func standIn(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(connectTimeout),
		LoadAssignment:       &endpointv3.ClusterLoadAssignment{ClusterName: name},
	}
}
