package xds

import (
	"maps"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// share moves filter settings that all routes of a scope have in common to the scope. CORS settings only count on
// routes that forward.
func share(scope *routev3.VirtualHost, routes []*routev3.Route, unchecked *anypb.Any) {
	alike := func(filter string, asked []*routev3.Route) *anypb.Any {
		if len(asked) == 0 {
			return nil
		}
		first := asked[0].GetTypedPerFilterConfig()[filter]
		for _, r := range asked[1:] {
			if !proto.Equal(first, r.GetTypedPerFilterConfig()[filter]) {
				return nil
			}
		}
		return first
	}
	var forwarding []*routev3.Route
	for _, r := range routes {
		if r.GetRoute() != nil {
			forwarding = append(forwarding, r)
		}
	}
	shared := map[string]*anypb.Any{}
	if cors := alike(filterCORS, forwarding); cors != nil {
		shared[filterCORS] = cors
	}
	// Envoy merges a rule with that of the scope, so only the setting that disables the check can be shared.
	if rule := alike(filterAuthz, routes); rule != nil && proto.Equal(rule, unchecked) {
		shared[filterAuthz] = rule
	}
	for _, r := range routes {
		for filter := range shared {
			delete(r.GetTypedPerFilterConfig(), filter)
		}
	}
	maps.Copy(shared, scope.GetTypedPerFilterConfig())
	scope.TypedPerFilterConfig = shared
}

// lift moves what all routes to upstreams do alike to their virtual host: the headers that they remove, and their
// retries. With ten thousand services, each copy in a route takes megabytes of Envoy. Envoy applies the changes of a
// route before those of its virtual host, so routes that add headers, or remove others than identity, keep theirs.
func lift(vhost *routev3.VirtualHost, routes []*routev3.Route, identity string) {
	var alike []*routev3.Route
	for _, r := range routes {
		if to := r.GetRoute(); to == nil || to.GetCluster() == blackhole {
			continue
		}
		alike = append(alike, r)
		if len(r.GetRequestHeadersToAdd())+len(r.GetResponseHeadersToAdd()) > 0 ||
			!slices.Equal(r.GetRequestHeadersToRemove(), alike[0].GetRequestHeadersToRemove()) ||
			!slices.Equal(r.GetResponseHeadersToRemove(), []string{identity}) ||
			!proto.Equal(r.GetRoute().GetRetryPolicy(), alike[0].GetRoute().GetRetryPolicy()) {
			return
		}
	}
	for i, r := range alike {
		to := proto.CloneOf(r.GetRoute()) // other virtual hosts share it
		if i == 0 {
			vhost.RetryPolicy, vhost.RequestBodyBufferLimit = to.GetRetryPolicy(), r.GetRequestBodyBufferLimit()
			vhost.RequestHeadersToRemove = r.GetRequestHeadersToRemove()
			vhost.ResponseHeadersToRemove = append(vhost.GetResponseHeadersToRemove(), identity)
		}
		to.RetryPolicy, r.RequestBodyBufferLimit, r.RequestHeadersToRemove, r.ResponseHeadersToRemove = nil, nil, nil, nil
		r.Action = &routev3.Route_Route{Route: to}
	}
}
