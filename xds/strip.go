package xds

import (
	"fmt"
	"strings"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	earlymodulev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/dynamic_modules/v3"
	earlymutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/definitions"
)

// strippedHeaders are request headers by which gateways and frameworks name the user, the client or the original
// request. The gateway removes a client's copies from every request; docs/reference/http.md lists them. The identity
// header is not here, see requestHeadersToRemove.
var strippedHeaders = []string{
	// The user, as other gateways name one.
	"remote-user", "x-remote-user",
	// The client's address.
	"forwarded", "x-real-ip", "true-client-ip",
	// The original request.
	"x-rewrite-url",
	// CGI programs read it as HTTP_PROXY (httpoxy, CVE-2016-5385).
	"proxy",
}

// strippedPrefixes begin the names of more such headers: those of oauth2-proxy, those of nginx' auth_request, and
// those that only Envoys set. Envoy removes the ones that it reads, and passes others, such as x-envoy-peer-metadata. A
// framework that follows a method override would run a method that the service does not allow.
var strippedPrefixes = []string{"x-auth-request-", "x-original-", "x-envoy-", "x-http-method", "x-method-override"}

// forwardedClaims match the names of x-forwarded-* except x-forwarded-for and x-forwarded-proto, which Envoy sets or
// takes from trusted proxies. They name the user, the original request, or its protocol once more. A name may end
// within "for" or "proto".
const forwardedClaims = `x-forwarded-(?:$|[!-eg-oq-~]|f(?:$|[!-np-~]|o(?:$|[!-qs-~]|r[!-~]))|p(?:$|[!-qs-~]|r(?:$|[!-np-~]|o(?:$|[!-su-~]|t(?:$|[!-np-~]|o[!-~])))))`

// matchesStripped match the names of all of these. Each matcher is one pass over the headers of a request, of 500
// instructions. To remove a header by its name, Envoy would first index all headers, and nothing else of a request to a
// secured service needs the index. The anchor has RE2 compare the first letters before it runs a pattern, and few
// headers have them. Envoy refuses a pattern of more than 100 steps; the second one has about 95.
func matchesStripped() []*matcherv3.StringMatcher {
	all := []*matcherv3.StringMatcher{matching(`^` + forwardedClaims + `[!-~]*`)}
	var names []string // that begin as the prefixes do
	for _, name := range strippedHeaders {
		if rest, ok := strings.CutPrefix(name, "x-"); ok {
			names = append(names, rest)
		} else {
			all = append(all, exact(name))
		}
	}
	prefixes := strings.ReplaceAll(strings.Join(strippedPrefixes, "|"), "x-", "")
	return append(all, matching(`^x-(?:`+strings.Join(names, "|")+`|(?:`+prefixes+`)[!-~]*)`))
}

// stripEarly removes these headers before a route is looked for and before Envoy adds its own, and names the scope. The
// module does both in one pass, which takes 3,800 instructions fewer than a pass for each matcher.
func (b *builder) stripEarly() []*corev3.TypedExtensionConfig {
	var all []*corev3.TypedExtensionConfig
	add := func(name string, config proto.Message) {
		all = append(all, &corev3.TypedExtensionConfig{Name: name, TypedConfig: b.pack(config)})
	}
	if b.hasModule() {
		add(filterModule, &earlymodulev3.DynamicModuleEarlyHeaderMutation{
			DynamicModuleConfig: b.library(), EarlyHeaderMutationName: "gatepost",
		})
	} else {
		add(filterStrip, &earlymutationv3.HeaderMutation{Mutations: EarlyMutations()})
	}
	if b.traces() && !b.gw.Tracing.TrustIncoming {
		add("traces", &earlymutationv3.HeaderMutation{Mutations: remove("traceparent", "tracestate")})
	}
	return all
}

// EarlyMutations are what stripEarly does to the headers of every request, whether the module does it or not.
func EarlyMutations() []*mutationrulesv3.HeaderMutation {
	var all []*mutationrulesv3.HeaderMutation
	for _, name := range matchesStripped() {
		all = append(all, removeMatching(name))
	}
	return append(all, nameScope())
}

