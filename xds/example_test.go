package xds_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"gatepost/definitions"
	"gatepost/xds"
)

var options = xds.Options{GRPCCluster: "gatepost-grpc", HTTPCluster: "gatepost-http"}

const shop = `
services:
  - {name: orders, path: /orders, upstreams: ["http://orders:8080"]}
  - {name: items, path: /items, authenticate: false, upstreams: ["http://items:8080"]}
`

// Definitions become a snapshot: a listener, one set of routes for each first segment of a path, and a cluster for each
// service.
func ExampleBuild() {
	d, err := definitions.Parse("shop.yaml", []byte(shop))
	if err != nil {
		fmt.Println(err)
		return
	}
	snapshot, err := xds.Build(d.Gateway, options)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, typeURL := range []string{resourcev3.ListenerType, resourcev3.ScopedRouteType, resourcev3.ClusterType} {
		resources, _ := snapshot.Resources(typeURL)
		for _, name := range slices.Sorted(maps.Keys(resources)) {
			name, _, _ := strings.Cut(name, "#") // a hash of its content follows
			fmt.Println(typeURL[strings.LastIndexByte(typeURL, '.')+1:], name)
		}
	}
	// Output:
	// Listener gatepost
	// ScopedRouteConfiguration /
	// ScopedRouteConfiguration /.gatepost
	// ScopedRouteConfiguration /items
	// ScopedRouteConfiguration /orders
	// ScopedRouteConfiguration /token
	// Cluster nowhere
	// Cluster service/items
	// Cluster service/orders
}

// The version is a hash of the content: the order of the services does not change it, any value does.
func ExampleSnapshot() {
	version := func(services string) string {
		d, err := definitions.Parse("shop.yaml", []byte("services: ["+services+"]"))
		if err != nil {
			return err.Error()
		}
		snapshot, err := xds.Build(d.Gateway, options)
		if err != nil {
			return err.Error()
		}
		return snapshot.Version
	}
	const (
		orders = `{name: orders, path: /orders, upstreams: ["http://orders:8080"]}`
		items  = `{name: items, path: /items, upstreams: ["http://items:8080"]}`
		public = `{name: items, path: /items, upstreams: ["http://items:8080"], authenticate: false}`
	)
	fmt.Println("another order:", version(orders+", "+items) == version(items+", "+orders))
	fmt.Println("another rule:", version(orders+", "+items) == version(orders+", "+public))
	// Output:
	// another order: true
	// another rule: false
}
