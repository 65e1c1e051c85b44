package xds

import (
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// Snapshot is one whole Envoy configuration, made by a Builder. It is never changed; several goroutines may use it.
type Snapshot struct {
	// Version is a hash of the content: the same definitions make the same version, also in another process.
	Version string

	view
}

// view is what is being served: a snapshot, or a step from one to the next.
type view struct {
	listeners, routes, clusters set
}

// of is the view's part of one type; nil for a type that Gatepost does not serve.
func (v *view) of(typeURL string) *set {
	switch typeURL {
	case resourcev3.ListenerType:
		return &v.listeners
	case resourcev3.ScopedRouteType:
		return &v.routes
	case resourcev3.ClusterType:
		return &v.clusters
	}
	return nil
}

// Resources are the snapshot's resources of one type, by name; nil for a type that it has none of. They are made anew
// at each call.
func (s *Snapshot) Resources(typeURL string) (map[string]proto.Message, error) {
	part := s.of(typeURL)
	if part == nil {
		return nil, nil
	}
	return part.messages(typeURL)
}

// empty reports whether there is nothing to serve: such a snapshot would make Envoy close its port.
func (s *Snapshot) empty() bool {
	return s == nil || s.Version == "" || len(s.listeners.all) == 0 || len(s.routes.all) == 0
}