// stripAll is the strip filter's work on every route. It removes the header that scopes are found by, and adds
// `vary: origin` to every response, which the CORS filter does not do. With https it adds the headers of
// such responses, unless the upstream has set them.
func (b *builder) stripAll(https bool) *headermutationv3.Mutations {
	out := &headermutationv3.Mutations{
		RequestMutations: append(remove(scopeHeader), b.nameClient()...),
		ResponseMutations: []*mutationrulesv3.HeaderMutation{{
			Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: "vary", Value: "origin"},
				AppendAction: corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
			}},
		}},
	}
	if !https {
		return out
	}
	ifAbsent := func(name, value string) {
		out.ResponseMutations = append(out.ResponseMutations, &mutationrulesv3.HeaderMutation{
			Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: name, Value: value},
				AppendAction: corev3.HeaderValueOption_ADD_IF_ABSENT,
			}},
		})
	}
	if b.gw.TLS.HSTS > 0 {
		ifAbsent("strict-transport-security", fmt.Sprintf("max-age=%.0f", b.gw.TLS.HSTS.Seconds()))
	}
	if b.gw.TLS.HTTP3 {
		ifAbsent("alt-svc", fmt.Sprintf(`h3=":%d"; ma=86400`, b.gw.TLS.Listen.Port()))
	}
	return out
}

// stripsAlike reports whether stripAll is, for each listener, only the header of scopes and `vary: origin`. On a route
// that adds nothing to these, the module does both, and the strip filter is disabled: a filter costs each request 3,000
// instructions. Envoy decides by the route that it finds first whether either is there, so always one of them is.
func (b *builder) stripsAlike() bool {
	return len(b.nameClient()) == 0 && (b.gw.TLS == nil || b.gw.TLS.HSTS == 0 && !b.gw.TLS.HTTP3)
}

// stripOn is the strip filter's further work on a route of a group, or nil. It removes all
// trailers of requests: by HTTP/2 they would reach an upstream, where a server that merges them into the headers would
// take the user from them. By HTTP/1.1 Envoy sends none, and no gRPC client does.
func (b *builder) stripOn(s endpointGroup, trailers bool) *anypb.Any {
	mutations := &headermutationv3.Mutations{ResponseMutations: changes(b.gw.ResponseHeaders, s.responseHeaders)}
	if b.repeatsLimitHeaders(s.rateLimits) {
		mutations.ResponseMutations = append(mutations.ResponseMutations, firstLimit()...)
	}
	if trailers {
		mutations.RequestTrailersMutations = []*mutationrulesv3.HeaderMutation{removeMatching(matching(".*"))}
	}
	if proto.Size(mutations) == 0 {
		return nil
	}
	return b.pack(&headermutationv3.HeaderMutationPerRoute{Mutations: mutations})
}

// strip gives the routes without a setting for the strip filter the one that is not nil.
func strip(routes []*routev3.Route, on *anypb.Any) []*routev3.Route {
	for _, r := range routes {
		if on != nil && r.GetTypedPerFilterConfig()[filterStrip] == nil {
			r.TypedPerFilterConfig[filterStrip] = on
		}
	}
	return routes
}

// changes are the changes of the gateway's headers, and after them those of a service, which can repeat a header.
func changes(all ...definitions.Headers) (out []*mutationrulesv3.HeaderMutation) {
	for _, h := range all {
		out = append(out, remove(h.Remove...)...)
		for _, option := range setHeaders(h) {
			out = append(out, &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Append{Append: option}})
		}
	}
	return out
}

// setHeaders are the headers that are set, with their values as they are in the definitions.
func setHeaders(h definitions.Headers) (out []*corev3.HeaderValueOption) {
	for _, one := range h.Set {
		out = append(out, setHeader(one.Name, literal(one.Value)))
	}
	return out
}

// overwrite sets a request header; the value is a format string to Envoy.
func overwrite(name, value string) *mutationrulesv3.HeaderMutation {
	return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Append{Append: setHeader(name, value)}}
}

func remove(names ...string) []*mutationrulesv3.HeaderMutation {
	out := make([]*mutationrulesv3.HeaderMutation, 0, len(names))
	for _, name := range names {
		out = append(out, &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Remove{Remove: name}})
	}
	return out
}

// matching matches a text, all of it, by a regular expression.
func matching(regex string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: regex}}}
}

// removeMatching removes the headers whose names match.
func removeMatching(name *matcherv3.StringMatcher) *mutationrulesv3.HeaderMutation {
	return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationrulesv3.HeaderMutation_RemoveOnMatch{KeyMatcher: name},
	}}
}
