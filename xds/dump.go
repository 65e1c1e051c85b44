package xds

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Dump is an Envoy configuration in the form in which people read it. Its JSON form is stable: the same configuration
// makes the same bytes.
type Dump struct {
	Version   string            `json:"version"`
	Listeners []json.RawMessage `json:"listeners,omitempty"`
	Scopes    []json.RawMessage `json:"scoped_routes"`
	Clusters  []json.RawMessage `json:"clusters"`
}

// Dump returns the configuration. If service is not empty, only the routes and clusters of that service are in it; it
// fails if the configuration has none of them.
func (s *Snapshot) Dump(service string) (*Dump, error) {
	d := &Dump{Version: s.Version, Scopes: []json.RawMessage{}, Clusters: []json.RawMessage{}}
	for typeURL, into := range map[string]*[]json.RawMessage{
		resourcev3.ListenerType: &d.Listeners, resourcev3.ScopedRouteType: &d.Scopes, resourcev3.ClusterType: &d.Clusters,
	} {
		resources, err := s.Resources(typeURL)
		if err != nil {
			return nil, fmt.Errorf("reading resources back: %w", err)
		}
		for _, name := range slices.Sorted(maps.Keys(resources)) {
			if service != "" && !concerns(resources[name], name, service) {
				continue
			}
			text, err := stableJSON(resources[name])
			if err != nil {
				return nil, fmt.Errorf("writing %s: %w", name, err)
			}
			*into = append(*into, text)
		}
	}
	if service != "" && len(d.Scopes)+len(d.Clusters) == 0 {
		return nil, fmt.Errorf("there is no service %q", service)
	}
	return d, nil
}

// concerns reports whether a resource belongs to a service. It removes the routes of other services from a scope.
func concerns(resource proto.Message, name, service string) bool {
	switch r := resource.(type) {
	case *routev3.ScopedRouteConfiguration:
		for _, host := range r.GetRouteConfiguration().GetVirtualHosts() {
			host.Routes = slices.DeleteFunc(host.GetRoutes(), func(route *routev3.Route) bool {
				owner, _, _ := strings.Cut(route.GetName(), " ") // the name of a service has no space
				return owner != service
			})
		}
		config := r.GetRouteConfiguration()
		config.VirtualHosts = slices.DeleteFunc(config.GetVirtualHosts(), func(h *routev3.VirtualHost) bool { return len(h.GetRoutes()) == 0 })
		return len(config.GetVirtualHosts()) > 0
	default:
		owner, isService := ServiceOfStats(name)
		return isService && owner == service
	}
}

// stableJSON is protojson without its spaces, which differ from build to build on purpose. The URLs of types have the
// prefix that other tools expect, instead of the short one of pack.
func stableJSON(m proto.Message) (json.RawMessage, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var compact bytes.Buffer
	err = json.Compact(&compact, text)
	const before = `"@type":"`
	return bytes.ReplaceAll(compact.Bytes(), []byte(before+shortTypeURL), []byte(before+wholeTypeURL)), err
}
