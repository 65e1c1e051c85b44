package xds

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/definitions"
)

// A canary is a group of upstreams in the cluster of its service, with a weight. Two clusters with weights on the route
// (weighted_clusters) would be simpler to read in Envoy's metrics. But Envoy chooses such a cluster when it matches the
// route: before a decision has set the user, so that only the client's own headers could be the key.

// canaryRing is how many points the upstreams have together on the ring of a canary by user. It is a multiple of 100,
// so that each percent is a whole number of points: as the canary's part grows, its points stay and some are added,
// and those of the others only become less. So users only move to the canary.
const canaryRing = 10_000

// The zones of the two groups.
const (
	zoneStable = "stable"
	ZoneCanary = "canary"
)

// balance sets how the upstreams share the requests.
func (s *service) balance(c *clusterv3.Cluster) {
	if s.def.Canary != nil {
		c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{
			LocalityConfigSpecifier: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
				LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
			},
		}
	}
	switch {
	case s.canaryByUser():
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
			MinimumRingSize: wrapperspb.UInt64(canaryRing),
		}}
	case s.def.Affinity.By != "":
		c.LbPolicy = clusterv3.Cluster_RING_HASH
	}
}

func (s *service) canaryByUser() bool {
	return s.def.Canary != nil && s.def.Canary.By == definitions.CanaryByUser
}

// hashPolicy is the key by which the ring finds an upstream.
func (s *service) hashPolicy(userHeader string) []*routev3.RouteAction_HashPolicy {
	switch by := s.def.Affinity.By; {
	case by == definitions.AffinityUser || s.canaryByUser():
		return s.byUser(userHeader)
	case by == definitions.AffinityAddress:
		return []*routev3.RouteAction_HashPolicy{byAddress()}
	case by == definitions.AffinityHeader:
		return []*routev3.RouteAction_HashPolicy{byHeaderValue(s.def.Affinity.Header)}
	case by == definitions.AffinityCookie:
		return []*routev3.RouteAction_HashPolicy{s.byCookie()}
	}
	return nil
}

// byUser hashes the user, or the client's address if there is no user. Only a decision of the gateway sets the user's
// header; on a public service the header would be the client's own.
func (s *service) byUser(header string) []*routev3.RouteAction_HashPolicy {
	if !s.def.Authenticate {
		return []*routev3.RouteAction_HashPolicy{byAddress()}
	}
	user := byHeaderValue(header)
	user.Terminal = true
	return []*routev3.RouteAction_HashPolicy{user, byAddress()}
}

func byHeaderValue(name string) *routev3.RouteAction_HashPolicy {
	return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
		Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: name},
	}}
}

func byAddress() *routev3.RouteAction_HashPolicy {
	return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
		ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
	}}
}

// byCookie hashes a cookie that ends with the session of the browser. Envoy sets it, with HttpOnly.
func (s *service) byCookie() *routev3.RouteAction_HashPolicy {
	return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{
		Cookie: &routev3.RouteAction_HashPolicy_Cookie{
			Name: "gatepost-" + s.def.Name, Path: s.path, Ttl: durationpb.New(0),
			Attributes: []*routev3.RouteAction_HashPolicy_CookieAttribute{{Name: "SameSite", Value: "Lax"}},
		},
	}}
}
