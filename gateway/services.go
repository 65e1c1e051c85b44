package gateway

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"gatepost/admin"
	"gatepost/definitions"
	"gatepost/envoy"
	"gatepost/xds"
)

// envoyTimeout limits how long Envoy's admin interface is waited for.
const envoyTimeout = 5 * time.Second

var errNoEnvoyAdmin = errors.New("the admin interface of Envoy is not known: set --envoy-admin")

// services returns the services that are served, with their upstreams as Envoy sees them.
func (g *Gateway) services(ctx context.Context) (out admin.Services) {
	out.Services = []admin.Service{}
	status := g.rollout.Status()
	served := status.Definitions
	if served == nil {
		return out
	}
	hosts, reached, err := g.upstreams(ctx)
	if err != nil {
		out.Unknown = err.Error()
	}
	version := served.Gateway.Versions()
	for i, s := range served.Gateway.Services {
		one := admin.Service{
			Name: s.Name, Path: s.Path, Hosts: s.Hosts, Upstreams: []admin.Upstream{}, Methods: s.Methods, Public: !s.Authenticate,
			Scopes: s.Scopes, State: admin.StateServed, Version: version(s), LastRequest: g.lastRequests.of(s.Name),
		}
		one.File, one.Line = served.Place(i)
		switch {
		case slices.Contains(status.Withheld, s.Name):
			one.State = admin.StateWithheld
		case slices.Contains(status.Former, s.Name):
			one.State = admin.StateFormer
		}
		if s.Canary != nil {
			one.CanaryPercent = new(s.Canary.Percent)
		}
		for _, h := range hosts[s.Name] {
			one.Upstreams = append(one.Upstreams, upstreamOf(h, s, len(hosts[s.Name]) > 1))
		}
		if err == nil && one.State == admin.StateServed {
			one.NoAddress = namesWithout(hosts[s.Name], s)
		}
		one.LimitsReached = reached[s.Name]
		out.Services = append(out.Services, one)
	}
	return out
}

// envoyAdmin is the address of Envoy's admin interface, or "" if it is not known.
func (g *Gateway) envoyAdmin() string {
	if g.dir != "" {
		return g.dir.Admin()
	}
	return g.config.EnvoyAdmin
}

// readyClusters asks Envoy for the clusters that have hosts, of which none fails its health check.
func (g *Gateway) readyClusters(ctx context.Context) (map[string]bool, error) {
	hosts, err := envoy.Hosts(ctx, g.envoyAdmin())
	return envoy.Ready(hosts), err
}

// upstreams asks Envoy. :: service → its hosts, and its limits that are reached
func (g *Gateway) upstreams(ctx context.Context) (hosts map[string][]envoy.Host, reached map[string][]string, err error) {
	address := g.envoyAdmin()
	if address == "" {
		return nil, nil, errNoEnvoyAdmin
	}
	ctx, cancel := context.WithTimeout(ctx, envoyTimeout)
	defer cancel()
	all, err := envoy.Hosts(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	byCluster, err := envoy.Reached(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	if err := g.countRequests(ctx); err != nil {
		return nil, nil, err
	}
	hosts, reached = map[string][]envoy.Host{}, map[string][]string{}
	snapshot := g.snapshot()
	for _, h := range all {
		if service, served := snapshot.ServiceOf(h.Cluster); served {
			hosts[service] = append(hosts[service], h)
		}
	}
	for cluster, limits := range byCluster {
		service, _ := xds.ServiceOfStats(cluster)
		reached[service] = limits
	}
	return hosts, reached, nil
}

// namesWithout returns the names among the upstreams of a service for which Envoy has no address.
func namesWithout(hosts []envoy.Host, s *definitions.Service) (names []string) {
	for u := range s.AllUpstreams() {
		known := slices.ContainsFunc(hosts, func(h envoy.Host) bool { return strings.EqualFold(h.Name, u.Host) })
		if !u.IsIP && !known && !slices.Contains(names, u.Host) {
			names = append(names, u.Host)
		}
	}
	return names
}

// upstreamOf describes a host. several is whether its service has others: a single one never rests.
func upstreamOf(h envoy.Host, s *definitions.Service, several bool) admin.Upstream {
	u := admin.Upstream{
		Address: h.Address, Canary: h.Zone == xds.ZoneCanary, Health: admin.HealthHealthy, Requests: h.Requests, Errors: h.Errors,
	}
	isName := func(u definitions.Upstream) bool { return !u.IsIP && strings.EqualFold(u.Host, h.Name) }
	if slices.ContainsFunc(slices.Collect(s.AllUpstreams()), isName) {
		u.Name = h.Name
	}
	switch {
	case h.FailedCheck:
		u.Health = admin.HealthUnhealthy
	case h.Ejected:
		u.Health = admin.HealthResting
	case s.HealthCheck == nil && !(s.OutlierDetection && several):
		u.Health = admin.HealthUnchecked
	}
	return u
}
