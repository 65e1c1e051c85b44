package authz

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
)

// Rule is what a matched route requires of a request. It travels with the route: xds writes it into the Envoy
// configuration as context extensions, Envoy sends it with each Check, and the Check is decided by it. So this package
// has no table that could be older than the routes, and matches no path a second time.
type Rule struct {
	// Service names the service, or the purpose of a route of the gateway itself, in logs and metrics.
	Service string
	// Authenticate reports whether the request needs a token.
	Authenticate bool
	// Scopes are all scopes that the token's session must have.
	Scopes []string
	// ForwardToken reports whether the upstream receives the token.
	ForwardToken bool
	// ID identifies the content of the rule, in 32 hex digits. It is part of the key of the decisions that the module in
	// Envoy repeats, so two rules with the same ID must be equal. Empty: there is no module.
	ID string
	// Longest is how long a request of the route may last by its timeouts; 0: without limit, such as a WebSocket. A
	// request that could outlast its token ends with the token.
	Longest time.Duration
}

// Shared is the part of the rule that is the same for every route.
type Shared struct {
	// Origins are the origins that may call; empty: all.
	Origins []string
	// Cookie is the name of the cookie that may carry the token; empty: none. It requires Origins.
	Cookie string
	// Subprotocol is the prefix, without its dot, of a WebSocket subprotocol that carries the token; empty: none.
	Subprotocol string
	// UserHeader is the request header that carries the user's id to the upstream.
	UserHeader string
	// Log reports whether the decision is logged by Envoy, which then receives it as dynamic metadata.
	Log bool
}

// The names of the context extensions.
const (
	keyService      = "service"
	keyAuthenticate = "authenticate"
	keyScopes       = "scopes"
	keyForwardToken = "forward_token"
	keyLongest      = "longest"
	keyID           = "id"
	keyOrigins      = "origins"
	keyCookie       = "cookie"
	keySubprotocol  = "subprotocol"
	keyUserHeader   = "user_header"
	keyLog          = "log"
)

// errNoRule reports a Check without a valid rule. It is denied: a request without a rule must not pass.
var errNoRule = errors.New("the route has no rule")

// Extensions returns the rule in the form that a route carries.
func (r Rule) Extensions() *extauthzv3.ExtAuthzPerRoute {
	ext := map[string]string{
		keyService:      r.Service,
		keyAuthenticate: strconv.FormatBool(r.Authenticate),
	}
	if len(r.Scopes) > 0 {
		ext[keyScopes] = strings.Join(r.Scopes, " ") // a scope has no space (RFC 6749 §3.3)
	}
	if r.ForwardToken {
		ext[keyForwardToken] = "true"
	}
	if r.Longest > 0 {
		ext[keyLongest] = strconv.FormatInt(r.Milliseconds(), 10)
	}
	if r.ID != "" {
		ext[keyID] = r.ID
	}
	return perRoute(ext)
}

// With returns the rule together with the shared part, so that a route carries both. If the virtual host carried the
// shared part, Envoy would copy and merge the two for each Check.
func (r Rule) With(s Shared) *extauthzv3.ExtAuthzPerRoute {
	all := s.Extensions()
	maps.Copy(all.GetCheckSettings().GetContextExtensions(), r.Extensions().GetCheckSettings().GetContextExtensions())
	return all
}

// Extensions returns the shared part in the form that a route carries.
func (s Shared) Extensions() *extauthzv3.ExtAuthzPerRoute {
	ext := map[string]string{keyUserHeader: s.UserHeader}
	if len(s.Origins) > 0 {
		ext[keyOrigins] = strings.Join(s.Origins, " ") // an origin has no space (RFC 6454 §6.1)
	}
	if s.Cookie != "" {
		ext[keyCookie] = s.Cookie
	}
	if s.Subprotocol != "" {
		ext[keySubprotocol] = s.Subprotocol
	}
	if s.Log {
		ext[keyLog] = "true"
	}
	return perRoute(ext)
}

