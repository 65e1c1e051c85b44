package xds

import (
	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	earlymutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// strippedHeaders are request headers by which gateways and frameworks name the user, the client or the original request.
// The gateway removes a client's copies on every route; README lists them. The identity header is not here, see claims.
var strippedHeaders = []string{
	// The user, as other gateways name one.
	"remote-user", "x-remote-user",
	"x-forwarded-user", "x-forwarded-groups", "x-forwarded-email", "x-forwarded-preferred-username", "x-forwarded-access-token",
	// The client's address.
	"forwarded", "x-real-ip", "true-client-ip",
	// The URL of the original request.
	"x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-uri",
	"x-original-host", "x-original-uri", "x-original-url", "x-rewrite-url",
	// Its method: a framework that follows these would run a method that the service does not allow.
	"x-http-method", "x-http-method-override", "x-method-override", "x-forwarded-method", "x-original-method",
	// CGI programs read it as HTTP_PROXY (httpoxy, CVE-2016-5385).
	"proxy",
}

// strippedPrefix begins the names by which oauth2-proxy passes on the user.
const strippedPrefix = "x-auth-request-"

// stripAll is the strip filter's work on every route. It removes strippedHeaders and adds `vary: origin` to every
// response, which the CORS filter does not do.
func stripAll() *headermutationv3.Mutations {
	request := append(remove(append([]string{scopeHeader}, strippedHeaders...)...), removePrefix(strippedPrefix))
	return &headermutationv3.Mutations{
		RequestMutations: request,
		ResponseMutations: []*mutationrulesv3.HeaderMutation{{
			Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: "vary", Value: "origin"},
				AppendAction: corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD,
			}},
		}},
	}
}

// stripEarly removes what only an Envoy says, all of x-envoy-*, before this Envoy says any of it. By itself it
// removes the ones that it reads, and lets those pass that it or another Envoy would tell an upstream: how often
// a request was tried, or whose it is (x-envoy-peer-metadata).
func (b *builder) stripEarly() []*corev3.TypedExtensionConfig {
	return []*corev3.TypedExtensionConfig{{
		Name:        filterStrip,
		TypedConfig: b.pack(&earlymutationv3.HeaderMutation{Mutations: []*mutationrulesv3.HeaderMutation{removePrefix("x-envoy-"), nameScope()}}),
	}}
}

func remove(names ...string) []*mutationrulesv3.HeaderMutation {
	out := make([]*mutationrulesv3.HeaderMutation, 0, len(names))
	for _, name := range names {
		out = append(out, &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Remove{Remove: name}})
	}
	return out
}

func removePrefix(prefix string) *mutationrulesv3.HeaderMutation {
	return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationrulesv3.HeaderMutation_RemoveOnMatch{
			KeyMatcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: prefix}},
		},
	}}
}
