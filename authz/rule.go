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

// Rule is what a matched route asks of a request. It travels with the route: xds writes it into the Envoy
// configuration as context extensions, Envoy sends it with each Check, and Check reads it back. So there is no
// table here that could be a version behind the routes, and no path that is matched a second time.
type Rule struct {
	// Service names the service for logs and metrics; for a route of the gateway's own, what the route does.
	Service string
	// Authenticate says whether the request needs a token.
	Authenticate bool
	// Scopes is what the token's session must have, all of it.
	Scopes []string
	// ForwardToken says whether the upstream sees the token.
	ForwardToken bool
	// ID names the rule's content, in 32 hex digits: the decisions of the module in Envoy are kept under it. Empty: there is no
	// module. Two rules with the same ID must decide alike.
	ID string
	// Longest is how long Envoy lets a request of the route last by itself; 0: for ever, as one that becomes a WebSocket
	// does. A request that could outlast its token is ended with the token.
	Longest time.Duration
}

// Shared is the part of the rule that is the same for every route.
type Shared struct {
	// Origins are the origins that may call; empty: all.
	Origins []string
	// Cookie is the name of the cookie that may bear the token; empty: none may. It needs Origins.
	Cookie string
	// Subprotocol is what stands, with a dot, before the token in a WebSocket subprotocol; empty: none may bear it.
	Subprotocol string
	// UserHeader is the request header by which the upstream learns the user's id.
	UserHeader string
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
)

// ErrNoRule says that a Check came without the rule of its route. It is denied: a request whose rule is
// unknown must not pass.
var ErrNoRule = errors.New("the route has no rule")

// Extensions returns the rule in the form in which a route carries it.
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

// With returns the rule with the shared part in it, so that a route carries all of it. Said at two levels, a virtual host's and a route's, Envoy
// would copy and merge it anew for each check.
func (r Rule) With(s Shared) *extauthzv3.ExtAuthzPerRoute {
	all := s.Extensions()
	maps.Copy(all.GetCheckSettings().GetContextExtensions(), r.Extensions().GetCheckSettings().GetContextExtensions())
	return all
}

// Extensions returns the shared part in the form in which Envoy's configuration carries it.
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
	return perRoute(ext)
}

// Unchecked is what a route carries that Envoy need not ask about: nothing on it needs a token, and every
// origin may call.
func Unchecked() *extauthzv3.ExtAuthzPerRoute {
	return &extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_Disabled{Disabled: true}}
}

func perRoute(ext map[string]string) *extauthzv3.ExtAuthzPerRoute {
	return &extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{
		CheckSettings: &extauthzv3.CheckSettings{ContextExtensions: ext},
	}}
}

// carried is a rule as it arrives with a Check: the values of the context extensions, unread.
type carried struct {
	service, authenticate, scopes, forwardToken, longest, id string
	origins, cookie, subprotocol, userHeader                 string
}

// set keeps the value of one extension. Names that are not ours are passed over.
func (c *carried) set(key, value string) {
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
	}
}

// rule is the inverse of the two Extensions methods. Whatever they would not have written is [ErrNoRule].
func (c *carried) rule() (rule, error) {
	if c.service == "" || c.userHeader == "" {
		return rule{}, ErrNoRule
	}
	r := rule{
		service: c.service, scopes: c.scopes, origins: c.origins, cookie: c.cookie, subprotocol: c.subprotocol, userHeader: c.userHeader,
	}
	if r.cookie != "" && r.origins == "" { // any page on the web could act as its visitor
		return rule{}, fmt.Errorf("%w: %s without %s", ErrNoRule, keyCookie, keyOrigins)
	}
	switch c.authenticate {
	case "true":
		r.authenticate = true
	case "false":
	default: // a value that nobody wrote: fail closed
		return rule{}, fmt.Errorf("%w: %s is %q", ErrNoRule, keyAuthenticate, c.authenticate)
	}
	switch c.forwardToken {
	case "true":
		r.forwardToken = true
	case "":
	default:
		return rule{}, fmt.Errorf("%w: %s is %q", ErrNoRule, keyForwardToken, c.forwardToken)
	}
	if c.longest != "" {
		ms, err := strconv.ParseInt(c.longest, 10, 64)
		if err != nil || ms <= 0 || ms > maxMilliseconds {
			return rule{}, fmt.Errorf("%w: %s is %q", ErrNoRule, keyLongest, c.longest)
		}
		r.longest = time.Duration(ms) * time.Millisecond
	}
	return r, nil
}

// maxMilliseconds is the longest time.Duration.
const maxMilliseconds = int64(1<<63-1) / int64(time.Millisecond)

// milliseconds is a time above 0 in whole milliseconds, rounded up: a bound of 0 is none to Envoy.
func milliseconds(d time.Duration) int64 { return max(1, int64((d-1)/time.Millisecond)+1) }

// Milliseconds is the rule's Longest in whole milliseconds, as the rule carries it; 0: no bound.
func (r Rule) Milliseconds() int64 {
	if r.Longest <= 0 {
		return 0
	}
	return milliseconds(r.Longest)
}

// rule is a Rule and its Shared part, read: lists are still joined by spaces, so that reading one allocates nothing.
type rule struct {
	service, scopes, origins, cookie, subprotocol, userHeader string
	authenticate, forwardToken                                bool
	longest                                                   time.Duration // 0: for ever
}
