package definitions

import (
	"slices"

	"google.golang.org/protobuf/proto"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// Restore returns d with the named services in the form that they have in before, and the names of those that have
// none there, whose former path another service has now, or whose former form asks less of a request; these are left as
// they are in d. It is for services that Envoy has refused: the others need not wait for them. before may be nil.
func (d *Definitions) Restore(names []string, before *Definitions) (restored *Definitions, rest []string) {
	g := withServices(d.Gateway, slices.Clone(d.Gateway.GetServices()))
	for i, s := range g.GetServices() {
		if !slices.Contains(names, s.GetName()) {
			continue
		}
		if former := before.service(s.GetName()); former != nil && !proto.Equal(former, s) && !weaker(former, s) {
			g.Services[i] = former
		} else {
			rest = append(rest, s.GetName())
		}
	}
	text, err := Marshal(g)
	if err == nil {
		restored, err = d.Next(d.Name, text)
	}
	if err != nil { // a former path is another's now
		return d, names
	}
	return restored, rest
}

// weaker says whether the former form of a service lets a request pass that the present one does not. What is to be
// closed from now on does not stay open because something else about it was refused.
func weaker(former, now *gatewayv1.Service) bool {
	if now.GetAuthenticate() && !former.GetAuthenticate() {
		return true
	}
	return slices.ContainsFunc(now.GetScopes(), func(scope string) bool { return !slices.Contains(former.GetScopes(), scope) })
}

// service returns the service of a name, or nil.
func (d *Definitions) service(name string) *gatewayv1.Service {
	if d == nil {
		return nil
	}
	at := slices.IndexFunc(d.Gateway.GetServices(), func(s *gatewayv1.Service) bool { return s.GetName() == name })
	if at < 0 {
		return nil
	}
	return d.Gateway.GetServices()[at]
}
