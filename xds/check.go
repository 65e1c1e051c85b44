package xds

import (
	"errors"
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// checkNames refuses a cluster with the name of one of the bootstrap's, and options that name none.
func checkNames(clusters set, opts Options) error {
	var errs []error
	for _, static := range []string{opts.GRPCCluster, opts.HTTPCluster} {
		if static == "" {
			errs = append(errs, errors.New("a cluster of the bootstrap has no name"))
		}
		if clusters.get(static) != nil {
			errs = append(errs, fmt.Errorf("cluster %q is also one of the bootstrap's", static))
		}
	}
	return errors.Join(errs...)
}

// checkRoutes checks the references of finished routes: Envoy accepts a route to a missing cluster, and responds 503.
func checkRoutes(routes []*routev3.Route, clusters set, opts Options) error {
	var errs []error
	for _, route := range routes {
		to := route.GetRoute()
		if to != nil && clusters.get(to.GetCluster()) == nil && to.GetCluster() != opts.HTTPCluster {
			errs = append(errs, fmt.Errorf("route %q: there is no cluster %q", route.GetName(), to.GetCluster()))
		}
		if route.GetTypedPerFilterConfig()[filterAuthz] == nil {
			errs = append(errs, fmt.Errorf("route %q: it has no rule", route.GetName()))
		}
		if route.GetName() == "" {
			errs = append(errs, errors.New("a route has no name")) // the scope filter needs it
		}
	}
	return errors.Join(errs...)
}
