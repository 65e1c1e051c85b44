package xds

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// resource is one resource in the form in which Envoy is sent it: with ten thousand services the messages themselves
// would take ten times the memory. It is never changed; snapshots share the ones that are the same.
type resource struct {
	raw     []byte
	version string // a hash of raw; short, since Envoy is sent it with the resource
	// looksUp: it is a cluster with names, which Envoy looks up before it can use it.
	looksUp bool
	// kept: it stands for a cluster that an Envoy has from before, and of which only name and version are known.
	kept bool
}

// newResource marshals a finished message.
func newResource(m proto.Message) (*resource, error) {
	raw, err := appendResource(nil, m)
	if err != nil {
		return nil, err
	}
	return resourceOf(m, raw), nil
}

// appendResource appends the bytes of a message. It fails where a string is no UTF-8.
func appendResource(b []byte, m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, m)
}

// resourceOf is the resource with a message's bytes. Envoy tells the version when it comes back, and is then sent
// what differs.
func resourceOf(m proto.Message, raw []byte) *resource {
	cluster, _ := m.(*clusterv3.Cluster)
	return &resource{raw: raw, version: hashed(string(raw)).short(), looksUp: cluster.GetType() == clusterv3.Cluster_STRICT_DNS}
}

// shelf is where the bytes of resources stand side by side. Each by itself, they would lie scattered among what they
// were made from, and hold the memory around them when that has gone: with ten thousand services a quarter as much
// again. The zero shelf is ready. It is not safe for concurrent use.
type shelf struct {
	scratch []byte // where a message is marshalled
	rest    []byte // what is free of the board that was begun last
}

// board is how many bytes are allocated at once: so many that nothing else shares the memory, and so few that they are
// soon all given up when services are replaced.
const board = 16 << 10

// resource marshals a finished message.
func (s *shelf) resource(m proto.Message) (*resource, error) {
	raw, err := appendResource(s.scratch[:0], m)
	if err != nil {
		return nil, err
	}
	s.scratch = raw
	return resourceOf(m, s.put(raw)), nil
}

// put returns a copy; of what is large, one with memory of its own.
func (s *shelf) put(raw []byte) []byte {
	if len(raw) > board/4 {
		return bytes.Clone(raw)
	}
	if len(raw) > cap(s.rest) {
		s.rest = make([]byte, 0, board)
	}
	kept := append(s.rest, raw...)
	s.rest = kept[len(kept):]
	return kept[:len(kept):len(kept)]
}

// named is a resource and its name.
type named struct {
	name string
	*resource
}

// set is all resources of one type, sorted by name. It is never changed once it is sealed. Its version is one of all
// names and versions: it says all that an Envoy that acknowledged it has.
type set struct {
	version string
	all     []named
}

// get is the resource of a name; nil where there is none.
func (s set) get(name string) *resource {
	if at, there := find(s.all, name); there {
		return s.all[at].resource
	}
	return nil
}

func find(all []named, name string) (at int, there bool) {
	return slices.BinarySearchFunc(all, name, func(one named, name string) int { return strings.Compare(one.name, name) })
}

// with is another set, yet to be sealed: s with other resources, by name, and without those that are nil. All that is
// the same is copied in whole runs: with ten thousand resources and a change of one that takes some microseconds.
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

// since is what s has to tell who has a former set: the resources that are new or have another version, and the names
// of those that have gone, both sorted.
func (s set) since(former set) (changed []named, gone []string) {
	old := former.all
	for _, one := range s.all {
		for len(old) > 0 && old[0].name < one.name {
			gone, old = append(gone, old[0].name), old[1:]
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
		gone = append(gone, one.name)
	}
	return changed, gone
}

// equals says whether these are the names and versions of the set.
func (s set) equals(versions map[string]string) bool {
	return len(s.all) == len(versions) && !slices.ContainsFunc(s.all, func(one named) bool {
		version, there := versions[one.name]
		return !there || version != one.version
	})
}

// messages are the resources of a set of a type, by name.
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

// hasher makes 64 bits of SHA-256 over parts that are told apart: enough to tell versions apart, which nobody
// profits from forging.
type hasher struct{ text []byte }

func (h *hasher) add(part string) {
	h.text = binary.AppendUvarint(h.text, uint64(len(part)))
	h.text = append(h.text, part...)
}

func (h *hasher) sum() string {
	sum := sha256.Sum256(h.text)
	return hex.EncodeToString(sum[:8])
}

// short is sum in fewer characters, for what Envoy is sent with each change.
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
