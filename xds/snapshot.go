package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// Snapshot is one whole Envoy configuration, made by Build. It is never changed; several goroutines may use it.
type Snapshot struct {
	// Version is a hash of the content: the same definitions make the same version, also in another process.
	Version string

	listeners, routes, clusters set
}

// set is all resources of one type. The version of each is a hash of its content, that of the set one of all
// names and versions: it says all that an Envoy that acknowledged it has.
type set struct {
	version  string
	byName   map[string]types.Resource
	versions map[string]string
}

// Resources are the snapshot's resources of one type, by name; nil for a type that it has none of. Nobody may
// change them.
func (s *Snapshot) Resources(typeURL string) map[string]types.Resource {
	if part := s.view().of(typeURL); part != nil {
		return part.byName
	}
	return nil
}

func (s *Snapshot) view() view {
	return view{listeners: s.listeners, routes: s.routes, clusters: s.clusters}
}

// empty says whether there is nothing that could be served: such a snapshot would make Envoy close its port.
func (s *Snapshot) empty() bool {
	return s == nil || s.Version == "" || len(s.listeners.byName) == 0 || len(s.routes.byName) == 0
}

// snapshot names the finished resources by their content. The version also stands in the beacon; it is hashed
// without itself.
func (b *builder) snapshot(listener *listenerv3.Listener, scopes []*routev3.ScopedRouteConfiguration, clusters clusterSet) (*Snapshot, error) {
	out := &Snapshot{listeners: newSet(), routes: newSet(), clusters: newSet()}
	out.listeners.add(listener.GetName(), listener, b.digest(listener))
	for name, c := range clusters {
		out.clusters.add(name, c, b.digest(c))
	}
	for _, scope := range scopes {
		out.routes.add(scope.GetName(), scope, b.digest(scope))
	}
	for _, part := range []*set{&out.listeners, &out.clusters, &out.routes} {
		part.seal()
	}
	out.Version = hash(out.listeners.version, out.clusters.version, out.routes.version)
	stamp(scopes, out.Version)
	beacon := out.routes.byName[beaconScope].(*routev3.ScopedRouteConfiguration)
	out.routes.add(beaconScope, beacon, b.digest(beacon))
	out.routes.seal()
	if len(b.errs) > 0 {
		return nil, fmt.Errorf("building the Envoy configuration: %w", errors.Join(b.errs...))
	}
	return out, nil
}

// stamp writes the version into the answer at VersionPath.
func stamp(scopes []*routev3.ScopedRouteConfiguration, version string) {
	for _, scope := range scopes {
		if scope.GetName() != beaconScope {
			continue
		}
		for _, r := range routesOf(scope) {
			if r.GetMatch().GetPath() == VersionPath {
				r.GetDirectResponse().Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: jsonString(version)}}
			}
		}
	}
}

func newSet() set {
	return set{byName: map[string]types.Resource{}, versions: map[string]string{}}
}

func (s *set) add(name string, r types.Resource, version string) {
	s.byName[name], s.versions[name] = r, version
}

// seal computes the version of the whole set; nothing is added afterwards.
func (s *set) seal() {
	parts := make([]string, 0, 2*len(s.versions))
	for _, name := range slices.Sorted(maps.Keys(s.versions)) {
		parts = append(parts, name, s.versions[name])
	}
	s.version = hash(parts...)
}

// digest hashes one resource, as go-control-plane does when it sends it: Envoy tells these versions when it comes
// back, and is then sent what differs.
func (b *builder) digest(m proto.Message) string {
	raw, err := cachev3.MarshalResource(m)
	if err != nil { // a string that is no UTF-8
		b.fail(err)
	}
	return cachev3.HashResource(raw)
}

// hash is 64 bits of SHA-256 over parts that are told apart: enough to tell versions apart, which nobody
// profits from forging.
func hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write([]byte(p))
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// view is what is being served: a snapshot, or a step from one to the next. It is what go-control-plane takes
// for a snapshot (cache.ResourceSnapshot).
type view struct {
	listeners, routes, clusters set
}

// of is the view's part of one type; nil for a type that Gatepost does not serve.
func (v view) of(typeURL string) *set {
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

// GetVersion is the version of all resources of a type together.
func (v view) GetVersion(typeURL string) string {
	if s := v.of(typeURL); s != nil {
		return s.version
	}
	return ""
}

// GetResources are the resources of a type.
func (v view) GetResources(typeURL string) map[string]types.Resource {
	if s := v.of(typeURL); s != nil {
		return s.byName
	}
	return nil
}

// GetResourcesAndTTL are the resources of a type; none has a time to live.
func (v view) GetResourcesAndTTL(typeURL string) map[string]types.ResourceWithTTL {
	out := map[string]types.ResourceWithTTL{}
	for name, r := range v.GetResources(typeURL) {
		out[name] = types.ResourceWithTTL{Resource: r}
	}
	return out
}

// GetVersionMap gives the version of each resource of a type.
func (v view) GetVersionMap(typeURL string) map[string]string {
	if s := v.of(typeURL); s != nil {
		return s.versions
	}
	return nil
}

// ConstructVersionMap has nothing left to do.
func (v view) ConstructVersionMap() error { return nil }
