package xds

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"

	"gatepost/definitions"
)

// Until Envoy has looked up the names of a new cluster, it answers 503 for it, and its acknowledgement does not wait
// for that. So the names are looked up here at the same time, and the routes to a cluster wait until its names were
// found here, and Warmup longer. If the cluster has a health check, they also wait for as long as one may take, since
// an upstream gets no request before its first one. Both waits end earlier if Envoy can be asked for its hosts. A name
// server that does not reply is waited for by the scopes that lead there, and by no others.

func lookUp(ctx context.Context, host string) error {
	_, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	return err
}

// newNames returns the clusters of the target that are new and have names.
func (s *Server) newNames() []named {
	r := &s.delivery
	changed, _ := r.target.clusters.since(r.before.clusters)
	return slices.DeleteFunc(changed, func(c named) bool { return !c.looksUp || r.before.clusters.get(c.name) != nil })
}

// maxLookups bounds for how many clusters of a change names are looked up at once. A service has one cluster, so its
// names, however many and slow, take one of these slots. If the name servers of this many services are silent, the
// others of the same change may find no slot; they wait LookupTimeout at most, and then Envoy alone looks up their
// names.
const maxLookups = 64

// resolve looks up the names of clusters, and resumes the delivery as they are found. A cluster whose names are not
// found, for whatever reason, is not waited for: it is Envoy that has to find them, and it may ask somebody else.
func (s *Server) resolve(clusters []named) {
	r := &s.delivery
	if r.unresolved == nil {
		r.unresolved = map[string]bool{}
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.LookupTimeout)
	var all sync.WaitGroup
	free := make(chan struct{}, maxLookups)
	for _, c := range clusters {
		r.unresolved[c.name] = true
		all.Add(1)
		s.lookups.Go(func() {
			defer all.Done()
			select {
			case free <- struct{}{}:
				s.lookUpAll(ctx, c.resource)
				<-free
			case <-ctx.Done():
			}
			s.awaitHosts(c)
			s.resolved(c.name)
		})
	}
	s.lookups.Go(func() {
		all.Wait()
		cancel()
	})
}

const (
	// askInterval is how often Envoy is asked for its hosts, at most.
	askInterval = 25 * time.Millisecond
	// maxAsked bounds the clusters of an Envoy that is asked. It can only list the hosts of all of them: 1 KiB for each.
	maxAsked = 500
)

// awaitHosts returns when Envoy can send requests to the hosts of a cluster, or when it should.
func (s *Server) awaitHosts(c named) {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.Warmup+c.check)
	defer cancel()
	for ctx.Err() == nil {
		if !s.canAsk() {
			<-ctx.Done()
		} else if s.isReady(ctx, c.name) {
			return
		} else {
			s.pause(askInterval)
		}
	}
}

// canAsk reports whether Envoy can be asked for its hosts. Of several Envoys only one could.
func (s *Server) canAsk() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opts.Ready != nil && len(s.awaited()) == 1 && len(s.delivery.view.clusters.all) <= maxAsked
}

// readiness is what Envoy was last asked.
type readiness struct {
	mu       sync.Mutex
	clusters map[string]bool
	until    time.Time // when it is asked again
}

// isReady reports whether Envoy is known to have hosts for a cluster. One call asks for all clusters. The others do not
// wait for its answer, because that can take longer than their clusters may wait.
func (s *Server) isReady(ctx context.Context, cluster string) bool {
	r := &s.readiness
	if !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	if asked := time.Now(); !asked.Before(r.until) {
		var err error
		if r.clusters, err = s.opts.Ready(ctx); err != nil {
			r.clusters = nil // it is waited for by time
		}
		r.until = time.Now().Add(max(askInterval, 4*time.Since(asked)))
	}
	return r.clusters[cluster]
}

// lookUpAll returns when each name of a cluster is found or not to be found.
func (s *Server) lookUpAll(ctx context.Context, cluster *resource) {
	var names sync.WaitGroup
	for _, host := range hosts(cluster) {
		names.Go(func() { _ = s.opts.Lookup(ctx, host) })
	}
	names.Wait()
}

// hosts returns the host names of a cluster, and its addresses, which need no name server.
func hosts(cluster *resource) []string {
	var c clusterv3.Cluster
	if proto.Unmarshal(cluster.raw, &c) != nil {
		return nil
	}
	var out []string
	for _, group := range c.GetLoadAssignment().GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			out = append(out, e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
		}
	}
	return out
}

// resolved resumes the delivery when a cluster need not be waited for any more.
func (s *Server) resolved(cluster string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.delivery
	if !r.unresolved[cluster] || s.ctx.Err() != nil {
		return
	}
	delete(r.unresolved, cluster)
	if r.phase == routesOut && r.held {
		s.toRoutes()
		return
	}
	s.advance()
}

// pause waits, and ends with the Server.
func (s *Server) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
}

// resolvedRoutes returns the routes of the target, with the former scope in the place of each that leads to a cluster
// that is not resolved. The beacon's is among them: it does not tell a version that is not served as a whole.
func (r *delivery) resolvedRoutes() (routes set, held bool) {
	if len(r.unresolved) == 0 {
		return r.target.routes, false
	}
	former := map[string]*resource{}
	changed, _ := r.target.routes.since(r.view.routes)
	for _, scope := range changed {
		if r.leadsToUnresolved(scope.resource) {
			former[scope.name] = r.view.routes.get(scope.name)
		}
	}
	if len(former) == 0 {
		return r.target.routes, false
	}
	former[definitions.OwnPath] = r.view.routes.get(definitions.OwnPath)
	routes = r.target.routes.with(former)
	routes.seal()
	return routes, true
}

func (r *delivery) leadsToUnresolved(scope *resource) bool {
	var config routev3.ScopedRouteConfiguration
	if proto.Unmarshal(scope.raw, &config) != nil {
		return false
	}
	return slices.ContainsFunc(routesIn(&config), func(route *routev3.Route) bool {
		return r.unresolved[route.GetRoute().GetCluster()]
	})
}

func routesIn(config *routev3.ScopedRouteConfiguration) []*routev3.Route {
	var out []*routev3.Route
	for _, vhost := range config.GetRouteConfiguration().GetVirtualHosts() {
		out = append(out, vhost.GetRoutes()...)
	}
	return out
}

// startsWithNames reports whether a request is that of an Envoy that starts, for its listener, while there are clusters
// with names. Envoy has just been sent the clusters. A listener that opens at once would answer 503 until the names are
// looked up; with Warmup in between, it finds those whose name server replies.
func (s *Server) startsWithNames(typeURL, nonce string, has map[string]string) bool {
	if typeURL != resourcev3.ListenerType || nonce != "" || len(has) > 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.delivery.view.clusters.all, func(c named) bool { return c.looksUp })
}
