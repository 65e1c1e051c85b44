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

// Gateway is a gateway that runs, and what it tells of itself.
type Gateway struct {
	// Address is where it was asked.
	Address string
	// Status is what it serves.
	Status *gatewayv1.Status
	// Sessions asks it whose a token is.
	Sessions authz.Sessions
	// Named says that it was asked for. One that was only found is not asked about a token unless it serves the
	// definitions that are explained: it may be quite another's, and a token that it does not know would mean nothing.
	Named bool
}

// build makes an explainer of the definitions as the gateway serves them, where it does: Envoy may have refused some of
// the services. Else, or without a gateway, they are taken as they are.
func build(d *definitions.Definitions, opts xds.Options, g *Gateway) (*Explainer, error) {
	if g != nil {
		withheld := opts
		withheld.Withheld = g.Status.GetWithheld()
		e, err := builtAs(d, g.Status.GetFormer(), withheld)
		if err == nil && e.version == g.Status.GetVersion() {
			e.gateway, e.isServed = g, true
			return e, nil
		}
	}
	e, err := built(d, d.Gateway, opts)
	if err != nil {
		return nil, err
	}
	e.gateway = g
	return e, nil
}

// builtAs makes an explainer of the definitions with some services in their former form.
func builtAs(d *definitions.Definitions, former []*gatewayv1.Service, opts xds.Options) (*Explainer, error) {
	served, err := d.WithServices(former)
	if err != nil {
		return nil, err
	}
	return built(d, served.Gateway, opts)
}

// named returns the service of a name, or nil.
func named(services []*gatewayv1.Service, name string) *gatewayv1.Service {
	at := slices.IndexFunc(services, func(s *gatewayv1.Service) bool { return s.GetName() == name })
	if at < 0 {
		return nil
	}
	return services[at]
}

// emptyClusters are the clusters of a snapshot in which there is no upstream. :: name → true
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

// Running tells of the gateway that was asked.
type Running struct {
	Address string `json:"address"`
	// Version is what it serves, and Source where that comes from.
	Version string `json:"version"`
	Source  string `json:"source"`
	// Serves says that it serves the definitions that are explained, but for what its Envoys refuse.
	Serves bool `json:"serves"`
	// Rejected is why it does not serve the newest definitions as they are; empty where it does.
	Rejected string `json:"rejected,omitempty"`
}

// running tells of the gateway that was asked; nil: none.
func (e *Explainer) running() *Running {
	if e.gateway == nil {
		return nil
	}
	s := e.gateway.Status
	return &Running{e.gateway.Address, s.GetVersion(), s.GetSource(), e.isServed, s.GetRejected()}
}

// rejected is why a gateway does not serve the newest definitions as they are.
func (e *Explainer) rejected() string {
	if e.gateway == nil {
		return ""
	}
	return e.gateway.Status.GetRejected()
}

// says is the gateway in a line.
func (r *Running) says() string {
	switch {
	case r.Serves && r.Rejected != "":
		return fmt.Sprintf("%s serves this version, in which some services are not as they are defined: %s", r.Address, r.Rejected)
	case r.Serves:
		return r.Address + " serves this version"
	}
	says := fmt.Sprintf("%s serves other definitions, version %s of %s: it may answer otherwise", r.Address, r.Version, r.Source)
	if r.Rejected != "" {
		says += "; it does not serve the newest: " + r.Rejected
	}
	return says
}

// servedStep says of a service that the gateway does not serve it as it is defined.
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

// orFix is what to change about a service; where the gateway serves its former form, what stands in the file may be
// right already, and Envoy must take it first.
func (e *Explainer) orFix(s *definitions.Service, change string) string {
	if !e.isServed || s == nil || named(e.gateway.Status.GetFormer(), s.Name) == nil || !strings.Contains(change, e.location(s)) {
		return change
	}
	return fmt.Sprintf("mend what Envoy refuses about %s; this follows from the form that it had before", e.location(s))
}
