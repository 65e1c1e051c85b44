// Package xds decides how definitions become Envoy configuration, and whether Envoy has taken it: it builds
// the listener, the routes and the clusters, pushes them over delta ADS and hears what each Envoy says of them.
package xds

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	"gatepost/definitions"
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
const VersionPath = definitions.OwnPath + "/version"

// Options is what the configuration needs to know of its surroundings.
type Options struct {
	// GRPCCluster is the static cluster, from Envoy's bootstrap, of Gatepost's gRPC server. Required.
	GRPCCluster string
	// HTTPCluster is the static cluster, from Envoy's bootstrap, of Gatepost's token handler. Required.
	HTTPCluster string
	// CAFile is the file, as Envoy sees it, of the roots that https upstreams are verified against.
	// Empty: DefaultCAFile.
	CAFile string
	// Listen is the address that Envoy listens on instead of the one in the definitions, so that several gateways on a
	// machine can share definitions. The zero address is the one in the definitions.
	Listen netip.AddrPort
	// Module is how Envoy checks tokens by itself. The zero Module: not at all.
	Module Module
	// Withheld are the names of services whose upstreams Envoy has refused: their paths answer 503 to whoever
	// may pass, and no cluster is made for them.
	Withheld []string
}

// ListenAddress returns the address on which an Envoy with these options accepts requests.
func (o Options) ListenAddress(gw *definitions.Gateway) netip.AddrPort {
	return cmp.Or(o.Listen, gw.Listen)
}

// DefaultCAFile is where Debian, Ubuntu, Alpine and the official Envoy images keep the system's roots.
const DefaultCAFile = "/etc/ssl/certs/ca-certificates.crt"

// Build makes Envoy's configuration from definitions. It is pure and deterministic: the order of the services has no
// effect. Every resource that it returns satisfies Envoy's own rules (ValidateAll), and every reference in it leads to a
// resource. Otherwise it returns all errors at once. It does not check the definitions again.
func Build(gw *definitions.Gateway, opts Options) (*Snapshot, error) {
	return new(Builder).Build(gw, opts)
}

// Builder builds successive configurations as [Build] does, and reuses the unchanged resources of the last one. A service
// is unchanged if its pointer is: with ten thousand services and a change of one, only that one is rebuilt. The zero
// Builder is ready for use. It is safe for concurrent use.
type Builder struct {
	mu    sync.Mutex
	last  built
	shelf shelf // goes from one to the next
}

// built is the result of a Build and its input.
type built struct {
	common   *common // nil if nothing was built yet
	services []*definitions.Service
	view
}

// common is the part of the input that affects every service.
type common struct {
	gateway definitions.Gateway // without the services
	opts    Options
}

// Build is [Build]. If it fails, the Builder is unchanged.
func (b *Builder) Build(gw *definitions.Gateway, opts Options) (*Snapshot, error) {
	if opts.CAFile == "" {
		opts.CAFile = DefaultCAFile
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	one := &builder{gw: gw, opts: opts, shelf: &b.shelf, policies: map[string]*anypb.Any{}}
	snapshot, err := one.snapshot(b.last)
	if err != nil {
		return nil, fmt.Errorf("building the Envoy configuration: %w", err)
	}
	b.last = built{one.common, gw.Services, snapshot.view}
	return snapshot, nil
}

// builder holds what one Build goes through. It collects what is wrong rather than stop at the first.
type builder struct {
	gw     *definitions.Gateway
	opts   Options
	common *common
	// version is the one that the beacon tells; empty until it is known.
	version string
	shelf   *shelf
	// about is what is being built, for errors.
	about string
	errs  []error
	// policies are the CORS policies made so far; services with the same methods share one.
	policies map[string]*anypb.Any // :: methods and exposed headers → policy
}

// snapshot makes what differs from what was built last.
func (b *builder) snapshot(last built) (*Snapshot, error) {
	if b.opts.GRPCCluster == "" || b.opts.HTTPCluster == "" {
		return nil, errors.New("options: the clusters of Gatepost itself have no names")
	}
	b.common = &common{*b.gw, b.opts}
	b.common.gateway.Services = nil
	if !reflect.DeepEqual(last.common, b.common) {
		last = built{view: b.frame()}
	}
	gone, come := difference(last.services, b.gw.Services)
	next := last.view
	next.clusters = next.clusters.with(b.clusters(gone, come))
	next.clusters.seal()
	b.about = "clusters"
	if err := checkNames(next.clusters, b.opts); err != nil {
		b.fail(err)
	}
	scopes := b.scopes(next.clusters)
	next.routes = next.routes.with(scopes.changed(gone, come))
	next.routes.seal()
	out := &Snapshot{Version: hash(next.listeners.version, next.clusters.version, next.routes.version), view: next}
	out.routes = b.tell(out.Version, next.routes, scopes)
	return out, errors.Join(b.errs...)
}

// tell is the routes with the version of the whole in the beacon. It is hashed without itself.
func (b *builder) tell(version string, routes set, scopes *scopes) set {
	b.version = version
	out := routes.with(scopes.of(scopeOf(VersionPath), nil))
	out.version = hashed(routes.version, version).short()
	return out
}

// frame is what there is whatever the services are.
func (b *builder) frame() view {
	v := view{}
	b.about = "listener"
	l := b.listener()
	v.listeners = v.listeners.with(map[string]*resource{l.GetName(): b.finish(l)})
	v.listeners.seal()
	b.about = "clusters"
	v.clusters = v.clusters.with(map[string]*resource{nowhere: b.finish(withoutEndpoint(nowhere))})
	scopes := b.scopes(v.clusters)
	v.routes = v.routes.with(scopes.of(scopeOf(b.gw.Tokens.Path), nil)).with(scopes.of(scopeOf("/"), nil))
	return v
}

// difference is which of the former services are there no more, and which of the present ones were not there. Mostly they
// are many, and only some in the middle differ.
func difference(former, present []*definitions.Service) (gone, come []*definitions.Service) {
	for len(former) > 0 && len(present) > 0 && former[0] == present[0] {
		former, present = former[1:], present[1:]
	}
	for len(former) > 0 && len(present) > 0 && former[len(former)-1] == present[len(present)-1] {
		former, present = former[:len(former)-1], present[:len(present)-1]
	}
	had := make(map[*definitions.Service]bool, len(former))
	for _, s := range former {
		had[s] = true
	}
	for _, s := range present {
		if !had[s] {
			come = append(come, s)
		}
		delete(had, s)
	}
	for _, s := range former {
		if had[s] {
			gone = append(gone, s)
		}
	}
	return gone, come
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
	if !b.checks(rule) {
		return b.pack(authz.Unchecked())
	}
	return b.pack(rule.With(b.shared()))
}

// checks reports whether Gatepost is asked about each request for a route with the rule.
func (b *builder) checks(rule authz.Rule) bool {
	return rule.Authenticate || len(b.gw.Origins) > 0
}
