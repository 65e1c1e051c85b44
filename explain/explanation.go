package explain

import (
	"fmt"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/xds"
)

// Explanation describes the response to a request and the reasons for it. It never contains the
// token.
type Explanation struct {
	// Version is the version of the definitions, as `gatepost status` prints it.
	Version string `json:"version"`
	// Method, Target and Host are those of the request. Path is the normalized path without its
	// query; it is empty if Envoy rejects the request before matching.
	Method string `json:"method"`
	Target string `json:"target"`
	Host   string `json:"host,omitempty"`
	Path   string `json:"path,omitempty"`
	// Service is the service that the request is routed to, or nil.
	Service *Service `json:"service,omitempty"`
	// Route is the name of the route in Envoy's configuration.
	Route string `json:"route,omitempty"`
	// Steps are the decisions, in order.
	Steps []Step `json:"steps"`
	// Outcomes has one element, or, if the decision depends on a token that was not looked up, one
	// element for each case.
	Outcomes []Outcome `json:"outcomes"`
	// Unsure lists Envoy settings that this package does not model. They can make the explanation
	// wrong.
	Unsure []string `json:"unsure,omitempty"`
	// Asked names the store that the token was looked up in. It is empty if there was no lookup.
	Asked string `json:"asked,omitempty"`
	// Gateway is the running gateway that was queried, or nil.
	Gateway *Running `json:"gateway,omitempty"`
}

// Service is a service and the place of its definition.
type Service struct {
	Name string `json:"name"`
	File string `json:"file"`
	Line int    `json:"line"`
	Path string `json:"path"`
	// Hosts are the hosts of the service. If empty, it responds under every host.
	Hosts []string `json:"hosts,omitempty"`
	// Public reports whether the service needs no token.
	Public  bool     `json:"public"`
	Methods []string `json:"methods"`
}

// Step is one decision.
type Step struct {
	// Part is the subject of the decision: path, service, method, origin, preflight, token, limit or
	// identity.
	Part string `json:"part"`
	Text string `json:"says"`
}

// Outcome is one possible result for the client.
type Outcome struct {
	// When is the condition of this outcome. It is empty if there is only one outcome.
	When string `json:"when,omitempty"`
	// Reason is forwarded, preflight, withheld, not_found, method_not_allowed, malformed, version,
	// handshake_refused, or a reason of gatepost_decisions_total.
	Reason string `json:"reason"`
	// Status is the status code of the response. It is 0 if an upstream or the token handler
	// responds, and if there is no response.
	Status int `json:"status,omitempty"`
	// Headers are the response headers. If an upstream or the token handler responds, they are the
	// headers that the gateway adds. Names are in lower case.
	Headers []Field `json:"headers,omitempty"`
	// Removed are the headers that the gateway removes from the upstream's response.
	Removed []string `json:"removed,omitempty"`
	Body    string   `json:"body,omitempty"`
	// Forward is the forwarded request, or nil.
	Forward *Forward `json:"forward,omitempty"`
	// Why is the reason as a sentence. Change is what to change for another outcome; it is empty if
	// there is nothing to fix.
	Why    string `json:"why"`
	Change string `json:"change,omitempty"`
	// See is the page, and the anchor in it, about the reason. It is empty if there is nothing to fix.
	See string `json:"see,omitempty"`
}

// Forward is a request as it leaves the gateway.
type Forward struct {
	// To are the origins of the upstreams, of which Envoy picks one. It is empty for the token
	// handler.
	To []string `json:"to,omitempty"`
	// TokenHandler reports whether Gatepost itself responds.
	TokenHandler bool `json:"token_handler,omitempty"`
	// Canary is the other version of the service, which gets a part of the requests, or nil.
	Canary *Canary `json:"canary,omitempty"`
	Method string  `json:"method"`
	// Path is the path with its query.
	Path string `json:"path"`
	// Set are the headers that the gateway sets. Removed are the client's headers that it removes.
	Set     []Field  `json:"set,omitempty"`
	Removed []string `json:"removed,omitempty"`
	// Upgrade is the protocol that the upstream may switch to: websocket. If EndsWithToken is true,
	// the gateway closes the stream when the token expires.
	Upgrade       string `json:"upgrade,omitempty"`
	EndsWithToken bool   `json:"ends_with_token,omitempty"`
}

