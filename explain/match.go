package explain

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"gatepost/convention"
)

// match finds the route for the request. If that route does not allow the requested upgrade, Envoy
// rejects the request. If a filter selects another route later, that filter makes this check.
func (e *Explainer) match(x *exchange) {
	if e.find(x); x.route != nil {
		x.refuseUpgrade()
	}
}

// refuseUpgrade rejects an upgrade that the route does not allow.
func (x *exchange) refuseUpgrade() {
	if x.upgrade == "" {
		return
	}
	taken := slices.ContainsFunc(x.route.GetRoute().GetUpgradeConfigs(), func(c *routev3.RouteAction_UpgradeConfig) bool {
		return strings.EqualFold(c.GetUpgradeType(), x.upgrade) && (c.GetEnabled() == nil || c.GetEnabled().GetValue())
	})
	if !taken {
		x.localReply(403, "")
		x.reason = convention.ReasonUpgradeRefused
	}
}

func matches(m *routev3.RouteMatch, x *exchange) bool {
	path, _, _ := strings.Cut(x.path, "?")
	if _, ok := matchPath(m, path); !ok {
		return false
	}
	for _, h := range m.GetHeaders() {
		if !matchHeader(h, x) {
			return false
		}
	}
	presented := m.GetTlsContext().GetPresented()
	return presented == nil || presented.GetValue() == x.certificate
}

// matchPath reports whether a path without its query matches, and how many bytes of it a rewrite
// replaces.
func matchPath(m *routev3.RouteMatch, path string) (matched int, ok bool) {
	begins := func(prefix string) bool {
		if len(path) < len(prefix) {
			return false
		}
		if m.GetCaseSensitive() == nil || m.GetCaseSensitive().GetValue() {
			return path[:len(prefix)] == prefix
		}
		return equalASCII(path[:len(prefix)], prefix)
	}
	switch by := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Path:
		return len(by.Path), len(path) == len(by.Path) && begins(by.Path)
	case *routev3.RouteMatch_Prefix:
		return len(by.Prefix), begins(by.Prefix)
	case *routev3.RouteMatch_PathSeparatedPrefix:
		n := len(by.PathSeparatedPrefix)
		return n, begins(by.PathSeparatedPrefix) && (len(path) == n || path[n] == '/')
	case *routev3.RouteMatch_SafeRegex:
		return len(path), matchWhole(by.SafeRegex, path)
	}
	return 0, false // reported as unsure
}

// equalASCII compares two strings ignoring the case of ASCII letters only.
func equalASCII(a, b string) bool {
	lower := func(c byte) byte {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return len(a) == len(b)
}

// matchHeader reports whether the request's headers match m.
func matchHeader(m *routev3.HeaderMatcher, x *exchange) bool {
	value, there := x.header.get(m.GetName())
	switch m.GetName() {
	case ":method":
		value, there = x.method, true
	case ":path":
		value, there = x.path, true
	case ":authority":
		value, there = x.host, true
	}
	if !there && !m.GetTreatMissingHeaderAsEmpty() {
		return false // a missing header never matches, even if the match is inverted
	}
	return matchString(m.GetStringMatch(), value) != m.GetInvertMatch()
}

func matchString(m *matcherv3.StringMatcher, value string) bool {
	switch by := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return value == by.Exact
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(value, by.Prefix)
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(value, by.Contains)
	case *matcherv3.StringMatcher_SafeRegex:
		return matchWhole(by.SafeRegex, value)
	}
	return false // reported as unsure
}

// matchWhole reports whether the expression matches the entire value, as Envoy requires. Go and
// Envoy both use RE2 syntax.
func matchWhole(m *matcherv3.RegexMatcher, value string) bool {
	re, known := expressions.Load(m.GetRegex())
	if !known {
		compiled, err := regexp.Compile(`^(?:` + m.GetRegex() + `)$`)
		if err != nil {
			return false // Envoy rejects such an expression
		}
		re, _ = expressions.LoadOrStore(m.GetRegex(), compiled)
	}
	return re.(*regexp.Regexp).MatchString(value)
}

// expressions caches compiled expressions. :: text → *regexp.Regexp
var expressions sync.Map

func matchAny(list []*matcherv3.StringMatcher, value string) bool {
	for _, m := range list {
		if matchString(m, value) {
			return true
		}
	}
	return false
}
