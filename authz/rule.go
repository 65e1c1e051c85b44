package authz

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

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
	// ForwardToken says whether the upstream sees Authorization.
	ForwardToken bool
}

// Shared is the part of the rule that is the same for every route. It travels with the virtual host, and
// Envoy merges it with the route's own part (ExtAuthzPerRoute, "merged from less specific to more specific").
type Shared struct {
	// Origins are the origins that may call; empty: all.
	Origins []string
	// UserHeader is the request header by which the upstream learns the user's id.
	UserHeader string
	// Version is the version of the definitions that the routes were made from.
	Version string
}

// The names of the context extensions.
const (
	keyService      = "service"
	keyAuthenticate = "authenticate"
	keyScopes       = "scopes"
	keyForwardToken = "forward_token"
	keyOrigins      = "origins"
	keyUserHeader   = "user_header"
	keyVersion      = "version"
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
	return perRoute(ext)
}

// Extensions returns the shared part in the form in which the virtual host carries it.
func (s Shared) Extensions() *extauthzv3.ExtAuthzPerRoute {
	ext := map[string]string{keyUserHeader: s.UserHeader, keyVersion: s.Version}
	if len(s.Origins) > 0 {
		ext[keyOrigins] = strings.Join(s.Origins, " ") // an origin has no space (RFC 6454 §6.1)
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

// readRule is the inverse of the two Extensions methods, read in place: it allocates nothing.
func readRule(ext map[string]string) (rule, error) {
	service, userHeader := ext[keyService], ext[keyUserHeader]
	if service == "" || userHeader == "" {
		return rule{}, ErrNoRule
	}
	r := rule{
		service:      service,
		scopes:       ext[keyScopes],
		forwardToken: ext[keyForwardToken] == "true",
		origins:      ext[keyOrigins],
		userHeader:   userHeader,
		version:      ext[keyVersion],
	}
	switch v := ext[keyAuthenticate]; v {
	case "true":
		r.authenticate = true
	case "false":
	default: // a value that nobody wrote: fail closed
		return rule{}, fmt.Errorf("%w: authenticate is %q", ErrNoRule, v)
	}
	return r, nil
}

// rule is a Rule and its Shared part as they arrive: lists are still joined by spaces.
type rule struct {
	service, scopes, origins, userHeader, version string
	authenticate, forwardToken                    bool
}