// Canary is another version of a service.
type Canary struct {
	// To are the origins of its upstreams.
	To []string `json:"to"`
	// Percent is its part of the requests, and By what counts: user, address or request.
	Percent int    `json:"percent"`
	By      string `json:"by"`
}

// canaryOf returns the canary of a service, or nil.
func canaryOf(s *definitions.Service) *Canary {
	if s.Canary == nil {
		return nil
	}
	by := s.Canary.By
	if by == definitions.CanaryByUser && !s.Authenticate {
		by = "address"
	}
	return &Canary{addresses(s.Canary.Upstreams), s.Canary.Percent, by}
}

// explanation describes a finished exchange.
func (e *Explainer) explanation(x *exchange, when string) *Explanation {
	a := &Explanation{
		Version: e.version, Method: x.method, Target: x.target, Host: x.host, Route: x.route.GetName(), Unsure: e.unsure,
		Gateway:  e.running(),
		Outcomes: []Outcome{e.outcome(x, when)},
	}
	if x.route != nil {
		a.Path, _, _ = strings.Cut(x.path, "?")
	}
	if i := e.index(x.route); i >= 0 {
		s := e.served.Services[i]
		a.Service = &Service{Name: s.Name, Path: s.Path, Hosts: s.Hosts, Public: !s.Authenticate, Methods: s.Methods}
		a.Service.File, a.Service.Line = e.definitions.Place(i)
	}
	if x.lookedUp {
		a.Asked = e.store
	}
	a.Steps = e.steps(x, a)
	return a
}

func (e *Explainer) outcome(x *exchange, when string) Outcome {
	o := Outcome{When: when, Status: x.reply.status, Headers: x.reply.header, Body: x.reply.body}
	if x.method == "HEAD" {
		o.Body = ""
	}
	if x.forward != nil {
		forward := *x.forward
		if s := e.serviceOf(x.route); s != nil {
			forward.To, forward.Canary = addresses(s.Upstreams), canaryOf(s)
		} else {
			forward.TokenHandler = true
		}
		forward.Set, forward.Upgrade, forward.EndsWithToken = x.set, x.upgrade, x.endsWithToken
		for _, h := range x.client {
			if !x.header.has(h.Name) && !slices.Contains(forward.Removed, h.Name) {
				forward.Removed = append(forward.Removed, h.Name)
			}
		}
		o.Forward = &forward
		o.Removed = slices.Concat(x.vhost.GetResponseHeadersToRemove(), x.route.GetResponseHeadersToRemove(), x.removed)
	}
	o.Reason, o.Why, o.Change = e.reason(x)
	if o.Change != "" || o.Status >= 400 {
		o.See = convention.SectionOfReason(o.Reason).String()
	}
	return o
}

// addresses returns the origins of upstreams. Their base path is already part of the forwarded path.
func addresses(upstreams []definitions.Upstream) []string {
	out := make([]string, 0, len(upstreams))
	for _, u := range upstreams {
		out = append(out, u.Origin())
	}
	return out
}

// index returns the index of the service that a route was built for, or -1 for a route of the gateway itself.
func (e *Explainer) index(route *routev3.Route) int {
	if i, ok := e.services[route]; ok {
		return i
	}
	return -1
}

// serviceOf returns the service that a route was built for, or nil for a route of the gateway
// itself.
func (e *Explainer) serviceOf(route *routev3.Route) *definitions.Service {
	if i := e.index(route); i >= 0 {
		return e.served.Services[i]
	}
	return nil
}

// location returns the file and line of a service's definition.
func (e *Explainer) location(s *definitions.Service) string {
	i := slices.Index(e.served.Services, s)
	file, line := e.definitions.Place(i)
	return fmt.Sprintf("%s:%d", file, line)
}

// isMalformedHost reports whether the route refuses the host.
func isMalformedHost(route *routev3.Route) bool { return route.GetName() == xds.RouteMalformedHost }

// isVersion reports whether the route returns the version.
func isVersion(route *routev3.Route) bool {
	return route.GetMatch().GetPath() == definitions.VersionPath
}
