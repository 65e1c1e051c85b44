package definitions

import (
	"reflect"
	"slices"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// Restore returns d with the named services in their form in before. It also returns the names of the services that
// stay as they are in d: those that before does not have, those whose former path another service has now, and those
// whose former form lets more requests pass. It is for services that Envoy rejected, so that the others can be
// updated. before may be nil.
func (d *Definitions) Restore(names []string, before *Definitions) (restored *Definitions, rest []string) {
	var former []*gatewayv1.Service
	for _, s := range d.Gateway.Services {
		if !slices.Contains(names, s.Name) {
			continue
		}
		if was := before.service(s.Name); was != nil && !reflect.DeepEqual(was, s) && !weaker(was, s) {
			former = append(former, was.Message())
		} else {
			rest = append(rest, s.Name)
		}
	}
	restored, err := d.WithServices(former)
	if err != nil { // a former path is another's now
		return d, names
	}
	return restored, rest
}

// WithServices returns d with the services of these names in another form. An error has the problems of the result.
// Services that do not change keep their pointer.
func (d *Definitions) WithServices(services []*gatewayv1.Service) (*Definitions, error) {
	if len(services) == 0 {
		return d, nil
	}
	m := d.Gateway.Message()
	for i, s := range m.GetServices() {
		if at := slices.IndexFunc(services, func(other *gatewayv1.Service) bool { return other.GetName() == s.GetName() }); at >= 0 {
			m.Services[i] = services[at]
		}
	}
	text, err := Marshal(m)
	if err != nil {
		return nil, err
	}
	return d.Next(d.Name, text)
}

// weaker reports whether the former form of a service may let a request pass that the present one does not. A service
// that is closed from now on does not stay open because Envoy rejected something else about it. Other hosts count as
// weaker: a request under a host that the former one does not have may reach a public service.
func weaker(former, now *Service) bool {
	return now.Authenticate && !former.Authenticate || now.ClientCertificate && !former.ClientCertificate ||
		now.Maintenance != nil && former.Maintenance == nil || !slices.Equal(now.Hosts, former.Hosts) ||
		slices.ContainsFunc(now.Scopes, func(scope string) bool { return !slices.Contains(former.Scopes, scope) })
}

// service returns the service with the name, or nil.
func (d *Definitions) service(name string) *Service {
	if d == nil {
		return nil
	}
	at := slices.IndexFunc(d.Gateway.Services, func(s *Service) bool { return s.Name == name })
	if at < 0 {
		return nil
	}
	return d.Gateway.Services[at]
}
