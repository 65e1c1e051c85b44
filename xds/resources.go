package xds

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// resource is one resource, serialized: with ten thousand services the messages would take ten times the memory. It is
// immutable, and snapshots share equal ones.
type resource struct {
	raw     []byte
	version string // a hash of raw; short, since it is sent with the resource
	// looksUp is whether it is a cluster whose hosts Envoy looks up before it uses the cluster.
	looksUp bool
	// check is how long the first health check of a cluster may take.
	check time.Duration
	// kept is whether it represents a cluster of an earlier process that an Envoy still has. Only its name and version are
	// known.
	kept bool
}

// newResource marshals a finished message. It fails if a string is not UTF-8. An Envoy that reconnects names the
// versions that it has, and is sent what differs.
func newResource(m proto.Message) (*resource, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	cluster, _ := m.(*clusterv3.Cluster)
	r := &resource{raw: raw, version: hashed(string(raw)).short(), looksUp: cluster.GetClusterType().GetName() == dnsCluster}
	for _, check := range cluster.GetHealthChecks() {
		r.check = check.GetTimeout().AsDuration()
	}
	return r, nil
}

// named is a resource and its name.
type named struct {
	name string
	*resource
}

// set is all resources of one type, sorted by name. It is immutable once it is sealed. Its version is a hash of all
// names and versions: an Envoy that acknowledged it has exactly these resources.
type set struct {
	version string
	all     []named
}

// get returns the resource with a name, or nil.
func (s set) get(name string) *resource {
	if at, there := find(s.all, name); there {
		return s.all[at].resource
	}
	return nil
}

func find(all []named, name string) (at int, there bool) {
	return slices.BinarySearchFunc(all, name, func(one named, name string) int { return strings.Compare(one.name, name) })
}

// with returns a set that is not sealed yet: s with other resources, by name, and without those that are nil. Unchanged
// resources are copied in whole runs: with ten thousand resources and a change of one, that takes some microseconds.
func (s set) with(others map[string]*resource) set {
	out, rest := make([]named, 0, len(s.all)+len(others)), s.all
	for _, name := range slices.Sorted(maps.Keys(others)) {
		at, there := find(rest, name)
		out, rest = append(out, rest[:at]...), rest[at:]
		if there {
			rest = rest[1:]
		}
		if other := others[name]; other != nil {
			out = append(out, named{name, other})
		}
	}
	return set{all: append(out, rest...)}
}

// seal computes the version of the whole set.
func (s *set) seal() {
	size := 0
	for _, one := range s.all {
		size += len(one.name) + len(one.version) + 2*binary.MaxVarintLen16
	}
	h := &hasher{make([]byte, 0, size)}
	for _, one := range s.all {
		h.add(one.name)
		h.add(one.version)
	}
	s.version = h.short()
}

// since returns the difference to a former set: the resources that are new or have another version, and the names of
// removed ones, both sorted.
func (s set) since(former set) (changed []named, removed []string) {
	old := former.all
	for _, one := range s.all {
		for len(old) > 0 && old[0].name < one.name {
			removed, old = append(removed, old[0].name), old[1:]
		}
		if len(old) == 0 || old[0].name != one.name {
			changed = append(changed, one)
			continue
		}
		if old[0].resource != one.resource && old[0].version != one.version {
			changed = append(changed, one)
		}
		old = old[1:]
	}
	for _, one := range old {
		removed = append(removed, one.name)
	}
	return changed, removed
}

// equals reports whether these are the names and versions of the set.
func (s set) equals(versions map[string]string) bool {
	return len(s.all) == len(versions) && !slices.ContainsFunc(s.all, func(one named) bool {
		version, there := versions[one.name]
		return !there || version != one.version
	})
}

// messages returns the resources of a set of a type, by name.
func (s *set) messages(typeURL string) (map[string]proto.Message, error) {
	out := make(map[string]proto.Message, len(s.all))
	for _, one := range s.all {
		var m proto.Message
		switch typeURL {
		case resourcev3.ListenerType:
			m = new(listenerv3.Listener)
		case resourcev3.ScopedRouteType:
			m = new(routev3.ScopedRouteConfiguration)
		default:
			m = new(clusterv3.Cluster)
		}
		if err := proto.Unmarshal(one.raw, m); err != nil {
			return nil, fmt.Errorf("reading the resource %q: %w", one.name, err)
		}
		out[one.name] = m
	}
	return out, nil
}

// hasher computes 64 bits of SHA-256 over a list of parts. That is enough to distinguish versions, and nobody gains
// by forging one.
type hasher struct{ text []byte }

func (h *hasher) add(part string) {
	h.text = binary.AppendUvarint(h.text, uint64(len(part)))
	h.text = append(h.text, part...)
}

func (h *hasher) sum() string {
	sum := sha256.Sum256(h.text)
	return hex.EncodeToString(sum[:8])
}

// short is sum in fewer characters, for versions that are sent with each change.
func (h *hasher) short() string {
	sum := sha256.Sum256(h.text)
	return base64.RawURLEncoding.EncodeToString(sum[:8])
}

func hashed(parts ...string) *hasher {
	h := new(hasher)
	for _, p := range parts {
		h.add(p)
	}
	return h
}

func hash(parts ...string) string { return hashed(parts...).sum() }
