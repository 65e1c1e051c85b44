// Package explain decides what answer a request would get, and says why.
//
// It matches no path of its own: it builds the very resources that Envoy is served (package xds), walks a request
// through them as Envoy does, and leaves the question whether it may pass to package authz. What it adds is how Envoy
// reads its configuration, and a differential test holds that to a real Envoy.
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

	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/xds"
)

// Request is a request as a client sends it, over HTTP/1.1. Its body never matters to what happens to it.
type Request struct {
	// Method is the method; empty: GET.
	Method string
	// Target is what stands in the request line: a path with its query, as it is sent, or a whole http URL.
	Target string
	// Header are the headers in their order. Without a Host, one that does not matter is put in.
	Header []Field
}

// Field is one header.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// ErrNotModelled says that what happens to a request depends on a part of HTTP that is not looked at here.
var ErrNotModelled = errors.New("this is not modelled")

// Explainer answers for one set of definitions. It may be used from many goroutines at once.
type Explainer struct {
	definitions *definitions.Definitions
	// served is what the gateway makes of the definitions: some services can be in their former form. The services have
	// the order of the definitions.
	served   *definitions.Gateway
	version  string
	sessions authz.Sessions
	store    string // what the sessions are called
	gateway  *Gateway
	isServed bool // the gateway serves what is explained
	manager  *hcmv3.HttpConnectionManager
	scopes   map[string]*routev3.VirtualHost // :: key → its routes
	scopeKey *scopeKeyOf
	filters  []filter
	unsure   []string
}

// New builds what Envoy would be served for the definitions. sessions, a token store, is asked whose a token is; nil:
// the gateway is, and where there is none either, the answer tells what follows in either case. What a gateway that
// serves these definitions has had to change about them is explained as it is served; nil: none runs. opts must be what
// the gateway in question has, for the versions to be the same.
func New(d *definitions.Definitions, opts xds.Options, sessions authz.Sessions, gateway *Gateway) (*Explainer, error) {
	e, err := build(d, opts, gateway)
	if err != nil {
		return nil, err
	}
	switch {
	case sessions != nil:
		e.sessions, e.store = sessions, "the token store"
	case gateway != nil && (gateway.Named || e.isServed):
		e.sessions, e.store = gateway.Sessions, "the gateway on "+gateway.Address
	}
	return e, nil
}

// built makes an explainer that asks nobody.
func built(d *definitions.Definitions, served *definitions.Gateway, opts xds.Options) (*Explainer, error) {
	snapshot, err := xds.Build(served, opts)
	if err != nil {
		return nil, err
	}
	e := &Explainer{definitions: d, served: served, version: snapshot.Version}
	if err := e.read(snapshot); err != nil {
		return nil, fmt.Errorf("reading Envoy's configuration: %w", err)
	}
	return e, nil
}

// Version is the version of the definitions, as `gatepost status` shows it.
func (e *Explainer) Version() string { return e.version }

// read takes out of a snapshot what decides about requests.
func (e *Explainer) read(s *xds.Snapshot) error {
	listener, err := only[*listenerv3.Listener](s, resourcev3.ListenerType)
	if err != nil {
		return err
	}
	e.manager = new(hcmv3.HttpConnectionManager)
	if err := listener.GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(e.manager); err != nil {
		return err
	}
	scopes, err := s.Resources(resourcev3.ScopedRouteType)
	if err != nil {
		return err
	}
	if err := e.readScopes(scopes); err != nil {
		return err
	}
	empty, err := emptyClusters(s)
	if err != nil {
		return err
	}
	if e.filters, err = e.filtersOf(e.manager, empty); err != nil {
		return err
	}
	e.unsure = notModelled(append(slices.Collect(maps.Values(scopes)), listener)...)
	return nil
}

// only returns the one resource of a type.
func only[R any](s *xds.Snapshot, typeURL string) (one R, err error) {
	all, err := s.Resources(typeURL)
	if err != nil {
		return one, err
	}
	for _, r := range all {
		if found, ok := r.(R); ok && len(all) == 1 {
			return found, nil
		}
	}
	return one, fmt.Errorf("want one %s, got %v", typeURL, slices.Sorted(maps.Keys(all)))
}

// Explain tells what answer the request gets. The error is ErrNotModelled where that cannot be told, or says that
// the request cannot be sent at all.
func (e *Explainer) Explain(ctx context.Context, r Request) (*Answer, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if e.sessions != nil {
		x, err := e.walk(ctx, r, e.sessions)
		if err != nil {
			return nil, err
		}
		return e.answer(x, ""), nil
	}
	x, err := e.walk(ctx, r, liveSession{e.allScopes()})
	if err != nil {
		return nil, err
	}
	if !x.asked {
		return e.answer(x, ""), nil
	}
	return e.undecided(ctx, r, x)
}

// undecided tells what follows where it is not known whose the token is.
func (e *Explainer) undecided(ctx context.Context, r Request, live *exchange) (*Answer, error) {
	when := "the token is live"
	var needed []string
	if service := e.taker(live.route); service != nil {
		needed = service.Scopes
	}
	if len(needed) > 0 {
		when += " and has the scopes that are needed"
	}
	a := e.answer(live, when)
	others := []struct {
		when     string
		sessions authz.Sessions
	}{
		{"the token was never issued, has expired or was revoked", noSession{}},
		{"the token is live and has not all of these scopes", liveSession{}},
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

// walk takes a request through Envoy: the connection manager, the route, the filters in their order, and back.
func (e *Explainer) walk(ctx context.Context, r Request, sessions authz.Sessions) (*exchange, error) {
	x := &exchange{ctx: ctx, sessions: sessions, method: r.Method, target: r.Target}
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

// allScopes are all scopes of tokens that any service asks for.
func (e *Explainer) allScopes() []string {
	var all []string
	for _, s := range e.served.Services {
		all = append(all, s.Scopes...)
	}
	return all
}
