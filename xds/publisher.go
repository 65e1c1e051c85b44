package xds

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// publisher sends each Envoy what is new to it. To go-control-plane, which speaks the protocol, it is the cache. The
// SnapshotCache that comes with it compares and copies all resources at each step of a change and at each answer to
// it. With ten thousand services that is most of what a change costs; here two views are compared once for each step,
// whoever is served, and an answer costs as much as there is in it.
type publisher struct {
	mu    sync.Mutex
	view  *view            // nil: nothing is served yet, and who asks waits
	steps map[string]*step // :: type → how the view's part came to be what it is
	open  map[*watch]struct{}
}

// step is what is new to an Envoy that has the set of a version.
type step struct {
	from    string
	changed []named
	removed []string
}

func newPublisher() *publisher {
	return &publisher{steps: map[string]*step{}, open: map[*watch]struct{}{}}
}

// watch is one Envoy that waits for what is new of one type. It is answered once; then the Envoy asks anew.
type watch struct {
	of           *publisher
	request      *cachev3.DeltaRequest
	subscription cachev3.Subscription
	out          chan<- cachev3.DeltaResponse
}

// order is the order in which the types are sent. (xDS protocol, "Eventual consistency considerations".)
var order = []string{resourcev3.ClusterType, resourcev3.ListenerType, resourcev3.ScopedRouteType}

// serve has every Envoy served the view from now on.
func (p *publisher) serve(v view) {
	p.mu.Lock()
	defer p.mu.Unlock()
	former := p.view
	p.view = &v
	for _, typeURL := range order {
		if former != nil {
			p.compare(typeURL, former.of(typeURL), v.of(typeURL))
		}
		for w := range p.open {
			if w.request.GetTypeUrl() == typeURL && w.answer() {
				delete(p.open, w)
			}
		}
	}
}

// compare notes the step from a former set to the one that is served.
func (p *publisher) compare(typeURL string, former, now *set) {
	if former.version != now.version {
		changed, removed := now.since(*former)
		p.steps[typeURL] = &step{former.version, changed, removed}
	}
}

// CreateDeltaWatch answers at once where there is something new, else later. What it returns takes the watch back.
func (p *publisher) CreateDeltaWatch(request *cachev3.DeltaRequest, subscription cachev3.Subscription, out chan cachev3.DeltaResponse) (func(), error) {
	w := &watch{p, request, subscription, out}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view != nil && w.answer() {
		return nil, nil //nolint:nilnil // there is nothing to take back
	}
	p.open[w] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, w)
	}, nil
}

var errStateOfTheWorld = errors.New("only the incremental form of xDS is served")

// CreateWatch is for the state-of-the-world form, which is refused before this.
func (p *publisher) CreateWatch(*cachev3.Request, cachev3.Subscription, chan cachev3.Response) (func(), error) {
	return nil, errStateOfTheWorld
}

// answer sends what is new in the view, and says whether it did so. The channel has room for an answer of each type.
//
// Of one answer Envoy first takes away the scopes that have gone, and only then makes those that have changed, which
// takes it a while when there are many; and where it refuses the answer they have gone nevertheless. Meanwhile the
// requests of a scope that has gone would be those of a service at /, by the rule that it had so far. So a scope goes
// in an answer of its own, after the others have been taken.
func (w *watch) answer() bool {
	part := w.of.view.of(w.request.GetTypeUrl())
	if part == nil {
		return false
	}
	had := w.subscription.ReturnedResources()[asWhole]
	if had == part.version+lessWhatGoes && w.request.GetErrorDetail() != nil {
		return false // the rest of what was refused
	}
	changed, removed := w.news(part)
	// The first answer is sent even where there is nothing to tell: Envoy waits for it. (xDS protocol, "Wildcard".) So is
	// the one after half of a change: the version of the whole is still to be acknowledged.
	awaited := w.subscription.IsWildcard() && w.request.GetResponseNonce() == "" || strings.HasSuffix(had, lessWhatGoes)
	if len(changed)+len(removed) == 0 && !awaited {
		return false
	}
	r := &response{watch: w, version: part.version, changed: changed, removed: removed}
	if w.request.GetTypeUrl() == resourcev3.ScopedRouteType && len(changed) > 0 && len(removed) > 0 {
		r.version, r.removed = part.version+lessWhatGoes, nil
	}
	w.out <- r
	return true
}

// asWhole is, in what an Envoy has, the name by which the version of the whole set stands. No resource has it.
const asWhole = ""

// lessWhatGoes is what the version of a set ends in where what is not in the set has yet to go.
const lessWhatGoes = " and more"

// news are what is new to the Envoy, and the names of what has gone, sorted.
func (w *watch) news(part *set) (changed []named, removed []string) {
	has := w.subscription.ReturnedResources()
	if whole := has[asWhole]; whole != "" && len(w.request.GetResourceNamesUnsubscribe()) == 0 {
		last := w.of.steps[w.request.GetTypeUrl()]
		switch {
		case whole == part.version:
			return nil, nil
		case last != nil && whole == last.from && w.subscription.IsWildcard():
			return last.changed, last.removed
		}
	}
	for _, one := range part.all {
		if had, ok := has[one.name]; (!ok || had != one.version) && w.wants(one.name) {
			changed = append(changed, one)
		}
	}
	for name := range has {
		if name != asWhole && part.get(name) == nil {
			removed = append(removed, name)
		}
	}
	slices.Sort(removed)
	return changed, removed
}

func (w *watch) wants(name string) bool {
	_, subscribed := w.subscription.SubscribedResources()[name]
	return subscribed || w.subscription.IsWildcard()
}

// response is what an Envoy is sent.
type response struct {
	*watch
	version string // that of the whole set, with a mark where it is not the whole yet
	changed []named
	removed []string
}

func (r *response) GetDeltaDiscoveryResponse() (*discoveryv3.DeltaDiscoveryResponse, error) {
	typeURL := r.request.GetTypeUrl()
	out := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: typeURL, SystemVersionInfo: r.version, RemovedResources: r.removed,
		Resources: make([]*discoveryv3.Resource, 0, len(r.changed)),
	}
	for _, one := range r.changed {
		out.Resources = append(out.Resources, &discoveryv3.Resource{
			Name: one.name, Version: one.version, Resource: &anypb.Any{TypeUrl: typeURL, Value: one.raw},
		})
	}
	return out, nil
}

// GetReturnedResources is what the Envoy has when it has taken this. It is what it had, brought up to date: the server
// asks when it has sent this, and gives the map to the next watch.
func (r *response) GetReturnedResources() map[string]string {
	r.of.mu.Lock() // an Envoy that asks twice may have a watch open
	defer r.of.mu.Unlock()
	has := r.subscription.ReturnedResources()
	for _, one := range r.changed {
		has[one.name] = one.version
	}
	for _, name := range r.removed {
		delete(has, name)
	}
	delete(has, asWhole)
	if r.subscription.IsWildcard() || strings.HasSuffix(r.version, lessWhatGoes) {
		has[asWhole] = r.version
	}
	return has
}

func (r *response) GetNextVersionMap() map[string]string   { return r.GetReturnedResources() }
func (r *response) GetDeltaRequest() *cachev3.DeltaRequest { return r.request }
func (r *response) GetSystemVersion() (string, error)      { return r.version, nil }
func (r *response) GetResponseVersion() string             { return r.version }
func (r *response) GetContext() context.Context            { return context.Background() }

var (
	_ cachev3.ConfigWatcher = (*publisher)(nil)
	_ cachev3.DeltaResponse = (*response)(nil)
)
