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
	"google.golang.org/protobuf/types/known/wrapperspb"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/ratelimit"
)

// reply is what an answer of Envoy's own says: one to a request that goes wrong, or one of a route (see answer).
type reply struct {
	status uint32
	flag   string // the response flag that tells this case from another of the same status
	path   string // the start of the path, as the route has rewritten it, that does so
	header string // the request header that does so by being there
	text   string
	retry  bool   // whether the same request may well succeed in a moment
	as     uint32 // the status that the client gets; 0: the same
	own    bool   // whether the body is that of the answer
}

// replies are tried in order. 401 is not among them: only the sidecar makes it, with a body of its own.
// They contain nothing about an upstream except that it failed.
var replies = append(redirectReplies(), []reply{
	{status: StatusMaintenance, as: 503, own: true},
	{status: StatusNoCertificate, as: 403, text: "This needs a client certificate."},
	// Gatepost's own 403 keeps its body.
	{status: 403, flag: "UAEX"},
	{status: 403, header: "upgrade", text: "The connection cannot be upgraded here."},
	{status: 403, text: "A URL with https needs a connection with TLS."},
	{status: 404, text: convention.TextNotFound},
	{status: 405, text: convention.TextMethodNotAllowed},
	// By ext_authz: Gatepost did not answer, or its store did not. It is not a "no".
	{status: 503, flag: "UAEX", text: "The gateway cannot tell at the moment whether this request may pass. Please try again.", retry: true},
	// By a rate limit of the cluster that cannot be counted. The client may be within it.
	{status: 503, flag: flagNotCounted, text: "The gateway cannot tell at the moment whether this request may pass. Please try again.", retry: true},
	// By the route to the token handler, which is away with the rest of Gatepost. (A service of which a path on the
	// upstream begins like this is told to try again too.)
	{status: 503, path: convention.PathLogin, text: "The service cannot be reached at the moment.", retry: true},
	{status: 503, text: "The service cannot be reached at the moment."},
	// The first try has failed, and more of the body has come than can be sent again.
	{status: 507, as: 503, text: "The service cannot be reached at the moment."},
	// The token's time was over, or would have been, before the answer was whole.
	{status: 504, flag: "UMSDR", text: "The token ended before the service had answered."},
	{status: 408, flag: "UMSDR", text: "The token ended before the service had answered."},
	{status: 504, text: "The service took too long to answer."},
	{status: 502, text: "The service gave an answer that cannot be delivered."},
	{status: 400, text: "The request is malformed."},
	{status: 408, text: "The request took too long to arrive."},
	{status: 413, text: convention.TextTooLarge},
	{status: 426, text: "The request needs HTTP/1.1 or newer."},
	// Gatepost's own 429 keeps its body.
	{status: 429, flag: "UAEX"},
	{status: 429, text: "There are too many requests. Please wait."},
	{status: 431, text: tooLargeHeaders},
	// ext_authz counts the headers again after Gatepost has allowed the request and set some: there are too many now. (It
	// answers the same to a header that it cannot set. Package authz sends none.)
	{status: 500, flag: "UAEX", as: 431, text: tooLargeHeaders},
	{status: 500, text: "The gateway could not handle the request."},
	{status: 501, text: "The gateway does not support a part of the request."},
}...)

// flagNotCounted is the flag of a response of a limit of the cluster that could not count the request.
const flagNotCounted = "RLSE"

const tooLargeHeaders = "The headers of the request are too large."

// localReplies gives Envoy's own answers a JSON body, so that no route has to. Where origins are listed, one for
// which an origin was sent that is on the list is told apart: a page of another origin is not to read it. Some of
// these answers are made before any filter has seen the request, so that the CORS filter is of no help.
func (b *builder) localReplies() *hcmv3.LocalReplyConfig {
	gw := b.gw
	config := &hcmv3.LocalReplyConfig{}
	for _, r := range replies {
		if r.status == StatusNoCertificate && (gw.TLS == nil || gw.TLS.ClientCertificates == nil) || r.flag == flagNotCounted && !b.opts.ClusterLimits {
			continue // no route has it
		}
		if r.text == "" && !r.own {
			config.Mappers = append(config.Mappers, r.unchanged())
			continue
		}
		if listed := fromOneOf(gw.Origins); listed != nil {
			config.Mappers = append(config.Mappers, r.mapper(listed, append(b.headersOf(r), readable(gw)...)), r.mapper(nil, b.headersOf(r)))
		} else {
			config.Mappers = append(config.Mappers, r.mapper(nil, append(b.headersOf(r), readable(gw)...)))
		}
	}
	config.Mappers = append(config.Mappers, versionReply())
	return config
}

