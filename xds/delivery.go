package xds

import (
	"slices"
	"strconv"
	"strings"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// phase is a step of a delivery.
type phase int

const (
	// clustersFirst: the new clusters are sent, beside the old ones; the routes are still the old ones.
	clustersFirst phase = iota
	// warming: the clusters are acknowledged, and the names in them are being resolved.
	warming
	// routesOut: the new routes are sent; the old clusters are still served.
	routesOut
)

// delivery is the transition from the former view to a snapshot: make before break. Clusters are sent before the routes
// that name them, and are removed some time after the last such route.
type delivery struct {
	target *Snapshot
	phase  phase
	view   view
	// before is the view that was served when the delivery began.
	before view
	// retired are the clusters of the view that the target does not have. :: name → since when
	retired map[string]time.Time
	// unresolved are the clusters whose names are being resolved.
	unresolved map[string]bool
	// added are the clusters with names that came with the target.
	added []named
	// held is whether some routes of the target are not in the view yet, because their clusters are unresolved.
	held  bool
	timer *time.Timer
	// turn counts timers, so that a timer that could not be stopped in time does nothing.
	turn int
	// isDone is whether every Envoy that a change waits for has the whole target.
	isDone bool
	// isRejected is whether an Envoy has rejected a part of the target, clustersRejected whether it was its clusters.
	isRejected, clustersRejected bool
}

func (r *delivery) version() string {
	if r.target == nil {
		return ""
	}
	return r.target.Version
}

func (r *delivery) stop() {
	r.turn++
	if r.timer != nil {
		r.timer.Stop()
	}
}

// begin starts the delivery of a snapshot. If nothing is served yet, it is one step. The lock is held, here and in all
// functions below.
func (s *Server) begin(target *Snapshot) {
	r := &s.delivery
	r.stop()
	old := r.target
	nothingServed := old != nil && r.isRejected && s.delivered == nil
	if nothingServed || r.isRejected && old.Version == target.Version || s.addsKept(target) || s.inDoubt(target) {
		target = s.again(target) // what both have in common may have been rejected, or sent to no Envoy
	}
	if r.clustersRejected && r.phase != routesOut {
		r.view = r.before // no route names the new clusters yet
	}
	r.target, r.before = target, r.view
	r.isDone, r.isRejected, r.clustersRejected = false, false, false
	if old == nil || nothingServed {
		r.view, r.retired, r.added, r.unresolved = target.view, nil, nil, nil
		s.toRoutes()
		return
	}
	r.retired = r.retiredBy(target)
	r.view.clusters = r.clustersWith(r.retired, target)
	if len(s.awaited()) == 0 {
		r.added, r.unresolved = nil, nil // an Envoy that connects later resolves them when it starts
		s.toRoutes()
		return
	}
	r.added = s.newNames()
	s.resolve(r.added)
	r.phase = clustersFirst
	s.serve()
	s.after(s.opts.Patience, func() {
		s.stopWaiting(func(e *envoy) bool { return e.has(resourcev3.ClusterType, r.view) })
		s.toRoutes()
	})
	s.advance()
}

// addsKept reports whether a snapshot has a cluster of which only name and version were known.
func (s *Server) addsKept(target *Snapshot) bool {
	return slices.ContainsFunc(s.delivery.view.clusters.all, func(c named) bool {
		if !c.kept {
			return false
		}
		added := target.clusters.get(c.name)
		return added != nil && added.version == c.version
	})
}

// inDoubt reports whether an Envoy that a change waits for has acknowledged a set of the target before, and may have
// been sent another one since, such as one without the clusters that come back. Its former ACK would count for the
// target.
func (s *Server) inDoubt(target *Snapshot) bool {
	r := &s.delivery
	unsettled := slices.DeleteFunc(s.awaited(), func(e *envoy) bool { return e.hasAll(r.view) })
	if len(unsettled) == 0 {
		return false // as a rule: the sets need not be compared
	}
	next := target.view
	next.clusters = r.clustersWith(r.retiredBy(target), target)
	return slices.ContainsFunc(unsettled, func(e *envoy) bool {
		for typeURL := range typeNames {
			if e.has(typeURL, next) && !e.has(typeURL, r.view) {
				return true
			}
		}
		return false
	})
}

// again returns the snapshot with other versions of its resources, so that all of it is sent again: a resource that an
// Envoy has rejected counts as sent as long as the stream lasts. Equal resources change nothing in an Envoy.
func (s *Server) again(snapshot *Snapshot) *Snapshot {
	s.resent++
	mark := "-" + strconv.Itoa(s.resent)
	out := *snapshot
	for _, part := range []*set{&out.listeners, &out.routes, &out.clusters} {
		marked := set{all: slices.Clone(part.all)}
		for i, one := range marked.all {
			again := *one.resource
			again.version += mark
			marked.all[i].resource = &again
		}
		marked.seal()
		*part = marked
	}
	return &out
}

// retiredBy returns the clusters of the view that are not in the target, and since when.
func (r *delivery) retiredBy(target *Snapshot) map[string]time.Time {
	retired := map[string]time.Time{}
	_, removed := target.clusters.since(r.view.clusters)
	for _, name := range removed {
		since, known := r.retired[name]
		if !known {
			since = time.Now()
		}
		retired[name] = since
	}
	return retired
}

// maxKept is the maximum number of clusters of earlier processes that are kept, for all Envoys together.
const maxKept = 20_000

// keep keeps the clusters that an Envoy has from an earlier process of Gatepost, for as long as other retired clusters:
// without it they would be removed before the Envoy's old routes are. Their content is not known here. It is not sent
// to an Envoy that has them, and no other Envoy has a route to them.
func (s *Server) keep(has map[string]string) {
	r := &s.delivery
	if r.target == nil {
		return
	}
	room := maxKept - r.keptClusters()
	unknown := map[string]*resource{}
	for name, version := range has {
		if len(unknown) >= room {
			break
		}
		if !strings.HasPrefix(name, clusterOf) || r.view.clusters.get(name) != nil {
			continue
		}
		if r.retired == nil {
			r.retired = map[string]time.Time{}
		}
		r.retired[name] = time.Now()
		empty, err := newResource(withoutEndpoint(name))
		if err != nil {
			continue // a name that is not UTF-8 is none of ours
		}
		empty.version, empty.kept = version, true
		unknown[name] = empty
	}
	if len(unknown) == 0 {
		return
	}
	r.view.clusters = r.view.clusters.with(unknown)
	r.view.clusters.seal()
	s.serve()
}

func (r *delivery) keptClusters() int {
	count := 0
	for _, c := range r.view.clusters.all {
		if c.kept {
			count++
		}
	}
	return count
}

// clustersWith returns the target's clusters, and those of the view that are retired.
func (r *delivery) clustersWith(retired map[string]time.Time, target *Snapshot) set {
	if len(retired) == 0 {
		return target.clusters
	}
	former := make(map[string]*resource, len(retired))
	for name := range retired {
		former[name] = r.view.clusters.get(name)
	}
	both := target.clusters.with(former)
	both.seal()
	return both
}

// advance goes to the next phase if every awaited Envoy has completed the current one. It is called after each
// acknowledgement.
func (s *Server) advance() {
	r := &s.delivery
	switch {
	case r.target == nil:
	case r.phase == clustersFirst && s.all(resourcev3.ClusterType):
		if !s.isResolving() {
			s.toRoutes()
			return
		}
		r.phase = warming
		s.after(2*s.opts.Warmup, s.toRoutes)
	case r.phase == warming && !s.isResolving():
		s.toRoutes()
	case r.phase == routesOut:
		s.reportProgress()
	}
}

// isResolving reports whether names that came with the target are being resolved.
func (s *Server) isResolving() bool {
	r := &s.delivery
	return slices.ContainsFunc(r.added, func(c named) bool { return r.unresolved[c.name] })
}

// stopWaiting marks each Envoy that a change waits for and that has not done its part, so that the next change does not
// wait for it.
func (s *Server) stopWaiting(done func(*envoy) bool) {
	for _, e := range s.awaited() {
		if !done(e) {
			e.lagging = true
			s.logged(e, func() {
				s.log.Warn("an Envoy has not acknowledged a change in time and is not waited for", "node", e.Node,
					"address", e.Address, "version", s.delivery.version())
			})
		}
	}
}

// toRoutes sends the routes and the listener. Routes to clusters that are not resolved yet follow.
func (s *Server) toRoutes() {
	r := &s.delivery
	r.stop()
	r.view.listeners = r.target.listeners
	r.view.routes, r.held = r.resolvedRoutes()
	r.phase = routesOut
	s.serve()
	s.reportProgress()
	if !r.isDone {
		s.after(s.opts.Patience, func() {
			s.stopWaiting(func(e *envoy) bool { return e.hasAll(r.view) })
			s.reportProgress()
		})
	}
}

// reportProgress reports each Envoy that has the whole target, and the end of the delivery once all awaited Envoys have
// it.
func (s *Server) reportProgress() {
	r := &s.delivery
	if r.held {
		return
	}
	for id, e := range s.envoys {
		if !e.hasAll(r.view) {
			continue
		}
		e.lagging = false
		if e.acked != r.target.Version {
			e.acked = r.target.Version
			s.log.Info("an Envoy has acknowledged the configuration", "node", e.Node, "address", e.Address, "version", e.acked)
			s.report(Acked{ID: id, Version: e.acked, At: time.Now()})
		}
	}
	awaited := s.awaited()
	if len(awaited) == 0 || slices.ContainsFunc(awaited, func(e *envoy) bool { return !e.hasAll(r.view) }) {
		return
	}
	if !r.isDone {
		r.isDone, s.delivered = true, r.target
		s.log.Info("the configuration is served by every Envoy", "version", r.target.Version, "envoys", len(awaited))
		s.report(Delivered{Version: r.target.Version})
	}
	if len(r.retired) > 0 {
		s.after(s.untilExpiry(), s.dropExpired)
	}
}

// untilExpiry returns the time until the first retired cluster can be removed.
func (s *Server) untilExpiry() time.Duration {
	wait := s.opts.Grace
	for _, since := range s.delivery.retired {
		wait = min(wait, time.Until(since.Add(s.opts.Grace)))
	}
	return wait
}

// dropExpired removes the clusters that have been retired for long enough.
func (s *Server) dropExpired() {
	r := &s.delivery
	for name, since := range r.retired {
		if time.Since(since) >= s.opts.Grace {
			delete(r.retired, name)
		}
	}
	r.view.clusters = r.clustersWith(r.retired, r.target)
	s.serve()
	s.reportProgress()
}

// serve sends each Envoy what is new to it in the view.
func (s *Server) serve() {
	s.publisher.serve(s.delivery.view)
}

// after calls do later, unless the delivery has gone on by then.
func (s *Server) after(d time.Duration, do func()) {
	r := &s.delivery
	r.stop()
	turn := r.turn
	r.timer = time.AfterFunc(max(d, 0), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if turn == r.turn {
			do()
		}
	})
}

// all reports whether every Envoy that a change waits for has what the view has of a type.
func (s *Server) all(typeURL string) bool {
	return !slices.ContainsFunc(s.awaited(), func(e *envoy) bool { return !e.has(typeURL, s.delivery.view) })
}
