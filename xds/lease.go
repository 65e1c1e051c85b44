package xds

import (
	_ "embed"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
)

// filterLease remembers decisions for as long as Gatepost allows (tokens.lease), so that Envoy need not ask again.
const filterLease = "lease"

// leaseScript is the filter. It is the same for all definitions: what a user wrote comes to it as data.
//
//go:embed lease.lua
var leaseScript string

// leases says whether decisions may be remembered at all. For how long is nothing that Envoy is configured with: each
// decision says it of itself, so that a change of tokens.lease holds from the next decision on.
func (b *builder) leases() bool { return b.gw.GetTokens().GetLease().AsDuration() > 0 }

// lease is the filter in the listener. It does nothing but on the routes that enable it, so what is not secured does not
// pay for it, and a route that somebody forgot is asked about.
func (b *builder) lease() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name:     filterLease,
		Disabled: true,
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(&luav3.Lua{
			DefaultSourceCode: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: leaseScript}},
			StatPrefix:        filterLease,
			// The route is the one that the decision was made for.
			ClearRouteCache: wrapperspb.Bool(false),
		})},
	}
}

// unlessHit matches the requests that the filter before has not let pass.
func unlessHit() *matcherv3.MetadataMatcher {
	return &matcherv3.MetadataMatcher{
		Filter: authz.LeaseNamespace,
		Path: []*matcherv3.MetadataMatcher_PathSegment{{
			Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: "hit"},
		}},
		Value:  &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_BoolMatch{BoolMatch: true}},
		Invert: true,
	}
}

// leaseName is the name of a route on which decisions are remembered. It ends in a hash of all that Check is told of the
// route, so a decision never outlives the rule that it was made by, and a change of anything else ends none. (The
// filter could read it from its context as well; a route's name costs it half as much.)
func (b *builder) leaseName(service string, rule authz.Rule) string {
	return service + "#" + hash(b.content(rule.With(b.shared())))
}

// leaseOn is what enables the filter on a route.
func (b *builder) leaseOn(rule authz.Rule) *anypb.Any {
	context := map[string]any{
		"service":     rule.Service,
		"user_header": b.gw.GetIdentity().GetUserHeader(),
	}
	if rule.ForwardToken {
		context["forward_token"] = true
	}
	if inputs := b.shared().LeaseInputs(); len(inputs) > 0 {
		list := make([]any, 0, len(inputs))
		for _, header := range inputs {
			list = append(list, header)
		}
		context["inputs"] = list
	}
	packed, err := structpb.NewStruct(context)
	if err != nil { // text that is no UTF-8
		b.fail(err)
	}
	return b.pack(&luav3.LuaPerRoute{FilterContext: packed})
}

// shared is the part of the rule that is the same for every route.
func (b *builder) shared() authz.Shared {
	return authz.Shared{
		Origins:     b.gw.GetOrigins(),
		Cookie:      b.gw.GetTokens().GetCookie(),
		Subprotocol: b.gw.GetTokens().GetSubprotocol(),
		UserHeader:  b.gw.GetIdentity().GetUserHeader(),
	}
}
