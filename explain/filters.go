package explain

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"gatepost/authz"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	modulesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_modules/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// filter is one of Envoy's HTTP filters. A request passes the filters in order until one of them
// replies. The reply passes all filters in reverse order.
type filter interface {
	request(x *exchange)
	response(x *exchange)
}

// filtersOf reads the connection manager's filters. empty are the clusters without upstreams.
func (e *Explainer) filtersOf(manager *hcmv3.HttpConnectionManager, empty map[string]bool) ([]filter, error) {
	var all []filter
	for _, one := range manager.GetHttpFilters() {
		config, err := one.GetTypedConfig().UnmarshalNew()
		if err != nil {
			return nil, err
		}
		switch config := config.(type) {
		case *corsv3.Cors:
			all = append(all, cors{one.GetName()})
		case *headermutationv3.HeaderMutation:
			all = append(all, mutation{one.GetName(), config.GetMutations()})
		case *matchingv3.ExtensionWithMatcher:
			f, err := newMatched(one.GetName(), config)
			if err != nil {
				return nil, err
			}
			all = append(all, f)
		case *extauthzv3.ExtAuthz:
			all = append(all, extAuthz{
				name: one.GetName(), config: config,
				maxHeaders: int(manager.GetCommonHttpProtocolOptions().GetMaxHeadersCount().GetValue()),
				maxBytes:   int(manager.GetMaxRequestHeadersKb().GetValue()) << 10,
			})
		case *filterchainv3.FilterChainConfig:
			if one.GetName() != "scope" {
				return nil, fmt.Errorf("%w: the chain %s", ErrNotModelled, one.GetName())
			}
			all = append(all, findScope{e})
		case *modulesv3.DynamicModuleFilter:
			if one.GetName() != "module" || !one.GetDisabled() {
				return nil, fmt.Errorf("%w: the module %s", ErrNotModelled, one.GetName())
			}
			// A decision in the module's table equals the one that Gatepost would make.
		case *localratelimitv3.LocalRateLimit, *compositev3.Composite, *ratelimitv3.RateLimit:
			// Requests are not counted. The steps name the limits of a service.
		case *setfilterstatev3.Config:
			// It keeps the path for the access log and spans.
		case *routerv3.Router:
			all = append(all, router{empty})
		default:
			return nil, fmt.Errorf("%w: the filter %s", ErrNotModelled, one.GetName())
		}
	}
	return all, nil
}

// cors is Envoy's CORS filter. It handles only requests that are to be forwarded.
type cors struct{ name string }

// policy returns the CORS policy of the route or its scope, or nil. Package xds sets it on one of
// the two.
func (f cors) policy(x *exchange) *corsv3.CorsPolicy {
	if x.route.GetRoute() == nil {
		return nil
	}
	for _, level := range []settingsHolder{x.route, x.vhost} {
		policy := new(corsv3.CorsPolicy)
		if there, err := settings(level, f.name, policy); err != nil || there {
			x.err = err
			return policy
		}
	}
	return nil
}

func (f cors) request(x *exchange) {
	policy, origin := f.policy(x), x.header.value("origin")
	if policy == nil || origin == "" {
		return
	}
	origins := policy.GetAllowOriginStringMatch()
	if matchAny(origins, "*") || matchAny(origins, origin) {
		x.origin = origin
	}
	asks := x.method == "OPTIONS" && x.header.value("access-control-request-method") != ""
	if !asks || x.origin == "" && forwardsOthers(policy) {
		return
	}
	x.preflight = true
	x.reply = &reply{status: 200}
	for _, h := range []Field{
		{"access-control-allow-methods", policy.GetAllowMethods()},
		{"access-control-allow-headers", policy.GetAllowHeaders()},
		{"access-control-max-age", policy.GetMaxAge()},
	} {
		if h.Value != "" {
			x.reply.header.add(h.Name, h.Value)
		}
	}
	if policy.GetAllowCredentials().GetValue() {
		x.reply.header.add("access-control-allow-credentials", "true")
	}
}

// forwardsOthers reports whether preflights of unlisted origins are forwarded to the upstream.
func forwardsOthers(policy *corsv3.CorsPolicy) bool {
	return policy.GetForwardNotMatchingPreflights() == nil || policy.GetForwardNotMatchingPreflights().GetValue()
}

func (f cors) response(x *exchange) {
	if x.origin == "" {
		return
	}
	policy := f.policy(x)
	x.reply.header.set("access-control-allow-origin", x.origin)
	if policy.GetAllowCredentials().GetValue() {
		x.reply.header.set("access-control-allow-credentials", "true")
	}
	if policy.GetExposeHeaders() != "" {
		x.reply.header.set("access-control-expose-headers", policy.GetExposeHeaders())
	}
}

// mutation is Envoy's header mutation filter: its own mutations, followed by those of the route.
type mutation struct {
	name string
	own  *headermutationv3.Mutations
}

