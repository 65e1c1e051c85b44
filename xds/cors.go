package xds

import (
	"slices"
	"strconv"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// corsPolicy is what the CORS filter does on a route: answer preflights, and tell a page of a good origin that
// it may read the answer. It is said by a route or by its scope, never by both: what a route's policy leaves out would be
// taken from the scope's.
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
		// A preflight of another origin is answered too, without leave, and never forwarded.
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	if cors.AllowCredentials {
		policy.AllowCredentials = wrapperspb.Bool(true)
	}
	packed := b.pack(policy)
	b.policies[key] = packed
	return packed
}

// challengeHeader tells a page why its request got 401: no token, or one that is not valid (RFC 6750 §3). Browsers
// keep it from pages unless it is exposed.
const challengeHeader = "www-authenticate"

// exposed returns the answer headers that a page may read: the given ones and those of the definitions, each once.
func (b *builder) exposed(own ...string) []string {
	var out []string
	for _, h := range slices.Concat(own, b.gw.Cors.ExposeHeaders) {
		if h != "" && !slices.ContainsFunc(out, func(have string) bool { return strings.EqualFold(have, h) }) {
			out = append(out, h)
		}
	}
	return out
}

// allowedOrigins matches the listed origins and nothing else, or, without a list, every origin: a matcher of the word * does
// to the CORS filter, which answers with the origin itself. (Envoy keeps a regular expression, which does too, once for each route.)
func allowedOrigins(origins []string) []*matcherv3.StringMatcher {
	if len(origins) == 0 {
		return []*matcherv3.StringMatcher{exact("*")}
	}
	return exactly(origins).GetPatterns()
}

// preflightHeaders match what the CORS filter takes for a preflight, and nothing more. A header that is there
// and empty is no preflight to the filter, which would let the request go on.
// (Fetch standard, "CORS-preflight request".)
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
