package xds

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"gatepost/convention"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// corsPolicy is the configuration of the CORS filter on a route: it answers preflights, and lets pages of allowed
// origins read responses. Only a route or its scope has one, never both, because Envoy takes the fields that a route
// leaves out from the scope.
func (b *builder) corsPolicy(methods, expose []string) *anypb.Any {
	allowed, exposed := strings.Join(methods, ","), strings.Join(expose, ",")
	key := allowed + "\n" + exposed
	if policy := b.policies[key]; policy != nil {
		return policy
	}
	cors := &b.gw.Cors
	policy := &corsv3.CorsPolicy{
		AllowOriginStringMatch: allowedOrigins(b.gw.Origins),
		AllowMethods:           allowed,
		AllowHeaders:           strings.Join(cors.AllowHeaders, ","),
		ExposeHeaders:          exposed,
		MaxAge:                 strconv.FormatInt(int64(cors.MaxAge/time.Second), 10),
		// A preflight of another origin is also answered, without CORS headers, and never forwarded.
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	if cors.AllowCredentials {
		policy.AllowCredentials = wrapperspb.Bool(true)
	}
	packed := b.pack(policy)
	b.policies[key] = packed
	return packed
}

// challengeHeader contains the reason of a 401: no token, or an invalid one (RFC 6750 §3). Pages can read it only if
// it is exposed.
const challengeHeader = "www-authenticate"

// exposed returns the response headers that a page can read: the given ones and those of the definitions, each once.
func (b *builder) exposed(own ...string) []string {
	var out []string
	if b.logs() {
		own = append(own, convention.HeaderRequestID)
	}
	if len(b.gw.RateLimits) > 0 {
		own = append(own, limitHeaders...)
	}
	for _, h := range slices.Concat(own, b.gw.Cors.ExposeHeaders) {
		if h != "" && !slices.ContainsFunc(out, func(have string) bool { return strings.EqualFold(have, h) }) {
			out = append(out, h)
		}
	}
	return out
}

// allowedOrigins matches only the listed origins or, without a list, every origin. For the CORS filter, an exact
// matcher of * matches every origin, and the response contains the origin itself. (A regular expression would too,
// but Envoy keeps one per route.)
func allowedOrigins(origins []string) []*matcherv3.StringMatcher {
	if len(origins) == 0 {
		return []*matcherv3.StringMatcher{exact("*")}
	}
	return exactly(origins).GetPatterns()
}

// preflightHeaders match exactly the requests that the CORS filter treats as preflights. It forwards requests in
// which one of the headers is empty. (Fetch standard, "CORS-preflight request".)
func preflightHeaders() []*routev3.HeaderMatcher {
	return []*routev3.HeaderMatcher{
		method("OPTIONS"),
		notEmpty("origin"),
		notEmpty("access-control-request-method"),
	}
}

func method(name string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name:                 ":method",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exact(name)},
	}
}

func contains(header, text string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name: header,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Contains{Contains: text},
		}},
	}
}

func notEmpty(header string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name:                      header,
		HeaderMatchSpecifier:      &routev3.HeaderMatcher_StringMatch{StringMatch: exact("")},
		InvertMatch:               true,
		TreatMissingHeaderAsEmpty: true,
	}
}

// noneOf matches a request whose method is not in the list.
func noneOf(methods []string) []*routev3.HeaderMatcher {
	out := make([]*routev3.HeaderMatcher, 0, len(methods))
	for _, m := range methods {
		not := method(m)
		not.InvertMatch = true
		out = append(out, not)
	}
	return out
}
