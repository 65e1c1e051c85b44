package xds

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// publisher sends each Envoy what is new to it. To go-control-plane, which speaks the protocol, it is the cache. The
// SnapshotCache that comes with it compares and copies all resources at each step of a change and at each answer to it.
// With ten thousand services that is most of what a change costs; here the whole is looked through once for each step.
type publisher struct {
	mu   sync.Mutex
	view *view // nil: nothing is served yet, and who asks waits
	open map[*watch]struct{}
}

func newPublisher() *publisher { return &publisher{open: map[*watch]struct{}{}} }

// watch is one Envoy that waits for what is new of one type. It is answered once; then the Envoy asks anew.
type watch struct {
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
	p.view = &v
	for _, typeURL := range order {
		for w := range p.open {
			if w.request.GetTypeUrl() == typeURL && w.answer(v) {
				delete(p.open, w)
			}
		}
	}
}

// CreateDeltaWatch answers at once where there is something new, else later. What it returns takes the watch back.
func (p *publisher) CreateDeltaWatch(request *cachev3.DeltaRequest, subscription cachev3.Subscription, out chan cachev3.DeltaResponse) (func(), error) {
	w := &watch{request, subscription, out}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.view != nil && w.answer(*p.view) {
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

// answer sends what is new, and says whether it did so. The channel has room for an answer of each type.
//
// Of one answer Envoy first takes away the scopes that have gone, and only then makes those that have changed, which takes
// it a while when there are many; and where it refuses the answer they have gone nevertheless. Meanwhile the requests
// of a scope that has gone would be those of a service at /, by the rule that it had so far. So a scope goes in an
// answer of its own, after the others have been taken.
func (w *watch) answer(v view) bool {
	part := v.of(w.request.GetTypeUrl())
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
	r := &response{watch: w, part: part, changed: changed, removed: removed}
	if w.request.GetTypeUrl() == resourcev3.ScopedRouteType && len(changed) > 0 && len(removed) > 0 {
		r.removed, r.goLater = nil, map[string]string{}
		for _, name := range removed {
			r.goLater[name] = w.subscription.ReturnedResources()[name]
		}
	}
	w.out <- r
	return true
}

// asWhole is, in what an Envoy has, the name by which the version of the whole set stands. No resource has it.
const asWhole = ""

// lessWhatGoes is what the version of a set ends in where what is not in the set has yet to go.
const lessWhatGoes = " and more"

// news are the names of what is new to the Envoy, and of what has gone, sorted.
func (w *watch) news(part *set) (changed, removed []string) {
	has := w.subscription.ReturnedResources()
	if has[asWhole] == part.version && len(w.request.GetResourceNamesUnsubscribe()) == 0 {
		return nil, nil
	}
	for name, version := range part.versions {
		if had, ok := has[name]; (!ok || had != version) && w.wants(name) {
			changed = append(changed, name)
		}
	}
	for name := range has {
		if _, there := part.versions[name]; !there && name != asWhole {
			removed = append(removed, name)
		}
	}
	slices.Sort(changed)
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
	part             *set
	changed, removed []string
	goLater          map[string]string // what will be removed when this has been taken. :: name → version
}

// version is that of the whole set, with a mark where it is not the whole yet.
func (r *response) version() string {
	if len(r.goLater) > 0 {
		return r.part.version + lessWhatGoes
	}
	return r.part.version
}

func (r *response) GetDeltaDiscoveryResponse() (*discoveryv3.DeltaDiscoveryResponse, error) {
	typeURL := r.request.GetTypeUrl()
	out := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: typeURL, SystemVersionInfo: r.version(), RemovedResources: r.removed,
		Resources: make([]*discoveryv3.Resource, 0, len(r.changed)),
	}
	for _, name := range r.changed {
		one := r.part.byName[name]
		out.Resources = append(out.Resources, &discoveryv3.Resource{
			Name: name, Version: one.version, Resource: &anypb.Any{TypeUrl: typeURL, Value: one.raw},
		})
	}
	return out, nil
}

// GetReturnedResources is what the Envoy has when it has taken this. The server may change it.
func (r *response) GetReturnedResources() map[string]string {
	has := map[string]string{}
	if r.subscription.IsWildcard() {
		has = maps.Clone(r.part.versions)
	} else {
		for name, version := range r.part.versions {
			if r.wants(name) {
				has[name] = version
			}
		}
	}
	if r.subscription.IsWildcard() || len(r.goLater) > 0 {
		has[asWhole] = r.version()
	}
	maps.Copy(has, r.goLater)
	return has
}

func (r *response) GetNextVersionMap() map[string]string   { return r.GetReturnedResources() }
func (r *response) GetDeltaRequest() *cachev3.DeltaRequest { return r.request }
func (r *response) GetSystemVersion() (string, error)      { return r.version(), nil }
func (r *response) GetResponseVersion() string             { return r.version() }
func (r *response) GetContext() context.Context            { return context.Background() }

var (
	_ cachev3.ConfigWatcher = (*publisher)(nil)
	_ cachev3.DeltaResponse = (*response)(nil)
)
