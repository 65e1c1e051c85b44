package xds

import (
	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	skipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/tokens"
)

// filterOwnToken is the filter that removes Authorization if it contains a token of this gateway. Pages send their
// token with each request, to public services too. No Check is made for those, so Envoy does it by itself: the header
// is removed by its form, whether or not anybody holds the token. Credentials of other forms pass.
//
// The filter runs after ext_authz, which on secured routes has removed the header. Those routes disable it: it costs
// Envoy a tenth of such a request. It is on unless a route disables it, so a route without a setting forwards no token.
const filterOwnToken = "own_token"

// ownToken matches an Authorization value with a token by itself or after Bearer. To Envoy several headers are one
// value, joined by commas: one token among them is enough. \C is any byte; a dot is none of bytes that are not UTF-8.
const ownToken = `(?:\C*,)?[ \t]*(?:[Bb][Ee][Aa][Rr][Ee][Rr][ \t]+)?` + tokens.Pattern + `[ \t]*(?:,\C*)?`

// ownTokenFilter skips its header mutation unless Authorization matches.
func (b *builder) ownTokenFilter() *anypb.Any {
	return b.pack(&matchingv3.ExtensionWithMatcher{
		ExtensionConfig: &corev3.TypedExtensionConfig{
			Name:        "remove",
			TypedConfig: b.pack(&headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{RequestMutations: remove("authorization")}}),
		},
		XdsMatcher: &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: &xdsmatcherv3.Matcher_MatcherList_Predicate{
					MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: b.requestHeader("authorization", ownToken)},
				},
				OnMatch: b.skip(),
			}},
		}}},
	})
}

// keepsToken has a route skip the filter. (It is not enough to disable it: Envoy reads that before the scope filter has
// found the route of a path in other letters.)
func (b *builder) keepsToken() *anypb.Any {
	return b.pack(&matchingv3.ExtensionWithMatcherPerRoute{XdsMatcher: &xdsmatcherv3.Matcher{OnNoMatch: b.skip()}})
}

// requestHeader matches a request header, all of it, by a regular expression.
func (b *builder) requestHeader(name, regex string) *xdsmatcherv3.Matcher_MatcherList_Predicate {
	type (
		predicate = xdsmatcherv3.Matcher_MatcherList_Predicate
		single    = xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate
	)
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: &single{
		Input: &xdscorev3.TypedExtensionConfig{Name: "header", TypedConfig: b.pack(&matcherv3.HttpRequestHeaderMatchInput{HeaderName: name})},
		Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: &xdsmatcherv3.StringMatcher{
			MatchPattern: &xdsmatcherv3.StringMatcher_SafeRegex{SafeRegex: &xdsmatcherv3.RegexMatcher{
				EngineType: &xdsmatcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcherv3.RegexMatcher_GoogleRE2{}},
				Regex:      regex,
			}},
		}},
	}}}
}

// skip is the action by which a filter with a matcher does nothing.
func (b *builder) skip() *xdsmatcherv3.Matcher_OnMatch {
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
		Action: &xdscorev3.TypedExtensionConfig{Name: "skip", TypedConfig: b.pack(&skipv3.SkipFilter{})},
	}}
}