// all returns the mutations of the filter, the virtual host and the route.
func (f mutation) all(x *exchange) []*headermutationv3.Mutations {
	out := []*headermutationv3.Mutations{f.own}
	for _, level := range []settingsHolder{x.vhost, x.route} {
		if disables(level, f.name) {
			continue // the module does the same in its place
		}
		more := new(headermutationv3.HeaderMutationPerRoute)
		there, err := settings(level, f.name, more)
		if err != nil {
			x.err = err
		}
		if there {
			out = append(out, more.GetMutations())
		}
	}
	return out
}

func (f mutation) request(x *exchange) {
	for _, m := range f.all(x) {
		x.mutate(&x.header, m.GetRequestMutations())
	}
}

func (f mutation) response(x *exchange) {
	for _, m := range f.all(x) {
		x.mutate(&x.reply.header, m.GetResponseMutations())
		for _, one := range m.GetResponseMutations() {
			if name := one.GetRemove(); name != "" {
				x.removed = append(x.removed, name)
			}
		}
	}
}

func (x *exchange) mutate(header *fields, list []*mutationrulesv3.HeaderMutation) {
	for _, m := range list {
		switch {
		case m.GetAppend() != nil:
			put(header, m.GetAppend(), x.format(m.GetAppend().GetHeader().GetValue()))
		case m.GetRemove() != "":
			header.remove(strings.ToLower(m.GetRemove()))
		case m.GetRemoveOnMatch() != nil:
			for _, h := range slices.Clone(*header) {
				if matchString(m.GetRemoveOnMatch().GetKeyMatcher(), h.Name) {
					header.remove(h.Name)
				}
			}
		}
	}
}

// put adds a header as the option's append action requires.
func put(header *fields, option *corev3.HeaderValueOption, value string) {
	name := strings.ToLower(option.GetHeader().GetKey())
	switch option.GetAppendAction() {
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		header.set(name, value)
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		if header.has(name) {
			header.set(name, value)
		}
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		if !header.has(name) {
			header.add(name, value)
		}
	default:
		header.add(name, value)
	}
}

// router is Envoy's last filter: it responds or forwards the request.
type router struct {
	empty map[string]bool // the clusters without an upstream
}

func (f router) request(x *exchange) {
	if x.route == nil {
		x.localReply(404, "")
		return
	}
	switch action := x.route.GetAction().(type) {
	case *routev3.Route_DirectResponse:
		r := x.localReply(int(action.DirectResponse.GetStatus()), action.DirectResponse.GetBody().GetInlineString())
		x.addHeaders(x.route.GetResponseHeadersToAdd())
		for _, name := range x.vhost.GetResponseHeadersToRemove() {
			r.header.remove(strings.ToLower(name))
		}
	case *routev3.Route_Redirect:
		x.localReply(redirectStatuses[action.Redirect.GetResponseCode()], "").header.add("location", x.location(action.Redirect))
	case *routev3.Route_Route:
		if f.empty[action.Route.GetCluster()] {
			x.localReply(503, "no healthy upstream").flag = flagNoUpstream
			x.reason = "withheld"
			return
		}
		path := x.rewritten(action.Route.GetPrefixRewrite())
		x.header.remove(authz.HeaderStreamDuration)
		for _, name := range slices.Concat(x.route.GetRequestHeadersToRemove(), x.vhost.GetRequestHeadersToRemove()) {
			x.header.remove(strings.ToLower(name))
		}
		for _, option := range x.route.GetRequestHeadersToAdd() {
			value := x.format(option.GetHeader().GetValue())
			put(&x.header, option, value)
			if name := option.GetHeader().GetKey(); name != "connection" { // which HTTP/1.1 needs for an upgrade
				x.set = append(x.set, Field{name, value})
			}
		}
		x.forward = &Forward{Method: x.method, Path: path}
		x.reply = &reply{}
		x.addHeaders(x.route.GetResponseHeadersToAdd())
	default:
		x.err = fmt.Errorf("%w: the route %q", ErrNotModelled, x.route.GetName())
	}
}

func (router) response(*exchange) {}

// rewritten returns the path with its query. If rewrite is set, it replaces the part that the route matched.
func (x *exchange) rewritten(rewrite string) string {
	path, query, hasQuery := strings.Cut(x.path, "?")
	if rewrite != "" {
		matched, _ := matchPath(x.route.GetMatch(), path)
		path = rewrite + path[matched:]
	}
	if hasQuery {
		path += "?" + query
	}
	return path
}

// location returns the address of a redirect.
func (x *exchange) location(to *routev3.RedirectAction) string {
	return to.GetSchemeRedirect() + "://" + to.GetHostRedirect() + x.rewritten(to.GetPrefixRewrite())
}

// redirectStatuses are the statuses of redirects. :: Envoy's name → status
var redirectStatuses = map[routev3.RedirectAction_RedirectResponseCode]int{
	routev3.RedirectAction_MOVED_PERMANENTLY:  http.StatusMovedPermanently,
	routev3.RedirectAction_FOUND:              http.StatusFound,
	routev3.RedirectAction_TEMPORARY_REDIRECT: http.StatusTemporaryRedirect,
	routev3.RedirectAction_PERMANENT_REDIRECT: http.StatusPermanentRedirect,
}
