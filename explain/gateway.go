package explain

import (
	"fmt"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"gatepost/authz"
	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/xds"
)

// Gateway is a running gateway and its status.
type Gateway struct {
	// Address is its admin address.
	Address string
	// Status is the response of its admin API.
	Status *gatewayv1.Status
	// Sessions looks up tokens in it.
	Sessions authz.Sessions
	// Named reports whether the user named this gateway. If a gateway was only found at the default address, tokens
	// are looked up in it only if it serves the explained definitions. Otherwise it may belong to another system.
	Named bool
}

// build returns an explainer of the definitions as the gateway serves them: Envoy may have rejected some of the
// services. If the gateway serves other definitions, or if g is nil, the definitions are used unchanged.
func build(d *definitions.Definitions, opts xds.Options, g *Gateway) (*Explainer, error) {
	if g != nil {
		withheld := opts
		withheld.Withheld = g.Status.GetWithheld()
		for _, withRedis := range []bool{opts.ClusterLimits, !opts.ClusterLimits} { // the status does not have it
			withheld.ClusterLimits = withRedis
			e, err := builtAs(d, g.Status.GetFormer(), withheld)
			if err == nil && e.version == g.Status.GetVersion() {
				e.isServed = true
				return e, nil
			}
		}
	}
	return built(d, d.Gateway, opts)
}

// builtAs returns an explainer of the definitions with some services in their former form.
func builtAs(d *definitions.Definitions, former []*gatewayv1.Service, opts xds.Options) (*Explainer, error) {
	served, err := d.WithServices(former)
	if err != nil {
		return nil, err
	}
	return built(d, served.Gateway, opts)
}

// named returns the service with a name, or nil.
func named(services []*gatewayv1.Service, name string) *gatewayv1.Service {
	at := slices.IndexFunc(services, func(s *gatewayv1.Service) bool { return s.GetName() == name })
	if at < 0 {
		return nil
	}
	return services[at]
}

// emptyClusters returns the clusters of a snapshot that have no upstream. :: name → true
func emptyClusters(s *xds.Snapshot) (map[string]bool, error) {
	clusters, err := s.Resources(resourcev3.ClusterType)
	if err != nil {
		return nil, err
	}
	empty := map[string]bool{}
	for name, r := range clusters {
		if c, ok := r.(*clusterv3.Cluster); ok && len(c.GetLoadAssignment().GetEndpoints()) == 0 {
			empty[name] = true
		}
	}
	return empty, nil
}

// Running describes the gateway in an explanation.
type Running struct {
	Address string `json:"address"`
	// Version is the version that it serves, and Source its source.
	Version string `json:"version"`
	Source  string `json:"source"`
	// Serves reports whether it serves the explained definitions, apart from what its Envoys reject.
	Serves bool `json:"serves"`
	// Rejected is why it does not serve the newest definitions unchanged, or empty.
	Rejected string `json:"rejected,omitempty"`
	// partly is true if it serves services otherwise than they are defined. Else Rejected is about newer definitions.
	partly bool
}

// running describes the gateway, or returns nil if there is none.
func (e *Explainer) running() *Running {
	if e.gateway == nil {
		return nil
	}
	s := e.gateway.Status
	return &Running{e.gateway.Address, s.GetVersion(), s.GetSource(), e.isServed, s.GetRejected(), len(s.GetWithheld())+len(s.GetFormer()) > 0}
}

// rejected returns why the gateway does not serve the newest definitions unchanged, or "".
func (e *Explainer) rejected() string {
	if e.gateway == nil {
		return ""
	}
	return e.gateway.Status.GetRejected()
}

// line describes the gateway in one line.
func (r *Running) line() string {
	text := r.Address + " serves this version"
	if !r.Serves {
		text = fmt.Sprintf("%s serves other definitions, version %s of %s: it may answer otherwise", r.Address, r.Version, r.Source)
	}
	switch {
	case r.Rejected == "":
		return text
	case r.Serves && r.partly:
		return text + " with services " + r.Rejected
	}
	return text + "; it does not serve the newest: " + r.Rejected
}

// servedStep adds a step if the gateway does not serve a service as it is defined.
func (e *Explainer) servedStep(s *Service, add func(part, format string, args ...any)) {
	if e.gateway == nil || s == nil {
		return
	}
	status := e.gateway.Status
	switch {
	case slices.Contains(status.GetWithheld(), s.Name):
		add("served", "without its upstreams by the gateway on %s, whose Envoy refuses them: what may pass is answered 503", e.gateway.Address)
	case named(status.GetFormer(), s.Name) != nil:
		add("served", "in its former form by the gateway on %s, whose Envoy refuses the one at %s:%d", e.gateway.Address, s.File, s.Line)
	}
}

// orFix returns what to change about a service. If the gateway serves its former form, the file may already be right,
// and the reason of Envoy's rejection has to be fixed first.
func (e *Explainer) orFix(s *definitions.Service, change string) string {
	if !e.isServed || s == nil || named(e.gateway.Status.GetFormer(), s.Name) == nil || !strings.Contains(change, e.location(s)) {
		return change
	}
	return fmt.Sprintf("fix what Envoy rejects about %s; this follows from the form that it had before", e.location(s))
}
