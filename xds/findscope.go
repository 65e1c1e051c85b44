package xds

import (
	"fmt"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/cel/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// filterScope is the scope filter (findScope).
const filterScope = "scope"

// findScope is the filter that looks for a route again: in the scope of the path in lower case, and if it has none, in
// the scope of all other paths. Every scope except the beacon's disables it, so a request with a route skips it. It is
// the first filter, so that all filters use the final route.
//
// Its parts are one chain, so that a request with a route skips them in one step. None of them is a script: Envoy has
// 90 KiB of Lua for each script, filter chain and worker thread.
func (b *builder) findScope() *anypb.Any {
	lowerCase := fmt.Sprintf("%%CEL(request.headers['%s'].lowerAscii())%%", scopeHeader)
	otherPaths := fmt.Sprintf("%%CEL(has(xds.route_name) ? request.headers['%s'] : '/')%%", scopeHeader)
	part := func(name string, config proto.Message) *corev3.TypedExtensionConfig {
		return &corev3.TypedExtensionConfig{Name: name, TypedConfig: b.pack(config)}
	}
	forgetRoute := part("forget route", &setfilterstatev3.Config{ClearRouteCache: true})
	return b.pack(&filterchainv3.FilterChainConfig{DefaultFilterChain: &filterchainv3.FilterChain{Filters: []*corev3.TypedExtensionConfig{
		part("lower case", b.renameScope(lowerCase)),
		forgetRoute,
		part("find route", &setfilterstatev3.Config{}), // route_name is that of the route that was last asked for
		part("other paths", b.renameScope(otherPaths)),
		forgetRoute,
		part("upgrades", allowUpgrades()),
	}}})
}

// renameScope sets scopeHeader to the value of a format with CEL.
func (b *builder) renameScope(format string) *headermutationv3.HeaderMutation {
	return &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationrulesv3.HeaderMutation{overwrite(scopeHeader, format)},
		Formatters: []*corev3.TypedExtensionConfig{{
			Name:        "envoy.formatter.cel",
			TypedConfig: b.pack(&celv3.Cel{CelConfig: &corev3.CelExpressionConfig{EnableStringFunctions: true}}),
		}},
	}}
}

// allowUpgrades refuses each upgrade except one to a WebSocket on a route that has them. Envoy itself refuses upgrades
// by the route that it finds first. If it found none, it has refused nothing.
func allowUpgrades() *rbacv3.RBAC {
	type permission = rbacconfigv3.Permission
	upgrade := func(header *routev3.HeaderMatcher) *permission {
		header.Name = "upgrade"
		return &permission{Rule: &rbacconfigv3.Permission_Header{Header: header}}
	}
	none := upgrade(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: false}})
	webSocket := exact("websocket")
	webSocket.IgnoreCase = true
	toWebSocket := upgrade(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: webSocket}})
	served := &permission{Rule: &rbacconfigv3.Permission_SourcedMetadata{SourcedMetadata: &rbacconfigv3.SourcedMetadata{
		MetadataSource: rbacconfigv3.MetadataSource_ROUTE,
		MetadataMatcher: &matcherv3.MetadataMatcher{
			Filter: filterScope,
			Path:   []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: metadataWebSocket}}},
			Value:  &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_BoolMatch{BoolMatch: true}},
		},
	}}}
	both := &permission{Rule: &rbacconfigv3.Permission_AndRules{AndRules: &rbacconfigv3.Permission_Set{Rules: []*permission{toWebSocket, served}}}}
	return &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{Policies: map[string]*rbacconfigv3.Policy{"upgrade": {
		Permissions: []*permission{none, both},
		Principals:  []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_Any{Any: true}}},
	}}}}
}
