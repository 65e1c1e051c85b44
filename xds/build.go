// Package xds decides how definitions become Envoy configuration, and delivers it.
//
// [Build] is pure: it makes a [Snapshot] of the listener, the routes and the clusters, and checks each resource and
// every reference between them. A [Builder] does the same for successive definitions and reuses what is unchanged.
// A [Server] sends one snapshot at a time to every Envoy over delta ADS: clusters, then routes, then removals. It
// reports each ACK and NACK as an [Event], and what follows from one is decided by package rollout.
package xds

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/tracing"
)

// The names of the listeners: the one without TLS, the one with, and that for HTTP/3.
const (
	ListenerName      = "gatepost"
	TLSListenerName   = "gatepost-tls"
	http3ListenerName = "gatepost-http3"
)

const (
	// blackhole is a cluster without an endpoint, for preflight routes. The CORS filter responds before a cluster is
	// used. If it ever did not, no upstream would receive the request.
	blackhole = "nowhere"
)

// Options is the input of a configuration apart from the definitions.
type Options struct {
	// GRPCCluster is the static cluster, from Envoy's bootstrap, of Gatepost's gRPC server. Required.
	GRPCCluster string
	// HTTPCluster is the static cluster, from Envoy's bootstrap, of Gatepost's token handler. Required.
	HTTPCluster string
	// CAFile is the file, as Envoy sees it, of the roots that https upstreams are verified against. Default:
	// DefaultCAFile.
	CAFile string
	// Listen is the address that Envoy listens on instead of the one in the definitions, so that several gateways on a
	// machine can share definitions. The zero address is the one in the definitions.
	Listen netip.AddrPort
	// Module is how Envoy checks tokens by itself. With the zero Module it does not.
	Module Module
	// Tracing is where Envoy sends spans. Nil: it makes none.
	Tracing *tracing.Settings
	// Logs is where Envoy sends the access log, if the definitions send it to a collector. If it is nil, such
	// definitions are an error.
	Logs *tracing.Settings
	// LogsError is why Logs could not be read. Only definitions that send the access log to a collector fail with it.
	LogsError error
	// ClusterLimits is whether Gatepost counts requests for all gateways together. Otherwise, rate limits with
	// scope: cluster are an error, errNoClusterLimits.
	ClusterLimits bool
	// ClusterTimeout is how long Envoy waits for Gatepost to count a request. If it is zero: 250 ms.
	ClusterTimeout time.Duration
	// Withheld are the names of services whose upstreams Envoy rejected. They have no cluster, and allowed requests get
	// 503.
	Withheld []string
	// Certificates are those that Envoy gets as secrets, if the definitions have TLS. Without any there is no listener
	// for TLS.
	Certificates []Certificate
}

// errNoClusterLimits is the error for rate limits of the cluster if Gatepost does not count them.
var errNoClusterLimits = errors.New("rate_limits with scope: cluster need Redis, where gateways count together: " +
	"give --redis, or remove scope")

// ListenAddress returns the address on which an Envoy with these options accepts requests.
func (o Options) ListenAddress(gw *definitions.Gateway) netip.AddrPort {
	return cmp.Or(o.Listen, gw.Listen)
}

// DefaultCAFile is the file of the system's roots in Debian, Ubuntu, Alpine and the official Envoy images.
const DefaultCAFile = "/etc/ssl/certs/ca-certificates.crt"

// Build makes Envoy's configuration from definitions. It is pure and deterministic: the order of the services has no
// effect. Every reference in the result leads to a resource. Otherwise Build returns all errors at once. It does not
// check the definitions again. Envoy checks the rules of its messages itself: the generated code for that (ValidateAll)
// would be a seventh of the program, and only the tests call it.
func Build(gw *definitions.Gateway, opts Options) (*Snapshot, error) {
	return new(Builder).Build(gw, opts)
}

// Builder builds successive configurations as [Build] does, and reuses the unchanged resources of the last one. A
// service is unchanged if its pointer is: with ten thousand services and a change of one, only that one is rebuilt.
// The zero Builder is ready for use. It is safe for concurrent use.
type Builder struct {
	mu   sync.Mutex
	last built
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
	one := &builder{
		gw: gw, opts: opts, policies: map[string]*anypb.Any{}, services: map[*definitions.Service]*service{},
	}
	snapshot, err := one.snapshot(b.last)
	if err != nil {
		return nil, fmt.Errorf("building Envoy's configuration: %w", err)
	}
	b.last = built{one.common, gw.Services, snapshot.view}
	return snapshot, nil
}

// builder is the state of one Build. It collects all errors instead of stopping at the first.
type builder struct {
	gw     *definitions.Gateway
	opts   Options
	common *common
	// version is the one in the beacon's response. It is empty until it is known.
	version string
	// about names what is being built, for errors.
	about string
	errs  []error
	// policies are the CORS policies so far. Services with the same methods share one.
	policies map[string]*anypb.Any // :: methods and exposed headers → policy
	// versions returns the version of a service's definitions. It is nil until it is needed.
	versions func(*definitions.Service) string
	// services are those that were asked for so far.
	services map[*definitions.Service]*service
}

