package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	dynamicv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/dynamic_modules/v3"
	modulesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_modules/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/definitions"
)

// Module names the files, as Envoy sees them, by which Envoy checks tokens by itself; see envoy/module.
type Module struct {
	// Library is the module, and Table the table of decisions that Gatepost writes. Empty: Envoy asks about each request.
	Library, Table string
}

// Refused reports whether a rejection is about the module, in Envoy's words: it could not be loaded, lacks a
// function, or does not take its configuration; or Envoy does not know modules.
func (m Module) Refused(r *Rejection) bool {
	reason := strings.ToLower(r.Reason)
	return m.Library != "" && (strings.Contains(reason, "dynamic module") || strings.Contains(reason, "dynamic_module") ||
		strings.Contains(reason, strings.ToLower(m.Library)))
}

// filterModule is the filter that lets requests pass whose decision is in the table. It has no rules: what it finds
// is what Gatepost would decide.
const filterModule = "module"

// hasModule reports whether Envoy checks tokens by itself.
func (b *builder) hasModule() bool { return b.opts.Module.Library != "" }

// module is the filter in the listener. Whether it is enabled is decided when the request gets its first route, so a
// path that only the scope filter finds is asked about. It is enabled by the routes that need it, so public routes do
// not pay for it, and a route without a configuration for it is asked about.
func (b *builder) module() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name:     filterModule,
		Disabled: true,
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(&modulesv3.DynamicModuleFilter{
			DynamicModuleConfig: b.library(),
			FilterName:          "gatepost",
			FilterConfig:        b.text(b.opts.Module.Table),
		})},
	}
}

// library is how Envoy loads the module. It stays loaded: each worker thread keeps its mapping of the table there.
func (b *builder) library() *dynamicv3.DynamicModuleConfig {
	return &dynamicv3.DynamicModuleConfig{
		DoNotClose: true,
		Module: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{
			Specifier: &corev3.DataSource_Filename{Filename: b.opts.Module.Library},
		}}},
	}
}

// text is a string as the module receives it.
func (b *builder) text(s string) *anypb.Any {
	packed := new(anypb.Any)
	if err := anypb.MarshalFrom(packed, wrapperspb.String(s), proto.MarshalOptions{Deterministic: true}); err != nil { // no UTF-8
		b.fail(err)
	}
	return packed
}

// unlessHit matches the requests that the module has not let pass.
func unlessHit() *matcherv3.MetadataMatcher {
	return &matcherv3.MetadataMatcher{
		Filter: authz.MetadataNamespace,
		Path: []*matcherv3.MetadataMatcher_PathSegment{{
			Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: authz.MetadataHit},
		}},
		Value:  &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}},
		Invert: true,
	}
}

// maxModuleHeader is the longest name of the identity header that the module takes (parse_route of module.c).
const maxModuleHeader = 127

// identify gives a rule its ID, a hash of all that Check receives of the route: so a decision never outlives the rule
// that it was made by, and no other change ends one.
func (b *builder) identify(rule authz.Rule) authz.Rule {
	if b.hasModule() && rule.Authenticate {
		sum := sha256.Sum256(b.content(rule.With(b.shared())))
		rule.ID = hex.EncodeToString(sum[:16])
	}
	return rule
}

// moduleOn is what enables the module on a route whose rule has an ID; nil if the module cannot take it. Its form is
// that of parse_route in module.c. If strips is true, the module does the work of the strip filter.
func (b *builder) moduleOn(rule authz.Rule, strips bool) *anypb.Any {
	flags := ""
	if rule.ForwardToken {
		flags = "f"
	}
	for _, header := range b.shared().ModuleInputs() {
		flags += map[string]string{"origin": "o", "cookie": "c", "sec-websocket-protocol": "s"}[header]
	}
	if b.describes() {
		flags += "l"
	}
	if strips {
		flags += "v"
	}
	if flags == "" {
		flags = "-"
	}
	header := b.gw.Identity.UserHeader
	text := fmt.Sprintf("1 %s %d %s %s %016x", rule.ID, rule.Milliseconds(), flags, header, authz.ServiceID(rule.Service))
	if rule.ID == "" || len(header) > maxModuleHeader {
		return nil
	}
	return b.pack(&modulesv3.DynamicModuleFilterPerRoute{
		DynamicModuleConfig: b.library(), FilterName: "gatepost", FilterConfig: b.text(text),
	})
}

// shared is the part of the rule that is the same for every route.
func (b *builder) shared() authz.Shared {
	return authz.Shared{
		Origins:     b.gw.Origins,
		Cookie:      b.gw.Tokens.Cookie,
		Subprotocol: b.gw.Tokens.Subprotocol,
		UserHeader:  b.gw.Identity.UserHeader,
		Log:         b.describes(),
	}
}

// Probe returns a configuration for `envoy --mode validate` that loads the module and gives it the configuration of a
// route. It opens no port that matters: a validation listens nowhere.
func (m Module) Probe() (*bootstrapv3.Bootstrap, error) {
	gw := &definitions.Gateway{Identity: definitions.Identity{UserHeader: convention.HeaderIdentity}}
	b := &builder{gw: gw, opts: Options{Module: m}, about: "module"}
	route := answer("module", prefix("/"), 200, b.pack(authz.Unchecked()))
	route.TypedPerFilterConfig = map[string]*anypb.Any{filterModule: b.moduleOn(b.identify(authz.Rule{Service: "probe", Authenticate: true}), true)}
	manager := b.pack(&hcmv3.HttpConnectionManager{
		StatPrefix:                    "gatepost",
		EarlyHeaderMutationExtensions: b.stripEarly(),
		HttpFilters: []*hcmv3.HttpFilter{b.module(), {
			Name: filterRouter, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.pack(&routerv3.Router{})},
		}},
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			VirtualHosts: []*routev3.VirtualHost{{Name: "/", Domains: []string{"*"}, Routes: []*routev3.Route{route}}},
		}},
	})
	listener := &listenerv3.Listener{
		Name: ListenerName,
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 9},
		}}},
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager},
		}}}},
	}
	return &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{
		Listeners: []*listenerv3.Listener{listener},
	}}, errors.Join(b.errs...)
}
