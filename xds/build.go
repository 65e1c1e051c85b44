// Package xds decides how definitions become Envoy configuration, and whether Envoy has taken it: it builds
// the listener, the routes and the clusters, pushes them over delta ADS and hears what each Envoy says of them.
package xds

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// The names of the resources that there is one of.
const (
	listenerName = "gatepost"
	// nowhere is a cluster without an endpoint. Preflight routes name it: the CORS filter answers before a
	// cluster is asked for, and were it ever not to, nothing would reach an upstream.
	nowhere = "gatepost-nowhere"
)

// VersionPath is where Envoy answers with the version of the routes that it serves, as a JSON string. It is
// public and tells a hash, nothing else.
const VersionPath = ownPath + "/version"

// ownPath is the path that the gateway keeps for itself, with all below it.
const ownPath = "/.gatepost"

// beaconScope is the name of the scope in which VersionPath lies.
const beaconScope = ownPath

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
	if opts.CAFile == "" {
		opts.CAFile = DefaultCAFile
	}
	if err := checkDefinitions(gw, opts); err != nil {
		return nil, fmt.Errorf("building the Envoy configuration: %w", err)
	}
	b := &builder{gw: gw, opts: opts, policies: map[string]*anypb.Any{}}
	services := b.services()
	listener := b.listener()
	routes := b.scopes(services)
	clusters := b.clusters(services)
	if len(b.errs) > 0 {
		return nil, fmt.Errorf("building the Envoy configuration: %w", errors.Join(b.errs...))
	}
	if err := checkReferences(routes, clusters, opts); err != nil {
		return nil, fmt.Errorf("building the Envoy configuration: %w", err)
	}
	return b.snapshot(listener, routes, clusters)
}

// builder holds what one Build goes through. It collects what is wrong rather than stop at the first.
type builder struct {
	gw   *gatewayv1.Gateway
	opts Options
	// about is what is being built, for errors.
	about string
	errs  []error
	// policies are the CORS policies made so far; services with the same methods share one.
	policies map[string]*anypb.Any // :: methods and exposed headers → policy
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
	return b.pack(rule.Extensions())
}
