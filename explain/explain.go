// Package explain decides what response a request would get, and gives the reasons.
//
// It has no path matcher of its own. It builds the resources that Envoy is served (package xds),
// walks a request through them as Envoy would, and calls package authz for the decision. The
// package itself models how Envoy interprets its configuration; a differential test compares it
// with a real Envoy.
package explain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"

	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/xds"
)

// Request is a request that a client sends over HTTP/1.1. The body is left out because it does not
// affect routing or authorization.
type Request struct {
	// Method is the HTTP method. The default is GET.
	Method string
	// Target is the request target: a path with its query, not normalized, or an absolute http URL.
	Target string
	// Header are the headers in order. If Host is missing, a placeholder is added.
	Header []Field
	// Plain is whether it comes without TLS although there is a listener for TLS.
	Plain bool
	// Secure is whether its URL is one of https or wss. Then ServerName is the name in the handshake, if there is one.
	Secure     bool
	ServerName string
	// Certificate is whether the client has presented a certificate.
	Certificate bool
}

// Field is one header.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// ErrNotModelled means that the outcome depends on a part of HTTP that this package does not model.
var ErrNotModelled = errors.New("not modelled")

// Explainer explains requests for one set of definitions. It is safe for concurrent use.
type Explainer struct {
	definitions *definitions.Definitions
	// served are the definitions as the gateway serves them: some services can have their previous
	// form. The services are in the order of the definitions.
	served   *definitions.Gateway
	version  string
	sessions authz.Sessions
	store    string // the name of the session store
	gateway  *Gateway
	isServed bool // the gateway serves these definitions
	manager  *hcmv3.HttpConnectionManager
	scopes   map[string]*hosts      // :: scope key → its routes
	services map[*routev3.Route]int // :: route → index of its service
	scopeKey *scopeKeyOf
	filters  []filter
	unsure   []string
	// plain explains requests without TLS, if those are answered in another way.
	plain *Explainer
	// certificates are those of the listener for TLS.
	certificates []xds.Certificate
}

// Config is what an [Explainer] needs.
type Config struct {
	// Definitions are explained. Required.
	Definitions *definitions.Definitions
	// Options must be those of Gateway; otherwise the versions differ.
	Options xds.Options
	// Sessions looks up the session of a token. Nil: Gateway does, and without a Gateway an explanation lists the outcome
	// of each case.
	Sessions authz.Sessions
	// Gateway is the running gateway. If it serves these definitions, its withheld and rolled-back services are explained
	// as they are served. Nil: there is none.
	Gateway *Gateway
}

// New builds the configuration that Envoy would be served for the definitions.
func New(config Config) (*Explainer, error) {
	gateway := config.Gateway
	e, err := build(config.Definitions, config.Options, gateway)
	if err != nil {
		return nil, err
	}
	e.gateway = gateway
	if e.plain != nil {
		e.plain.gateway, e.plain.isServed = gateway, e.isServed
	}
	switch {
	case config.Sessions != nil:
		e.sessions, e.store = config.Sessions, "the token store"
	case gateway != nil && (gateway.Named || e.isServed):
		e.sessions, e.store = gateway.Sessions, "the gateway on "+gateway.Address
	}
	return e, nil
}

// built returns an explainer without session lookups.
func built(d *definitions.Definitions, served *definitions.Gateway, opts xds.Options) (*Explainer, error) {
	snapshot, err := xds.Build(served, opts)
	if err != nil {
		return nil, err
	}
	e := &Explainer{definitions: d, served: served, version: snapshot.Version, certificates: opts.Certificates}
	if served.TLS != nil && !opts.ServesTLS(served) { // Envoy has no listener for TLS then, and explain still needs one
		opts.Certificates = []xds.Certificate{{Name: "any", Default: true}}
		if snapshot, err = xds.Build(served, opts); err != nil {
			return nil, err
		}
	}
	if err := e.read(snapshot); err != nil {
		return nil, fmt.Errorf("reading Envoy's configuration: %w", err)
	}
	return e, nil
}

