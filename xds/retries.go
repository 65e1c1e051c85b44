package xds

import (
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/definitions"
)

const (
	// retrySafe are the failures after which no upstream can have acted on the request.
	retrySafe = "connect-failure,refused-stream,reset-before-request"
	// retryBody is how much of a body is kept for another try. If the first try fails when more has come, there is none.
	retryBody = 256 << 10
	// envoysBudget is the default of a budget. It always allows three concurrent retries.
	envoysBudget = 20
	// picks is how often Envoy picks an upstream for another try, until it is one that was not tried. With affinity or a
	// canary the picks are independent: of two upstreams, three picks in a row are the same one in one of eight cases.
	picks = 32
)

// circuitBreakers are the limits of a service.
func circuitBreakers(s *definitions.Service) *clusterv3.CircuitBreakers {
	const envoys = 1024 // Envoy's default of all three
	limit := func(n int) *wrapperspb.UInt32Value {
		if n == envoys {
			return nil
		}
		return wrapperspb.UInt32(uint32(n))
	}
	thresholds := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections: limit(s.Limits.Connections), MaxPendingRequests: limit(s.Limits.Pending), MaxRequests: limit(s.Limits.Requests),
	}
	if s.Retries.Count > 0 { // without a budget Envoy retries three requests at a time
		thresholds.RetryBudget = new(clusterv3.CircuitBreakers_Thresholds_RetryBudget)
		if s.Retries.Budget != envoysBudget {
			thresholds.RetryBudget.BudgetPercent = &typev3.Percent{Value: float64(s.Retries.Budget)}
		}
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{thresholds}}
}

// retried returns the routes with their retries. If idempotent methods have more of them, each route has a twin for
// these methods in front.
func (b *builder) retried(s *definitions.Service, routes ...forward) (out []forward) {
	r := s.Retries
	if r.Count == 0 {
		return routes
	}
	methods := s.RetriedMethods()
	for _, one := range routes {
		all := len(r.On) > 0 && len(methods) == len(s.Methods)
		if len(r.On) > 0 && !all {
			twin := forward{with(one.at, isOneOf(methods)), proto.CloneOf(one.to)}
			twin.to.RetryPolicy = b.retryPolicy(s, true)
			out = append(out, twin)
		}
		one.to.RetryPolicy = b.retryPolicy(s, all)
		out = append(out, one)
	}
	return out
}

// retryPolicy is the policy of a route. If more is true, requests are also retried that an upstream may have acted on.
func (b *builder) retryPolicy(s *definitions.Service, more bool) *routev3.RetryPolicy {
	policy := &routev3.RetryPolicy{RetryOn: retrySafe}
	if s.Retries.Count != 1 {
		policy.NumRetries = wrapperspb.UInt32(uint32(s.Retries.Count))
	}
	if more {
		policy.RetryOn = strings.Join(append([]string{retrySafe}, s.Retries.On...), ",")
		if s.Retries.PerTryTimeout > 0 {
			policy.PerTryTimeout = durationpb.New(s.Retries.PerTryTimeout)
		}
	}
	if s.HasAlternatives() {
		policy.HostSelectionRetryMaxAttempts = picks
		policy.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: b.pack(&previoushostsv3.PreviousHostsPredicate{}),
			},
		}}
	}
	return policy
}

// isOneOf matches requests with one of the methods. No method has a character with a meaning in expressions.
func isOneOf(methods []string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name: ":method",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{
				Regex: strings.Join(slices.Sorted(slices.Values(methods)), "|"),
			}},
		}},
	}
}
