package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// modelled lists the fields of Envoy's messages that this package models, or that do not affect the
// response. If package xds starts to use another field, every explanation lists it as unsure until
// it is added here. `*` means that no field of the message matters.
var modelled = map[string]string{
	"envoy.config.listener.v3.Listener":    "name address per_connection_buffer_limit_bytes listener_filters filter_chains default_filter_chain",
	"envoy.config.listener.v3.FilterChain": "name filter_chain_match transport_socket filters",
	// A request has come over a connection for which there is a certificate.
	"envoy.config.listener.v3.FilterChainMatch":               "*",
	"envoy.config.listener.v3.ListenerFilter":                 "*",
	"envoy.config.route.v3.RouteMatch.TlsContextMatchOptions": "presented",
	"envoy.config.core.v3.TransportSocket":                    "*",
	"envoy.config.listener.v3.Filter":                         "name typed_config",
	"envoy.config.core.v3.Address":                            "*",
	"envoy.config.core.v3.GrpcService":                        "*",
	"google.protobuf.Duration":                                "*",
	"google.protobuf.UInt32Value":                             "*",
	"google.protobuf.BoolValue":                               "*",
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":  "*", // of handshakes of ACME, in which there is no request

	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": "stat_prefix scoped_routes http_filters " +
		"local_reply_config use_remote_address normalize_path merge_slashes path_with_escaped_slashes_action " +
		"strip_trailing_host_dot strip_any_host_port forward_client_cert_details set_current_client_cert_details request_headers_timeout request_timeout stream_idle_timeout stream_flush_timeout max_request_headers_kb " +
		"early_header_mutation_extensions http1_safe_max_connection_duration common_http_protocol_options http2_protocol_options server_header_transformation " +
		"access_log always_set_request_id_in_response tracing original_ip_detection_extensions",
	// What is written down about a request.
	"envoy.config.accesslog.v3.AccessLog":                                                       "*",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing": "*",
	"envoy.config.route.v3.Tracing":                                                             "*",
	"envoy.extensions.filters.http.set_filter_state.v3.Config":                                  "*",
	// The client of an explained request is not one of the trusted proxies.
	"envoy.extensions.http.original_ip_detection.xff.v3.XffConfig": "*",

	"envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes":                                      "*",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails": "*",
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter":                                        "name typed_config disabled",
	"envoy.extensions.filters.network.http_connection_manager.v3.LocalReplyConfig":                                  "mappers",
	"envoy.extensions.filters.network.http_connection_manager.v3.ResponseMapper":                                    "filter status_code headers_to_add body_format_override",
	"envoy.config.core.v3.HttpProtocolOptions":                                                                      "idle_timeout max_connection_duration max_stream_duration max_headers_count headers_with_underscores_action",
	"envoy.config.core.v3.Http2ProtocolOptions":                                                                     "*",
	"envoy.config.core.v3.SubstitutionFormatString":                                                                 "text_format_source content_type",
	"envoy.config.core.v3.DataSource":                                                                               "inline_string",
	"envoy.config.core.v3.HeaderValueOption":                                                                        "header append_action keep_empty_value",
	"envoy.config.core.v3.HeaderValue":                                                                              "key value",
	"envoy.config.core.v3.RuntimeUInt32":                                                                            "*",
	"envoy.config.accesslog.v3.AccessLogFilter":                                                                     "status_code_filter response_flag_filter header_filter and_filter or_filter",
	"envoy.config.accesslog.v3.StatusCodeFilter":                                                                    "comparison",
	"envoy.config.accesslog.v3.ComparisonFilter":                                                                    "op value",
	"envoy.config.accesslog.v3.ResponseFlagFilter":                                                                  "flags",
	"envoy.config.accesslog.v3.HeaderFilter":                                                                        "header",
	"envoy.config.accesslog.v3.AndFilter":                                                                           "filters",
	"envoy.config.accesslog.v3.OrFilter":                                                                            "filters",

	"envoy.config.route.v3.ScopedRouteConfiguration":     "name key route_configuration",
	"envoy.config.route.v3.ScopedRouteConfiguration.Key": "*",
	"envoy.config.core.v3.Metadata":                      "*", // lists the routes that accept WebSockets, for the scope filter
	"envoy.config.route.v3.FilterConfig":                 "*",
	"envoy.config.route.v3.RouteConfiguration":           "name virtual_hosts validate_clusters ignore_port_in_host_matching typed_per_filter_config",
	"envoy.config.route.v3.VirtualHost":                  "name domains routes retry_policy request_body_buffer_limit request_headers_to_remove response_headers_to_remove typed_per_filter_config",
	"envoy.config.route.v3.Route": "name match route tracing redirect metadata request_body_buffer_limit direct_response request_headers_to_add request_headers_to_remove response_headers_to_add " +
		"response_headers_to_remove typed_per_filter_config",
	"envoy.config.route.v3.RouteMatch":             "path prefix path_separated_prefix safe_regex case_sensitive headers tls_context",
	"envoy.config.route.v3.HeaderMatcher":          "name string_match invert_match treat_missing_header_as_empty",
	"envoy.config.route.v3.RouteAction":            "cluster hash_policy retry_policy prefix_rewrite timeout idle_timeout max_stream_duration upgrade_configs rate_limits",
	"envoy.config.route.v3.RouteAction.HashPolicy": "*", // which upstream gets a request is not predicted
	"envoy.config.route.v3.RetryPolicy":            "*",
	"google.protobuf.UInt64Value":                  "*",
	"envoy.config.route.v3.DirectResponseAction":   "status body",
	"envoy.config.route.v3.RedirectAction":         "scheme_redirect host_redirect prefix_rewrite response_code",
	"envoy.type.matcher.v3.StringMatcher":          "exact prefix contains safe_regex",
	"envoy.type.matcher.v3.RegexMatcher":           "regex",
	"envoy.type.matcher.v3.ListStringMatcher":      "patterns",

	"envoy.extensions.filters.http.cors.v3.Cors": "",
	"envoy.extensions.filters.http.cors.v3.CorsPolicy": "allow_origin_string_match allow_methods allow_headers expose_headers " +
		"max_age allow_credentials forward_not_matching_preflights",
	"envoy.extensions.filters.http.header_mutation.v3.HeaderMutation":               "mutations",
	"envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute":       "mutations",
	"envoy.extensions.filters.http.header_mutation.v3.Mutations":                    "request_mutations response_mutations request_trailers_mutations",
	"envoy.config.core.v3.TypedExtensionConfig":                                     "name typed_config",
	"envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation": "mutations",
	"envoy.config.common.mutation_rules.v3.HeaderMutation.RemoveOnMatch":            "key_matcher",
	"envoy.config.common.mutation_rules.v3.HeaderMutation":                          "append remove remove_on_match",
	"envoy.config.common.mutation_rules.v3.HeaderMutationRules":                     "*",
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthz": "grpc_service transport_api_version status_on_error validate_mutations " +
		"allowed_headers disallowed_headers http_service decoder_header_mutation_rules max_denied_response_body_bytes filter_enabled_metadata",
	"envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute": "disabled check_settings",
	"envoy.extensions.filters.http.ext_authz.v3.CheckSettings":    "context_extensions grpc_service",
	"envoy.extensions.filters.http.ext_authz.v3.HttpService":      "*", // leads nowhere: each route that is checked names Gatepost
	"envoy.type.v3.HttpStatus":                                    "*",
	"envoy.extensions.filters.http.router.v3.Router":              "*",

	"envoy.extensions.common.matching.v3.ExtensionWithMatcher":          "xds_matcher extension_config",
	"envoy.extensions.common.matching.v3.ExtensionWithMatcherPerRoute":  "xds_matcher",
	"envoy.extensions.filters.common.matcher.action.v3.SkipFilter":      "*",
	"envoy.type.matcher.v3.HttpRequestHeaderMatchInput":                 "header_name",
	"xds.core.v3.TypedExtensionConfig":                                  "name typed_config",
	"xds.type.matcher.v3.Matcher":                                       "matcher_list on_no_match",
	"xds.type.matcher.v3.Matcher.OnMatch":                               "action",
	"xds.type.matcher.v3.Matcher.MatcherList":                           "matchers",
	"xds.type.matcher.v3.Matcher.MatcherList.FieldMatcher":              "predicate on_match",
	"xds.type.matcher.v3.Matcher.MatcherList.Predicate":                 "single_predicate not_matcher",
	"xds.type.matcher.v3.Matcher.MatcherList.Predicate.SinglePredicate": "input value_match",
	"xds.type.matcher.v3.StringMatcher":                                 "safe_regex",
	"xds.type.matcher.v3.RegexMatcher":                                  "google_re2 regex",
	"xds.type.matcher.v3.RegexMatcher.GoogleRE2":                        "*",

	// The steps of an explanation have them.
	"envoy.config.route.v3.RateLimit":                                 "*",
	"envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit": "*",
	"envoy.extensions.filters.http.composite.v3.Composite":            "*",
	"envoy.extensions.filters.http.composite.v3.CompositePerRoute":    "*",
	"envoy.extensions.filters.http.ratelimit.v3.RateLimit":            "*",

	"envoy.config.route.v3.RouteAction.UpgradeConfig":                 "upgrade_type enabled",
	"envoy.config.route.v3.RouteAction.MaxStreamDuration":             "*",
	"envoy.extensions.filters.http.filter_chain.v3.FilterChainConfig": "*", // findScope
	// A decision in the module's table equals the one that Gatepost would make.
	"envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter":                            "*",
	"envoy.extensions.http.early_header_mutation.dynamic_modules.v3.DynamicModuleEarlyHeaderMutation": "*",
	"envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute":                    "*",
	"envoy.type.matcher.v3.MetadataMatcher":                                                           "*",
}