// Unchecked is what a route carries if Envoy sends no Check for it: it needs no token, and every origin may call.
func Unchecked() *extauthzv3.ExtAuthzPerRoute {
	return &extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_Disabled{Disabled: true}}
}

func perRoute(ext map[string]string) *extauthzv3.ExtAuthzPerRoute {
	return &extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{
		CheckSettings: &extauthzv3.CheckSettings{ContextExtensions: ext},
	}}
}

// rawRule is a rule as it arrives with a Check: the values of the context extensions.
type rawRule struct {
	service, authenticate, scopes, forwardToken, longest, id string
	origins, cookie, subprotocol, userHeader, log            string
}

// set sets the value of one extension. It ignores unknown names.
func (c *rawRule) set(key, value string) {
	switch key {
	case keyService:
		c.service = value
	case keyAuthenticate:
		c.authenticate = value
	case keyScopes:
		c.scopes = value
	case keyForwardToken:
		c.forwardToken = value
	case keyLongest:
		c.longest = value
	case keyID:
		c.id = value
	case keyOrigins:
		c.origins = value
	case keyCookie:
		c.cookie = value
	case keySubprotocol:
		c.subprotocol = value
	case keyUserHeader:
		c.userHeader = value
	case keyLog:
		c.log = value
	}
}

// parse is the inverse of the Extensions methods. Anything that they do not write is errNoRule.
func (c *rawRule) parse() (rule, error) {
	if c.service == "" || c.userHeader == "" {
		return rule{}, errNoRule
	}
	r := rule{
		service: c.service, scopes: c.scopes, origins: c.origins, cookie: c.cookie, subprotocol: c.subprotocol, userHeader: c.userHeader,
	}
	if r.cookie != "" && r.origins == "" { // else any page on the web could act for its visitor
		return rule{}, fmt.Errorf("%w: %s without %s", errNoRule, keyCookie, keyOrigins)
	}
	switch c.authenticate {
	case "true":
		r.authenticate = true
	case "false":
	default: // fail closed
		return rule{}, fmt.Errorf("%w: %s is %q", errNoRule, keyAuthenticate, c.authenticate)
	}
	var err error
	if r.forwardToken, err = isSet(keyForwardToken, c.forwardToken); err != nil {
		return rule{}, err
	}
	if r.log, err = isSet(keyLog, c.log); err != nil {
		return rule{}, err
	}
	if c.longest != "" {
		ms, err := strconv.ParseInt(c.longest, 10, 64)
		if err != nil || ms <= 0 || ms > maxMilliseconds {
			return rule{}, fmt.Errorf("%w: %s is %q", errNoRule, keyLongest, c.longest)
		}
		r.longest = time.Duration(ms) * time.Millisecond
	}
	return r, nil
}

// isSet parses a value that is "true" or omitted.
func isSet(key, value string) (bool, error) {
	if value != "" && value != "true" {
		return false, fmt.Errorf("%w: %s is %q", errNoRule, key, value)
	}
	return value != "", nil
}

// maxMilliseconds is the longest time.Duration.
const maxMilliseconds = int64(1<<63-1) / int64(time.Millisecond)

// milliseconds is a time above 0 in whole milliseconds, rounded up: Envoy takes a limit of 0 for none.
func milliseconds(d time.Duration) int64 { return max(1, int64((d-1)/time.Millisecond)+1) }

// Milliseconds is the rule's Longest in whole milliseconds; 0: no limit.
func (r Rule) Milliseconds() int64 {
	if r.Longest <= 0 {
		return 0
	}
	return milliseconds(r.Longest)
}

// rule is a parsed Rule with its Shared part. Lists are still joined by spaces, so that parsing allocates nothing.
type rule struct {
	service, scopes, origins, cookie, subprotocol, userHeader string
	authenticate, forwardToken, log                           bool
	longest                                                   time.Duration // 0: for ever
}
