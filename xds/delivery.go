package xds

import (
	"slices"
	"strconv"
	"strings"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// phase is how far the way from one snapshot to the next has gone.
type phase int

const (
	// clustersFirst: Envoy has been sent the new clusters beside the old ones; the routes are still the old.
	clustersFirst phase = iota
	// warming: the clusters are acknowledged, and the names in them are being looked up.
	warming
	// routesOut: the new routes are out; the old clusters are still there.
	routesOut
)

// delivery is the way from what was served to a snapshot: make before break. Clusters come before the routes
// that name them, and are removed some time after the last route that did.
type delivery struct {
	target *Snapshot
	phase  phase
	view   view
	// before is what was served when the way began.
	before view
	// retired are clusters in the view that the target does not have. :: name → since when
	retired map[string]time.Time
	// unresolved are clusters whose names are being looked up.
	unresolved map[string]bool
	// added are those among them that came with the target.
	added []named
	// held: some routes of the target are not in the view yet, because they lead to one of these.
	held  bool
	timer *time.Timer
	// turn counts timers, so that one which fires too late to be stopped does nothing.
	turn int
	// isDone: every Envoy that a change waits for has the target in full.
	isDone bool
	// isRejected: an Envoy has rejected a part of the target; clustersRejected: its clusters.
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

// begin starts the way to a snapshot. If nobody could be disturbed, it is one step. The lock is held, here
// and in all that follows.
func (s *Server) begin(target *Snapshot) {
	r := &s.delivery
	r.stop()
	old := r.target
	nothingServed := old != nil && r.isRejected && s.delivered == nil
	if nothingServed || r.isRejected && old.Version == target.Version || s.addsKept(target) {
		target = s.again(target) // what the two have in common may be what was rejected, or what nobody was sent
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
	s.retire(target)
	r.view.clusters = s.clustersFor(target)
	if len(s.awaited()) == 0 {
		r.added, r.unresolved = nil, nil // an Envoy that comes later looks them up when it starts
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

// addsKept reports whether a snapshot has a cluster that is kept by its name and version alone.
func (s *Server) addsKept(target *Snapshot) bool {
	return slices.ContainsFunc(s.delivery.view.clusters.all, func(c named) bool {
		if !c.kept {
			return false
		}
		added := target.clusters.get(c.name)
		return added != nil && added.version == c.version
	})
}

// again is the same snapshot with other versions of its resources, so that all of it is sent: on a stream that goes
// on, a resource that an Envoy has rejected counts as sent. What it has taken already is nothing new to it.
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

// retire notes since when the clusters of the view are not in the target.
func (s *Server) retire(target *Snapshot) {
	r := &s.delivery
	retired := map[string]time.Time{}
	_, gone := target.clusters.since(r.view.clusters)
	for _, name := range gone {
		since, known := r.retired[name]
		if !known {
			since = time.Now()
		}
		retired[name] = since
	}
	r.retired = retired
}

// maxKept bounds how many clusters from before are kept, of all Envoys together.
const maxKept = 20_000

// keep has an Envoy that comes from before this Server's time keep the clusters that it has, for as long as others
// that are retired: gone at once, they would be gone before its old routes are. What is in them nobody knows here; it
// is not sent to an Envoy that has them, and to any other no route leads there.
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
			continue // a name that is no UTF-8: none of ours
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

// clustersFor is the target's clusters, and the retired ones beside them.
func (s *Server) clustersFor(target *Snapshot) set {
	r := &s.delivery
	if len(r.retired) == 0 {
		return target.clusters
	}
	retired := make(map[string]*resource, len(r.retired))
	for name := range r.retired {
		retired[name] = r.view.clusters.get(name)
	}
	both := target.clusters.with(retired)
	both.seal()
	return both
}

// advance goes on where every connected Envoy has come as far as this. It is called when one of them may have.
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
		s.settle()
	}
}

// isResolving reports whether names that came with the target are being looked up.
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
	s.settle()
	if !r.isDone {
		s.after(s.opts.Patience, func() {
			s.stopWaiting(func(e *envoy) bool { return e.hasAll(r.view) })
			s.settle()
		})
	}
}

// settle reports which Envoys have the target in full, and whether all have that a change waits for.
func (s *Server) settle() {
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

// untilExpiry is the time until the first of the retired clusters can go.
func (s *Server) untilExpiry() time.Duration {
	wait := s.opts.Grace
	for _, since := range s.delivery.retired {
		wait = min(wait, time.Until(since.Add(s.opts.Grace)))
	}
	return wait
}

// dropExpired takes away the clusters that have been retired for long enough.
func (s *Server) dropExpired() {
	r := &s.delivery
	for name, since := range r.retired {
		if time.Since(since) >= s.opts.Grace {
			delete(r.retired, name)
		}
	}
	r.view.clusters = s.clustersFor(r.target)
	s.serve()
	s.settle()
}

// serve has each Envoy sent what is new to it in the view.
func (s *Server) serve() {
	s.publisher.serve(s.delivery.view)
}

// after does something later, unless the way has gone on by then.
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
