package xds

import (
	"fmt"
	"maps"
	"slices"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/certs"
)

// Bootstrap is the same configuration in the form of one static file, so that an Envoy can be asked about it
// (`envoy --mode validate`) without a control plane. The clusters of Gatepost itself are given, or, by name
// alone, stood in for by ones that lead nowhere. So are the certificates, whose files are checked elsewhere.
func (s *Snapshot) Bootstrap(opts Options, own ...*clusterv3.Cluster) (*bootstrapv3.Bootstrap, error) {
	static := &bootstrapv3.Bootstrap_StaticResources{Clusters: own}
	for _, name := range []string{opts.GRPCCluster, opts.HTTPCluster} {
		if !slices.ContainsFunc(own, func(c *clusterv3.Cluster) bool { return c.GetName() == name }) {
			static.Clusters = append(static.Clusters, withoutEndpoint(name))
		}
	}
	clusters, err := sorted[*clusterv3.Cluster](s, resourcev3.ClusterType)
	if err != nil {
		return nil, fmt.Errorf("writing a static configuration: %w", err)
	}
	static.Clusters = append(static.Clusters, clusters...)
	pairs, cas, err := withStaticUpstreamSecrets(clusters)
	if err != nil {
		return nil, fmt.Errorf("writing a static configuration: %w", err)
	}
	listeners, err := sorted[*listenerv3.Listener](s, resourcev3.ListenerType)
	if err != nil {
		return nil, fmt.Errorf("writing a static configuration: %w", err)
	}
	for _, l := range listeners {
		if err := s.takeIn(l); err != nil {
			return nil, fmt.Errorf("writing a static configuration: %w", err)
		}
		static.Listeners = append(static.Listeners, l)
		served, clients, err := withStaticSecrets(l)
		if err != nil {
			return nil, fmt.Errorf("writing a static configuration: %w", err)
		}
		pairs, cas = append(pairs, served...), append(cas, clients...)
	}
	if static.Secrets, err = standInSecrets(pairs, cas); err != nil {
		return nil, fmt.Errorf("writing a static configuration: %w", err)
	}
	return &bootstrapv3.Bootstrap{StaticResources: static}, nil
}

// standInSecrets returns secrets with these names: a certificate for each, and CAs.
func standInSecrets(pairs, cas []string) ([]*tlsv3.Secret, error) {
	if len(pairs)+len(cas) == 0 {
		return nil, nil
	}
	placeholder, err := certs.SelfSigned([]string{"gatepost.invalid"}, time.Now())
	if err != nil {
		return nil, err
	}
	byName, roots := map[string]certs.Pair{}, map[string]certs.Roots{}
	for _, name := range pairs {
		byName[name] = placeholder
	}
	for _, name := range cas {
		roots[name] = certs.Roots{PEM: placeholder.Chain}
	}
	return Secrets(byName, roots), nil
}

// sorted are the resources of a type, in the order of their names.
func sorted[R proto.Message](s *Snapshot, typeURL string) ([]R, error) {
	all, err := s.Resources(typeURL)
	if err != nil {
		return nil, err
	}
	out := make([]R, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if one, ok := all[name].(R); ok {
			out = append(out, one)
		}
	}
	return out, nil
}

// takeIn puts the routes into a listener, in place of the source from which Envoy would get them.
func (s *Snapshot) takeIn(l *listenerv3.Listener) error {
	scopes, err := sorted[*routev3.ScopedRouteConfiguration](s, resourcev3.ScopedRouteType)
	if err != nil {
		return err
	}
	for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		if err := inlineRoutes(scopes, chain); err != nil {
			return err
		}
	}
	return nil
}

// inlineRoutes puts the routes into a filter chain. A chain that is nil stays so, as does the
// one of ACME, which has none.
func inlineRoutes(scopes []*routev3.ScopedRouteConfiguration, chain *listenerv3.FilterChain) error {
	if chain == nil || !chain.GetFilters()[0].GetTypedConfig().MessageIs((*hcmv3.HttpConnectionManager)(nil)) {
		return nil
	}
	hcm, err := managerOf(chain)
	if err != nil {
		return err
	}
	hcm.GetScopedRoutes().ConfigSpecifier = &hcmv3.ScopedRoutes_ScopedRouteConfigurationsList{
		ScopedRouteConfigurationsList: &hcmv3.ScopedRouteConfigurationsList{ScopedRouteConfigurations: scopes},
	}
	packed, err := anypb.New(hcm)
	if err != nil {
		return err
	}
	chain.Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
	return nil
}