// read extracts the routing configuration from a snapshot.
func (e *Explainer) read(s *xds.Snapshot) error {
	listeners, err := s.Resources(resourcev3.ListenerType)
	if err != nil {
		return err
	}
	scopes, err := s.Resources(resourcev3.ScopedRouteType)
	if err != nil {
		return err
	}
	empty, err := emptyClusters(s)
	if err != nil {
		return err
	}
	plain := listeners[xds.ListenerName]
	if e.served.TLS == nil {
		return e.readListener(plain, scopes, empty)
	}
	if e.served.TLS.Redirect {
		e.plain = &Explainer{definitions: e.definitions, served: e.served, version: e.version}
		if err := e.plain.readListener(plain, scopes, empty); err != nil {
			return err
		}
	}
	return e.readListener(listeners[xds.TLSListenerName], scopes, empty)
}

// readListener extracts the configuration of a listener and of the routes.
func (e *Explainer) readListener(resource proto.Message, scopes map[string]proto.Message, emptyClusters map[string]bool) error {
	listener, _ := resource.(*listenerv3.Listener)
	if listener == nil {
		return errors.New("a listener is missing")
	}
	e.manager = new(hcmv3.HttpConnectionManager)
	if err := listener.GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(e.manager); err != nil {
		return err
	}
	if err := e.readScopes(scopes); err != nil {
		return err
	}
	var err error
	if e.filters, err = e.filtersOf(e.manager, emptyClusters); err != nil {
		return err
	}
	e.unsure = notModelled(append(slices.Collect(maps.Values(scopes)), resource)...)
	return nil
}

// Explain returns the explanation of a request. The error is ErrNotModelled if the outcome cannot
// be determined; any other error means that the request cannot be sent.
func (e *Explainer) Explain(ctx context.Context, r Request) (*Explanation, error) {
	if r.Plain && e.plain != nil {
		return e.plain.Explain(ctx, r)
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if e.sessions != nil {
		x, err := e.walk(ctx, r, e.sessions)
		if err != nil {
			return nil, err
		}
		return e.explanation(x, ""), nil
	}
	x, err := e.walk(ctx, r, liveSession{e.allScopes()})
	if err != nil {
		return nil, err
	}
	if !x.lookedUp {
		return e.explanation(x, ""), nil
	}
	return e.undecided(ctx, r, x)
}

// undecided lists the outcomes of each case if the token cannot be looked up.
func (e *Explainer) undecided(ctx context.Context, r Request, live *exchange) (*Explanation, error) {
	when := "the token is live"
	var needed []string
	if service := e.serviceOf(live.route); service != nil {
		needed = service.Scopes
	}
	if len(needed) > 0 {
		when += " and has the required scopes"
	}
	a := e.explanation(live, when)
	others := []struct {
		when     string
		sessions authz.Sessions
	}{
		{"the token is unknown, expired or revoked", noSession{}},
		{"the token is live and lacks one of these scopes", liveSession{}},
	}
	if len(needed) == 0 {
		others = others[:1]
	}
	for _, other := range others {
		x, err := e.walk(ctx, r, other.sessions)
		if err != nil {
			return nil, err
		}
		a.Outcomes = append(a.Outcomes, e.outcome(x, other.when))
	}
	return a, nil
}

// walk takes a request through the connection manager, the route table and the filters, and then
// back through the filters.
func (e *Explainer) walk(ctx context.Context, r Request, sessions authz.Sessions) (*exchange, error) {
	x := &exchange{ctx: ctx, sessions: sessions, method: r.Method, target: r.Target, certificate: r.Certificate}
	switch {
	case !r.Secure:
	case e.served.TLS == nil:
		x.handshake = "warning: tls is not set, so the gateway has no listener for HTTPS; this explains the request without TLS"
	default:
		if x.handshake, x.closed = e.handshake(r.ServerName); x.closed != "" {
			x.reply = &reply{}
			return x, nil
		}
	}
	if err := e.receive(x, r); err != nil {
		return nil, err
	}
	if x.reply == nil {
		e.match(x)
	}
	for _, f := range e.filters {
		if x.reply != nil || x.err != nil {
			break
		}
		f.request(x)
	}
	if x.err != nil {
		return nil, x.err
	}
	if x.reply.local {
		e.rewrite(x)
	}
	for _, f := range slices.Backward(e.filters) {
		f.response(x)
	}
	return x, x.err
}

// allScopes returns every token scope that any service requires.
func (e *Explainer) allScopes() []string {
	var all []string
	for _, s := range e.served.Services {
		all = append(all, s.Scopes...)
	}
	return all
}
