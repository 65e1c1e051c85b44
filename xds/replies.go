package xds

import (
	"encoding/json"
	"strconv"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// reply is what an answer of Envoy's own says: one to a request that goes wrong, or one of a route (see answer).
type reply struct {
	status uint32
	flag   string // the response flag that tells this case from another of the same status
	path   string // the start of the path, as the route has rewritten it, that does so
	text   string
	retry  bool // whether the same request may well succeed in a moment
}

// replies are tried in order. 401, 403 and 429 are not among them: those are the sidecar's own words. They say nothing
// about an upstream but that it failed.
var replies = []reply{
	{404, "", "", "Could not find any resources for given path.", false},
	{405, "", "", "Method not allowed", false},
	// By ext_authz: Gatepost did not answer, or its store did not. It is not a "no".
	{503, "UAEX", "", "The gateway cannot tell at the moment whether this request may pass. Please try again.", true},
	// By the route to the token handler, which is away with the rest of Gatepost. (A service of which a path on the
	// upstream begins like this is told to try again too.)
	{503, "", handlerLogin, "The service cannot be reached at the moment.", true},
	{503, "", "", "The service cannot be reached at the moment.", false},
	// The token's time was over, or would have been, before the answer was whole.
	{504, "UMSDR", "", "The token ended before the service had answered.", false},
	{408, "UMSDR", "", "The token ended before the service had answered.", false},
	{504, "", "", "The service took too long to answer.", false},
	{502, "", "", "The service gave an answer that cannot be delivered.", false},
	{400, "", "", "The request is malformed.", false},
	{408, "", "", "The request took too long to arrive.", false},
	{413, "", "", "The request is too large.", false},
	{426, "", "", "The request needs HTTP/1.1 or newer.", false},
	{431, "", "", "The headers of the request are too large.", false},
	{500, "", "", "The gateway could not handle the request.", false},
	{501, "", "", "The gateway does not support a part of the request.", false},
}

// localReplies gives Envoy's own answers a JSON body, so that no route has to. Where origins are listed, one for which an origin was
// sent that is on the list is told apart: a page of another origin is not to read it. Some of these answers
// are made before any filter has seen the request, so that the CORS filter is of no help.
func localReplies(gw *gatewayv1.Gateway) *hcmv3.LocalReplyConfig {
	config := &hcmv3.LocalReplyConfig{}
	for _, r := range replies {
		if listed := fromOneOf(gw.GetOrigins()); listed != nil {
			config.Mappers = append(config.Mappers, r.mapper(listed, readable(gw)), r.mapper(nil, nil))
		} else {
			config.Mappers = append(config.Mappers, r.mapper(nil, readable(gw)))
		}
	}
	config.Mappers = append(config.Mappers, versionReply())
	return config
}

// versionReply is about the one answer of Envoy's own that is a success: the beacon's, which brings its body along.
func versionReply() *hcmv3.ResponseMapper {
	return &hcmv3.ResponseMapper{
		Filter:       statusIs(200),
		HeadersToAdd: []*corev3.HeaderValueOption{setHeader("content-type", "application/json"), setHeader("cache-control", "no-store")},
	}
}

func (r reply) mapper(origin *accesslogv3.AccessLogFilter, headers []*corev3.HeaderValueOption) *hcmv3.ResponseMapper {
	filters := []*accesslogv3.AccessLogFilter{statusIs(r.status)}
	if r.flag != "" {
		filters = append(filters, flagIs(r.flag))
	}
	if r.path != "" {
		filters = append(filters, pathBegins(r.path))
	}
	if origin != nil {
		filters = append(filters, origin)
	}
	if r.retry {
		// The sidecar's own denial may bear one already.
		headers = append(headers, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: "retry-after", Value: "1"},
			AppendAction: corev3.HeaderValueOption_ADD_IF_ABSENT,
		})
	}
	return &hcmv3.ResponseMapper{
		Filter:       allOf(filters),
		HeadersToAdd: headers,
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: literal(jsonString(r.text))},
			}},
			ContentType: "application/json",
		},
	}
}

// readable makes an answer of Envoy's own one that the page that asked may read. Without an Origin in the
// request the value is empty, and Envoy adds no header with an empty value. A route that is open to listed
// origins alone is guarded by ext_authz, so that no other origin comes as far as this.
func readable(gw *gatewayv1.Gateway) []*corev3.HeaderValueOption {
	out := []*corev3.HeaderValueOption{setHeader("access-control-allow-origin", "%REQ(origin)%")}
	if gw.GetCors().GetAllowCredentials() {
		out = append(out, setHeader("access-control-allow-credentials", "true"))
	}
	return out
}

// setHeader gives an answer a header once; the value is a format string to Envoy.
func setHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// literal makes text mean itself in a format string.
func literal(text string) string { return strings.ReplaceAll(text, "%", "%%") }

func jsonString(text string) string {
	out, err := json.Marshal(text)
	if err != nil { // a string always marshals
		return `""`
	}
	return string(out)
}

func statusIs(status uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op: accesslogv3.ComparisonFilter_EQ,
			Value: &corev3.RuntimeUInt32{
				DefaultValue: status,
				RuntimeKey:   "gatepost.replies." + strconv.FormatUint(uint64(status), 10), // required, never set
			},
		}},
	}}
}

func flagIs(flag string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{flag}},
	}}
}

func pathBegins(path string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{
		HeaderFilter: &accesslogv3.HeaderFilter{Header: &routev3.HeaderMatcher{
			Name: ":path",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: path},
			}},
		}},
	}}
}

// fromOneOf matches a request whose origin is listed; nil where there is no list.
func fromOneOf(origins []string) *accesslogv3.AccessLogFilter {
	filters := make([]*accesslogv3.AccessLogFilter, 0, len(origins))
	for _, o := range origins {
		filters = append(filters, &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{
			HeaderFilter: &accesslogv3.HeaderFilter{Header: &routev3.HeaderMatcher{
				Name:                 "origin",
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exact(o)},
			}},
		}})
	}
	switch len(filters) {
	case 0:
		return nil
	case 1:
		return filters[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{
		OrFilter: &accesslogv3.OrFilter{Filters: filters},
	}}
}

func allOf(filters []*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	if len(filters) == 1 {
		return filters[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
		AndFilter: &accesslogv3.AndFilter{Filters: filters},
	}}
}
