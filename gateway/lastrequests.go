package gateway

import (
	"context"
	"sync"
	"time"

	"gatepost/envoy"
	"gatepost/xds"
)

// countEvery is how often the requests of Envoy are counted. It is how exactly the last request is known if nobody asks
// for the services.
const countEvery = 15 * time.Second

// lastRequests knows when each service last had a request that Envoy sent to an upstream. Envoy counts all of them:
// also those of public services and those that the module let pass, which Gatepost does not see. It is safe for
// concurrent use.
type lastRequests struct {
	mu      sync.Mutex
	counted map[string]uint64    // :: cluster → requests when it was last counted; nil: not counted yet
	asked   time.Time            // when Envoy was asked for these counts
	last    map[string]time.Time // :: service → when its count was last seen to have grown
}

// newLastRequests returns that of an Envoy. If own, the Envoy starts after it, so that all of its requests are later.
func newLastRequests(own bool) *lastRequests {
	l := &lastRequests{last: map[string]time.Time{}}
	if own {
		l.counted = map[string]uint64{}
	}
	return l
}

// count records what Envoy answered to a question, unless a later one has been answered before. Services for which keep
// returns false are forgotten.
func (l *lastRequests) count(requests map[string]uint64, asked time.Time, keep func(service string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if asked.Before(l.asked) {
		return
	}
	l.asked = asked
	for cluster, n := range requests {
		// Envoy has started again if there are fewer.
		if service, isService := xds.ServiceOfStats(cluster); isService && l.counted != nil && n != l.counted[cluster] {
			l.last[service] = asked
		}
	}
	l.counted = requests
	for service := range l.last {
		if !keep(service) {
			delete(l.last, service)
		}
	}
}

// of returns when a service last had a request; the zero time if none was seen.
func (l *lastRequests) of(service string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last[service]
}

// countRequests asks Envoy for its counts.
func (g *Gateway) countRequests(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, envoyTimeout)
	defer cancel()
	asked := time.Now()
	requests, err := envoy.Requests(ctx, g.envoyAdmin())
	if err != nil {
		return err
	}
	served := sync.OnceValue(func() map[string]bool { // not needed while no service has had a request
		served := map[string]bool{}
		if d := g.definitions(); d != nil {
			for _, s := range d.Gateway.Services {
				served[s.Name] = true
			}
		}
		return served
	})
	g.lastRequests.count(requests, asked, func(service string) bool { return served()[service] })
	return nil
}

// followRequests counts the requests of Envoy until ctx ends.
func (g *Gateway) followRequests(ctx context.Context) {
	if g.envoyAdmin() == "" {
		return
	}
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = g.countRequests(ctx) // the call for the services reports why Envoy does not answer
		}
	}
}
