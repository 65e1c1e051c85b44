// Package xds decides how definitions become Envoy configuration, and whether Envoy has taken it: it builds
// the listener, the routes and the clusters, pushes them over delta ADS and hears what each Envoy says of them.
package xds

import (
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// The names of the resources that there is one of.
const (
	listenerName = "gatepost"
	// nowhere is a cluster without an endpoint. Preflight routes name it: the CORS filter answers before a
	// cluster is asked for, and were it ever not to, nothing would reach an upstream.
	nowhere = "nowhere"
)

// VersionPath is where Envoy answers with the version of the routes that it serves, as a JSON string. It is
// public and tells a hash, nothing else.
const VersionPath = ownPath + "/version"

// ownPath is the path that the gateway keeps for itself, with all below it.
const ownPath = "/.gatepost"

// Options is what the configuration needs to know of its surroundings.
type Options struct {
	// GRPCCluster is the static cluster, from Envoy's bootstrap, of Gatepost's gRPC server. Required.
	GRPCCluster string
	// HTTPCluster is the static cluster, from Envoy's bootstrap, of Gatepost's token handler. Required.
	HTTPCluster string
	// CAFile is the file, as Envoy sees it, of the roots that https upstreams are verified against.
	// Empty: DefaultCAFile.
	CAFile string
	// Withheld are the names of services whose upstreams Envoy has refused: their paths answer 503 to whoever
	// may pass, and no cluster is made for them.
	Withheld []string
}

// DefaultCAFile is where Debian, Ubuntu, Alpine and the official Envoy images keep the system's roots.
const DefaultCAFile = "/etc/ssl/certs/ca-certificates.crt"

// Build makes Envoy's configuration from definitions in which every default is filled in. It is pure and
// deterministic: the same definitions, in whatever order their services are, make the same Snapshot. What it
// returns is valid and every reference in it leads somewhere; else it returns all that is wrong at once.
func Build(gw *gatewayv1.Gateway, opts Options) (*Snapshot, error) {
	return new(Builder).Build(gw, opts)
}

// Builder builds one configuration after the other, each as [Build] does, and takes over from the last one what is the
// same: with ten thousand services and a change of one, all but that one. The zero Builder is ready. It is safe for
// concurrent use.
type Builder struct {
	mu    sync.Mutex
	last  parts
	shelf shelf // goes from one to the next
}

// Build is [Build]. Where it fails, the Builder is as it was before.
func (b *Builder) Build(gw *gatewayv1.Gateway, opts Options) (*Snapshot, error) {
	if opts.CAFile == "" {
		opts.CAFile = DefaultCAFile
	}
	if err := checkDefinitions(gw, opts); err != nil {
		return nil, fmt.Errorf("building the Envoy configuration: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	one := &builder{gw: gw, opts: opts, last: b.last, shelf: &b.shelf, next: newParts(), policies: map[string]*anypb.Any{}}
	snapshot := one.snapshot()
	if len(one.errs) > 0 {
		return nil, fmt.Errorf("building the Envoy configuration: %w", errors.Join(one.errs...))
	}
	b.last = one.next
	return snapshot, nil
}

// builder holds what one Build goes through. It collects what is wrong rather than stop at the first.
type builder struct {
	gw   *gatewayv1.Gateway
	opts Options
	// version is the one that the beacon tells; empty until it is known.
	version string
	// common names all that is the same for every service: what a part was made of beside the service.
	common     string
	last, next parts
	shelf      *shelf
	// about is what is being built, for errors.
	about string
	errs  []error
	// policies are the CORS policies made so far; services with the same methods share one.
	policies map[string]*anypb.Any // :: methods and exposed headers → policy
}

// parts are finished resources by the name of all that they were made of.
type parts struct {
	clusters map[string]named
	scopes   map[string][]named
}

// named is a resource and its name.
type named struct {
	name string
	*resource
}

func newParts() parts { return parts{clusters: map[string]named{}, scopes: map[string][]named{}} }

// snapshot makes all resources and names them by their content. The version also stands in the beacon; it is hashed without itself.
func (b *builder) snapshot() *Snapshot {
	b.common = b.nameCommon()
	services := b.services()
	out := &Snapshot{view: view{listeners: newSet(), routes: newSet(), clusters: newSet()}}
	b.about = "listener"
	if l := b.listener(); l != nil {
		out.listeners.add(l.GetName(), b.finish(l))
	}
	for _, c := range b.clusters(services) {
		out.clusters.add(c.name, c.resource)
	}
	b.about = "clusters"
	if err := checkNames(out.clusters, b.opts); err != nil {
		b.fail(err)
	}
	scopes := b.scopes(services, out.clusters)
	for _, s := range scopes.all() {
		out.routes.add(s.name, s.resource)
	}
	for _, part := range []*set{&out.listeners, &out.clusters, &out.routes} {
		part.seal()
	}
	out.Version = hash(out.listeners.version, out.clusters.version, out.routes.version)
	b.version = out.Version
	for _, s := range scopes.of(firstSegment(VersionPath)) {
		out.routes.add(s.name, s.resource)
	}
	out.routes.version = hashed(out.routes.version, out.Version).short()
	return out
}

// nameCommon names all that the services share: whatever the definitions say beside the services, and the options.
func (b *builder) nameCommon() string {
	b.about = "definitions"
	shared := new(gatewayv1.Gateway).ProtoReflect()
	b.gw.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if field.Name() != "services" {
			shared.Set(field, value)
		}
		return true
	})
	return hashed(b.content(shared.Interface()), b.opts.GRPCCluster, b.opts.HTTPCluster, b.opts.CAFile).key()
}

// content is all that a message says: the same for messages that say the same.
func (b *builder) content(m proto.Message) string {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // a string that is no UTF-8
		b.fail(err)
	}
	return string(raw)
}

// finish makes of a message what Envoy is sent.
func (b *builder) finish(m proto.Message) *resource {
	r, err := b.shelf.resource(m)
	if err != nil {
		b.fail(err)
		return &resource{}
	}
	return r
}

func (b *builder) fail(err error) {
	b.errs = append(b.errs, fmt.Errorf("%s: %w", b.about, err))
}

// validated is a message that knows its own rules (protoc-gen-validate).
type validated interface {
	proto.Message
	ValidateAll() error
}

// pack wraps a message that Envoy takes as an Any, and validates it: the validation of the message around it
// does not look inside.
func (b *builder) pack(m validated) *anypb.Any {
	if err := m.ValidateAll(); err != nil {
		b.fail(err)
	}
	packed := new(anypb.Any)
	if err := anypb.MarshalFrom(packed, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		b.fail(err)
	}
	return packed
}

// validate holds a finished resource, or a part of one, against Envoy's rules.
func (b *builder) validate(m validated) {
	if err := m.ValidateAll(); err != nil {
		b.fail(err)
	}
}

// gate is what a route carries for ext_authz. A route that needs neither a token nor an origin is not asked
// about, so that public services go on while Gatepost is away.
func (b *builder) gate(rule authz.Rule) *anypb.Any {
	if !rule.Authenticate && len(b.gw.GetOrigins()) == 0 {
		return b.pack(authz.Unchecked())
	}
	return b.pack(rule.With(b.shared()))
}