// snapshot builds the resources that differ from the last ones.
func (b *builder) snapshot(last built) (*Snapshot, error) {
	if b.opts.GRPCCluster == "" || b.opts.HTTPCluster == "" {
		return nil, errors.New("options: the clusters of Gatepost itself have no names")
	}
	b.common = &common{*b.gw, b.opts}
	b.common.gateway.Services = nil
	if !reflect.DeepEqual(last.common, b.common) {
		last = built{view: b.frame()}
	}
	removed, added := difference(last.services, b.gw.Services)
	next := last.view
	next.clusters = next.clusters.with(b.clusters(removed, added))
	next.clusters.seal()
	b.about = "clusters"
	if err := checkNames(next.clusters, b.opts); err != nil {
		b.fail(err)
	}
	scopes := b.scopes(next.clusters)
	next.routes = next.routes.with(scopes.changed(removed, added))
	next.routes.seal()
	out := &Snapshot{Version: hash(next.listeners.version, next.clusters.version, next.routes.version), view: next}
	out.routes = b.withBeacon(out.Version, next.routes, scopes)
	return out, errors.Join(b.errs...)
}

// withBeacon returns the routes with the version in the beacon's response. The version is a hash without it.
func (b *builder) withBeacon(version string, routes set, scopes *scopes) set {
	b.version = version
	out := routes.with(scopes.of(scopeOf(definitions.VersionPath), nil))
	out.version = hashed(routes.version, version).short()
	return out
}

// frame builds the resources that do not depend on the services.
func (b *builder) frame() view {
	v := view{}
	b.about = "listener"
	for _, l := range b.listeners() {
		v.listeners = v.listeners.with(map[string]*resource{l.GetName(): b.finish(l)})
	}
	v.listeners.seal()
	b.about = "clusters"
	v.clusters = v.clusters.with(map[string]*resource{blackhole: b.finish(withoutEndpoint(blackhole))})
	v.clusters = v.clusters.with(b.collectors())
	scopes := b.scopes(v.clusters)
	v.routes = v.routes.with(scopes.of(scopeOf(b.gw.Tokens.Path), nil)).with(scopes.of(scopeOf("/"), nil))
	return v
}

// difference returns the former services that were removed, and the present ones that were added. It is fast if only
// some services in the middle differ.
func difference(former, present []*definitions.Service) (removed, added []*definitions.Service) {
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
			added = append(added, s)
		}
		delete(had, s)
	}
	for _, s := range former {
		if had[s] {
			removed = append(removed, s)
		}
	}
	return removed, added
}

// content returns the bytes of a message. Equal messages have equal bytes.
func (b *builder) content(m proto.Message) []byte {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // a string that is not UTF-8
		b.fail(err)
	}
	return raw
}

// finish turns a message into a resource.
func (b *builder) finish(m proto.Message) *resource {
	r, err := newResource(m)
	if err != nil {
		b.fail(err)
		return &resource{}
	}
	return r
}

func (b *builder) fail(err error) {
	b.errs = append(b.errs, fmt.Errorf("%s: %w", b.about, err))
}

// What is before the name of a type in the URL of an Any. Readers use the part after the last slash (Any's
// documentation), so it is one character: Envoy receives, and keeps, seven such URLs for each service.
const (
	shortTypeURL = "-/"
	wholeTypeURL = "type.googleapis.com/" // for the few readers that compare all of it
)

// pack wraps a message in an Any.
func (b *builder) pack(m proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: shortTypeURL + string(m.ProtoReflect().Descriptor().FullName()), Value: b.content(m)}
}

// extAuthzPerRoute is the ext_authz configuration of a route. A route that needs neither a token nor an origin is not
// checked, so that public services work while Gatepost is down.
func (b *builder) extAuthzPerRoute(rule authz.Rule) *anypb.Any {
	if !b.checks(rule) {
		return b.pack(authz.Unchecked())
	}
	return b.asking(rule)
}

// asking is the ext_authz configuration of a route that is checked.
func (b *builder) asking(rule authz.Rule) *anypb.Any {
	setting := rule.With(b.shared())
	if b.hasModule() {
		setting.GetCheckSettings().ServiceOverride = &extauthzv3.CheckSettings_GrpcService{GrpcService: b.sidecar()}
	}
	return b.pack(setting)
}

// checks reports whether Gatepost checks each request for a route with the rule.
func (b *builder) checks(rule authz.Rule) bool {
	return rule.Authenticate || len(b.gw.Origins) > 0
}

// fromADS has Envoy get resources on its stream to Gatepost.
func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}
