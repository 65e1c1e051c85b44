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

// publisher sends each Envoy the resources that are new to it. It is the cache of go-control-plane, which implements
// the protocol. The SnapshotCache of that library compares and copies all resources at each step of a change and for
// each response. With ten thousand services that is most of the cost of a change. Here two views are compared once for
// each step, for all Envoys, and the cost of a response depends on its own size alone.
type publisher struct {
	mu    sync.Mutex
	view  *view            // nil: nothing is served yet, and requests wait
	steps map[string]*step // :: type → the last change of the view's set of that type
	// secrets are served beside the view; see [Server.SetSecrets].
	secrets set
	open    map[*watch]struct{}
}

// step is the difference between the set of a version and the set that is served.
type step struct {
	from    string
	changed []named
	removed []string
}

func newPublisher() *publisher {
	return &publisher{steps: map[string]*step{}, open: map[*watch]struct{}{}}
}

// watch is a request of one Envoy for new resources of one type. It gets one response; then the Envoy sends another.
type watch struct {
	of           *publisher
	request      *cachev3.DeltaRequest
	subscription cachev3.Subscription
	out          chan<- cachev3.DeltaResponse
}

// order is the order in which the types are sent. (xDS protocol, "Eventual consistency considerations".)
var order = []string{resourcev3.ClusterType, resourcev3.ListenerType, resourcev3.ScopedRouteType}

// serve makes v the view that every Envoy is served.
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

// compare records the step from a former set to the one that is served.
func (p *publisher) compare(typeURL string, former, now *set) {
	if former.version != now.version {
		changed, removed := now.since(*former)
		p.steps[typeURL] = &step{former.version, changed, removed}
	}
}

// CreateDeltaWatch responds at once if there is something new, otherwise later. It returns a function that cancels the
// watch.
func (p *publisher) CreateDeltaWatch(request *cachev3.DeltaRequest, subscription cachev3.Subscription, out chan cachev3.DeltaResponse) (func(), error) {
	w := &watch{p, request, subscription, out}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.answersAtOnce() {
		return nil, nil // there is nothing to cancel
	}
	p.open[w] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, w)
	}, nil
}

// answersAtOnce answers a request if there is something new, and reports whether there was.
func (w *watch) answersAtOnce() bool {
	if w.request.GetTypeUrl() == resourcev3.SecretType {
		w.secretAnswered()
		return w.answerSecret()
	}
	return w.of.view != nil && w.answer()
}

var errStateOfTheWorld = errors.New("only the incremental form of xDS is served")

// CreateWatch is for the state-of-the-world form, which is refused earlier.
func (p *publisher) CreateWatch(*cachev3.Request, cachev3.Subscription, chan cachev3.Response) (func(), error) {
	return nil, errStateOfTheWorld
}

// answer sends what is new in the view, and reports whether it did. The channel has room for one response per type.
//
// Envoy applies the removals of a response first and its changes afterwards. Many changes take it a while, and if it
// rejects the response, the scopes are removed nevertheless. Meanwhile requests for a removed scope would match the
// service at /, by its former rule. So removed scopes are sent in a response of their own, after the changes have been
// acknowledged.
func (w *watch) answer() bool {
	part := w.of.view.of(w.request.GetTypeUrl())
	if part == nil {
		return false
	}
	had := w.subscription.ReturnedResources()[asWhole]
	if had == part.version+pendingRemovals && w.request.GetErrorDetail() != nil {
		return false // the rest of a response that was rejected
	}
	changed, removed := w.news(part)
	// The first response is sent even if it is empty: Envoy waits for it. (xDS protocol, "Wildcard".) So is the one after
	// the first half of a change: Envoy has not acknowledged the version of the whole set yet.
	awaited := w.subscription.IsWildcard() && w.request.GetResponseNonce() == "" || strings.HasSuffix(had, pendingRemovals)
	if len(changed)+len(removed) == 0 && !awaited {
		return false
	}
	r := &response{watch: w, version: part.version, changed: changed, removed: removed}
	if w.request.GetTypeUrl() == resourcev3.ScopedRouteType && len(changed) > 0 && len(removed) > 0 {
		r.version, r.removed = part.version+pendingRemovals, nil
	}
	w.out <- r
	return true
}

// asWhole is the key of the version of the whole set among the versions that an Envoy has. No resource has this name.
const asWhole = ""

// pendingRemovals is the suffix of the version of a set whose removals are not sent yet.
const pendingRemovals = " and more"

// news returns the resources that are new to the Envoy, and the names of removed ones, sorted.
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

// response is one response to an Envoy.
type response struct {
	*watch
	version string // of the whole set, with pendingRemovals if the removals are not in it
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

// GetReturnedResources returns the versions that the Envoy has once it has applied the response. It updates the map of
// the subscription: the server calls it after it has sent the response, and passes the map to the next watch.
func (r *response) GetReturnedResources() map[string]string {
	r.of.mu.Lock() // an Envoy that sent two requests may have an open watch
	defer r.of.mu.Unlock()
	has := r.subscription.ReturnedResources()
	if len(has) == 0 {
		has = make(map[string]string, len(r.changed)) // grown one by one, ten thousand would leave garbage of the same size
	}
	for _, one := range r.changed {
		has[one.name] = one.version
	}
	for _, name := range r.removed {
		delete(has, name)
	}
	delete(has, asWhole)
	if r.subscription.IsWildcard() || strings.HasSuffix(r.version, pendingRemovals) {
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
	_ cachev3.DeltaResponse = (*secretResponse)(nil)
)