// notModelled lists the settings in the resources that are not modelled, sorted.
func notModelled(resources ...proto.Message) []string {
	found := map[string]bool{}
	for _, r := range resources {
		findNotModelled(r.ProtoReflect(), found)
	}
	return slices.Sorted(maps.Keys(found))
}

func findNotModelled(m protoreflect.Message, found map[string]bool) {
	if packed, ok := m.Interface().(*anypb.Any); ok {
		inner, err := packed.UnmarshalNew()
		if err != nil {
			found[fmt.Sprintf("%s: %v", packed.GetTypeUrl(), err)] = true
			return
		}
		m = inner.ProtoReflect()
	}
	name := string(m.Descriptor().FullName())
	known, ok := modelled[name]
	if !ok {
		found[name] = true
		return
	}
	if known == "*" {
		return
	}
	names := strings.Fields(known)
	m.Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if !slices.Contains(names, string(fd.Name())) {
			found[name+"."+string(fd.Name())] = true
			return true
		}
		eachMessage(fd, value, func(inner protoreflect.Message) { findNotModelled(inner, found) })
		return true
	})
}

// eachMessage calls a function with each message in the value of a field.
func eachMessage(fd protoreflect.FieldDescriptor, value protoreflect.Value, call func(protoreflect.Message)) {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() != nil {
			value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { call(v.Message()); return true })
		}
	case fd.Message() == nil:
	case fd.IsList():
		for i := range value.List().Len() {
			call(value.List().Get(i).Message())
		}
	default:
		call(value.Message())
	}
}