// headersOf are further headers of a reply: a request above a limit that Envoy counts gets X-RateLimit-* even if the
// others do not. Those of other limits have them, and also the number of the limit.
func (b *builder) headersOf(r reply) []*corev3.HeaderValueOption {
	if r.status != 429 || b.gw.RateLimitHeaders { // then Envoy adds them
		return nil
	}
	return []*corev3.HeaderValueOption{
		defaultHeader(ratelimit.HeaderRemaining, "0"), defaultHeader(ratelimit.HeaderReset, "%RESP(retry-after)%"),
	}
}

// versionReply is about the one answer of Envoy's own that is a success: the beacon's, which brings its body along.
func versionReply() *hcmv3.ResponseMapper {
	return &hcmv3.ResponseMapper{
		Filter:       statusIs(200),
		HeadersToAdd: []*corev3.HeaderValueOption{setHeader("content-type", "application/json"), setHeader("cache-control", "no-store")},
	}
}

// unchanged keeps later mappers from a response.
func (r reply) unchanged() *hcmv3.ResponseMapper {
	return &hcmv3.ResponseMapper{Filter: allOf(r.filters())}
}

// filters match the case.
func (r reply) filters() []*accesslogv3.AccessLogFilter {
	filters := []*accesslogv3.AccessLogFilter{statusIs(r.status)}
	if r.flag != "" {
		filters = append(filters, flagIs(r.flag))
	}
	if r.path != "" {
		filters = append(filters, pathBegins(r.path))
	}
	if r.header != "" {
		filters = append(filters, requestHas(r.header))
	}
	return filters
}

func (r reply) mapper(origin *accesslogv3.AccessLogFilter, headers []*corev3.HeaderValueOption) *hcmv3.ResponseMapper {
	filters := r.filters()
	if origin != nil {
		filters = append(filters, origin)
	}
	if r.retry {
		// The sidecar's own denial may bear one already.
		headers = append(headers, defaultHeader("retry-after", "1"))
	}
	mapper := &hcmv3.ResponseMapper{Filter: allOf(filters), HeadersToAdd: headers}
	if !r.own {
		mapper.BodyFormatOverride = &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
				Specifier: &corev3.DataSource_InlineString{InlineString: literal(jsonString(r.text))},
			}},
			ContentType: "application/json",
		}
	}
	if r.as != 0 {
		mapper.StatusCode = wrapperspb.UInt32(r.as)
	}
	return mapper
}

// readable makes an answer of Envoy's own one that the page that asked may read. Without an Origin in the
// request the value is empty, and Envoy adds no header with an empty value. A route that is open to listed
// origins alone is guarded by ext_authz, so that no other origin comes as far as this.
func readable(gw *definitions.Gateway) []*corev3.HeaderValueOption {
	out := []*corev3.HeaderValueOption{setHeader("access-control-allow-origin", "%REQ(origin)%")}
	if gw.Cors.AllowCredentials {
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

// defaultHeader gives an answer a header that it does not have.
func defaultHeader(name, value string) *corev3.HeaderValueOption {
	header := setHeader(name, value)
	header.AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
	return header
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
	return statusFilter(accesslogv3.ComparisonFilter_EQ, status)
}

// statusFrom matches a status and all above it.
func statusFrom(status uint32) *accesslogv3.AccessLogFilter {
	return statusFilter(accesslogv3.ComparisonFilter_GE, status)
}

// statusUpTo matches a status, all below it, and requests without a response.
func statusUpTo(status uint32) *accesslogv3.AccessLogFilter {
	return statusFilter(accesslogv3.ComparisonFilter_LE, status)
}

func statusFilter(op accesslogv3.ComparisonFilter_Op, status uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op: op,
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
	return byHeader(&routev3.HeaderMatcher{
		Name: ":path",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: path},
		}},
	})
}

func requestHas(header string) *accesslogv3.AccessLogFilter { return byHeader(notEmpty(header)) }

func byHeader(m *routev3.HeaderMatcher) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{
		HeaderFilter: &accesslogv3.HeaderFilter{Header: m},
	}}
}

// fromOneOf matches a request whose origin is listed; nil where there is no list.
func fromOneOf(origins []string) *accesslogv3.AccessLogFilter {
	filters := make([]*accesslogv3.AccessLogFilter, 0, len(origins))
	for _, o := range origins {
		filters = append(filters, byHeader(&routev3.HeaderMatcher{
			Name:                 "origin",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exact(o)},
		}))
	}
	if len(filters) == 0 {
		return nil
	}
	return anyOf(filters)
}

func allOf(filters []*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	if len(filters) == 1 {
		return filters[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
		AndFilter: &accesslogv3.AndFilter{Filters: filters},
	}}
}

// anyOf matches what one of several filters matches.
func anyOf(filters []*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	if len(filters) == 1 {
		return filters[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{
		OrFilter: &accesslogv3.OrFilter{Filters: filters},
	}}
}
