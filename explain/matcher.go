package explain

import (
	"fmt"
	"strings"

	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	skipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// matched is a header mutation filter that a matcher may skip. A route may have a matcher of its own, or disable the
// filter.
type matched struct {
	name    string
	matcher *xdsmatcherv3.Matcher
	own     *headermutationv3.Mutations
}

func newMatched(name string, config *matchingv3.ExtensionWithMatcher) (filter, error) {
	inner := new(headermutationv3.HeaderMutation)
	if err := config.GetExtensionConfig().GetTypedConfig().UnmarshalTo(inner); err != nil {
		return nil, fmt.Errorf("%w: the filter %s", ErrNotModelled, name)
	}
	return matched{name, config.GetXdsMatcher(), inner.GetMutations()}, nil
}

func (f matched) request(x *exchange) {
	matcher := f.matcher
	for _, level := range []settingsHolder{x.vhost, x.route} {
		if disables(level, f.name) {
			if x.rerouted {
				continue // Envoy reads it of the route that it finds first
			}
			return
		}
		more := new(matchingv3.ExtensionWithMatcherPerRoute)
		there, err := settings(level, f.name, more)
		if err != nil {
			x.err = err
		}
		if there {
			matcher = more.GetXdsMatcher()
		}
	}
	if !skips(matcher, x) {
		x.mutate(&x.header, f.own.GetRequestMutations())
	}
}

// response changes nothing: the filter has no response mutations.
func (f matched) response(x *exchange) {
	if len(f.own.GetResponseMutations()) > 0 {
		x.err = fmt.Errorf("%w: the filter %s", ErrNotModelled, f.name)
	}
}

// skips reports whether the filter does nothing to the request.
func skips(m *xdsmatcherv3.Matcher, x *exchange) bool {
	for _, one := range m.GetMatcherList().GetMatchers() {
		if predicateMatches(one.GetPredicate(), x) {
			return isSkip(one.GetOnMatch(), x)
		}
	}
	return isSkip(m.GetOnNoMatch(), x)
}

func isSkip(on *xdsmatcherv3.Matcher_OnMatch, x *exchange) bool {
	if on == nil {
		return false
	}
	x.unpack(on.GetAction().GetTypedConfig().UnmarshalTo(new(skipv3.SkipFilter)))
	return true
}

// predicateMatches evaluates a predicate: a header against a regular expression, or not.
func predicateMatches(p *xdsmatcherv3.Matcher_MatcherList_Predicate, x *exchange) bool {
	if p.GetNotMatcher() != nil {
		return !predicateMatches(p.GetNotMatcher(), x)
	}
	input := new(matcherv3.HttpRequestHeaderMatchInput)
	x.unpack(p.GetSinglePredicate().GetInput().GetTypedConfig().UnmarshalTo(input))
	value, there := x.header.get(input.GetHeaderName())
	regex := strings.ReplaceAll(p.GetSinglePredicate().GetValueMatch().GetSafeRegex().GetRegex(), `\C`, `(?s:.)`) // any byte; Go has no \C
	return there && matchWhole(&matcherv3.RegexMatcher{Regex: regex}, value)
}

// unpack records an error of unpacking as ErrNotModelled.
func (x *exchange) unpack(err error) {
	if err != nil {
		x.err = fmt.Errorf("%w: %w", ErrNotModelled, err)
	}
}
