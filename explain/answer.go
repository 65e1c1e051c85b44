package explain

import (
	"fmt"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"gatepost/definitions"
	"gatepost/xds"
)

// Answer is what becomes of a request, and why. It has no token in it.
type Answer struct {
	// Version is the version of the definitions that it follows from, as `gatepost status` shows it.
	Version string `json:"version"`
	// Method, Target and Host are the request's; Path is the path that is matched, without its query, and
	// empty where Envoy refuses the request before that.
	Method string `json:"method"`
	Target string `json:"target"`
	Host   string `json:"host,omitempty"`
	Path   string `json:"path,omitempty"`
	// Service is the service that takes the request; nil where none does.
	Service *Service `json:"service,omitempty"`
	// Route is the name of the route in Envoy's configuration.
	Route string `json:"route,omitempty"`
	// Steps are what was decided, in order.
	Steps []Step `json:"steps"`
	// Outcomes is one outcome, or, where the token decides and nobody was asked about it, what follows in each case.
	Outcomes []Outcome `json:"outcomes"`
	// Unsure are settings of Envoy's that are not followed here: with them the answer may be another.
	Unsure []string `json:"unsure,omitempty"`
	// Asked is who was asked whose the token is; empty where nobody was.
	Asked string `json:"asked,omitempty"`
	// Gateway is the running gateway that was asked what it serves; nil: none was.
	Gateway *Running `json:"gateway,omitempty"`
}

// Service is where a service is defined.
type Service struct {
	Name string `json:"name"`
	File string `json:"file"`
	Line int    `json:"line"`
	Path string `json:"path"`
	// Public says that it asks for no token.
	Public  bool     `json:"public"`
	Methods []string `json:"methods"`
}

// Step is one thing that was decided.
type Step struct {
	// Part is what it is about: path, service, method, origin, preflight, token, identity.
	Part string `json:"part"`
	Says string `json:"says"`
}

// Outcome is what the client gets.
type Outcome struct {
	// When says in which case; empty where there is only one.
	When string `json:"when,omitempty"`
	// Reason is one word for it: forwarded, preflight, withheld, not_found, method_not_allowed, malformed, version, or a
	// reason of gatepost_decisions_total.
	Reason string `json:"reason"`
	// Status is the answer's; 0 where an upstream, or the token handler, gives it.
	Status int `json:"status,omitempty"`
	// Headers are the answer's, or where somebody else gives it those that are added to it. Names are in lower case.
	Headers []Field `json:"headers,omitempty"`
	// Removed are headers that are taken from an upstream's answer.
	Removed []string `json:"removed,omitempty"`
	Body    string   `json:"body,omitempty"`
	// Forward is where the request goes; nil where it goes nowhere.
	Forward *Forward `json:"forward,omitempty"`
	// Why says it in words, Change what to change for another outcome; empty where nothing is amiss.
	Why    string `json:"why"`
	Change string `json:"change,omitempty"`
}

// Forward is a request as it leaves the gateway.
type Forward struct {
	// To are the addresses of the upstreams, one of which gets it; empty for the token handler.
	To []string `json:"to,omitempty"`
	// TokenHandler says that Gatepost itself answers.
	TokenHandler bool   `json:"token_handler,omitempty"`
	Method       string `json:"method"`
	// Path is the path with its query.
	Path string `json:"path"`
	// Set are headers that the gateway sets, Removed those of the client's that it takes away.
	Set     []Field  `json:"set,omitempty"`
	Removed []string `json:"removed,omitempty"`
	// Upgrade is the protocol that the upstream may change to: websocket. EndsWithToken says that it is all over when
	// the token ends.
	Upgrade       string `json:"upgrade,omitempty"`
	EndsWithToken bool   `json:"ends_with_token,omitempty"`
}

// answer puts together what is known of an exchange that has ended.
func (e *Explainer) answer(x *exchange, when string) *Answer {
	a := &Answer{
		Version: e.version, Method: x.method, Target: x.target, Host: x.host, Route: x.route.GetName(), Unsure: e.unsure,
		Gateway:  e.running(),
		Outcomes: []Outcome{e.outcome(x, when)},
	}
	if x.route != nil {
		a.Path, _, _ = strings.Cut(x.path, "?")
	}
	if i := e.index(x.route); i >= 0 {
		s := e.served.Services[i]
		a.Service = &Service{
			Name: s.Name, File: e.definitions.Name, Line: e.definitions.Line(i), Path: s.Path,
			Public: !s.Authenticate, Methods: s.Methods,
		}
	}
	if x.asked {
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
		if s := e.taker(x.route); s != nil {
			forward.To = addresses(s)
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
		o.Removed = slices.Concat(x.vhost.GetResponseHeadersToRemove(), x.route.GetResponseHeadersToRemove())
	}
	o.Reason, o.Why, o.Change = e.words(x)
	return o
}

// addresses are a service's upstreams without their base path, which stands in the path.
func addresses(s *definitions.Service) []string {
	out := make([]string, 0, len(s.Upstreams))
	for _, u := range s.Upstreams {
		out = append(out, u.Origin())
	}
	return out
}

// index returns the index of the service that a route was made for; -1 for a route of the gateway's own. No
// service has a path of those, and only one has this.
func (e *Explainer) index(route *routev3.Route) int {
	if route == nil {
		return -1
	}
	var path string
	switch by := route.GetMatch().GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Path:
		path = by.Path
	case *routev3.RouteMatch_Prefix:
		path = by.Prefix
	case *routev3.RouteMatch_PathSeparatedPrefix:
		path = by.PathSeparatedPrefix
	}
	if path != "/" {
		path = strings.TrimSuffix(path, "/")
	}
	return slices.IndexFunc(e.served.Services, func(s *definitions.Service) bool {
		return strings.EqualFold(s.Path, path)
	})
}

// taker is the service that a route was made for; nil for a route of the gateway's own.
func (e *Explainer) taker(route *routev3.Route) *definitions.Service {
	if i := e.index(route); i >= 0 {
		return e.served.Services[i]
	}
	return nil
}

// at is where a service is defined, for a sentence.
func (e *Explainer) at(s *definitions.Service) string {
	i := slices.Index(e.served.Services, s)
	return fmt.Sprintf("%s:%d", e.definitions.Name, e.definitions.Line(i))
}

// isVersion says whether a route tells the version.
func isVersion(route *routev3.Route) bool { return route.GetMatch().GetPath() == xds.VersionPath }
