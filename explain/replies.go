package explain

import (
	"fmt"
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// flagUnauthorized is Envoy's response flag for requests that ext_authz ended.
const flagUnauthorized = "UAEX"

// flagNoUpstream is Envoy's response flag for clusters without a healthy upstream.
const flagNoUpstream = "UH"

// rewrite applies the connection manager's local reply configuration.
func (e *Explainer) rewrite(x *exchange) {
	body, contentType := x.reply.body, "text/plain"
	ownType := x.reply.header.has("content-type")
	for _, mapper := range e.manager.GetLocalReplyConfig().GetMappers() {
		if !filterMatches(mapper.GetFilter(), x) {
			continue
		}
		x.addHeaders(mapper.GetHeadersToAdd())
		if as := mapper.GetStatusCode(); as != nil {
			x.reply.status = int(as.GetValue())
		}
		if format := mapper.GetBodyFormatOverride(); format != nil {
			body, contentType = x.format(format.GetTextFormatSource().GetInlineString()), format.GetContentType()
		}
		break
	}
	switch {
	case body == "":
		x.reply.header.remove("content-type")
	case !x.reply.header.has("content-type") || body != x.reply.body && !ownType:
		x.reply.header.set("content-type", contentType)
	}
	x.reply.body = body
}

// filterMatches reports whether an access log filter matches a local reply.
func filterMatches(f *accesslogv3.AccessLogFilter, x *exchange) bool {
	switch by := f.GetFilterSpecifier().(type) {
	case *accesslogv3.AccessLogFilter_StatusCodeFilter:
		comparison := by.StatusCodeFilter.GetComparison()
		return comparison.GetOp() == accesslogv3.ComparisonFilter_EQ && int(comparison.GetValue().GetDefaultValue()) == x.reply.status
	case *accesslogv3.AccessLogFilter_ResponseFlagFilter:
		return slices.Contains(by.ResponseFlagFilter.GetFlags(), x.reply.flag)
	case *accesslogv3.AccessLogFilter_HeaderFilter:
		return x.known && matchHeader(by.HeaderFilter.GetHeader(), x)
	case *accesslogv3.AccessLogFilter_AndFilter:
		return !slices.ContainsFunc(by.AndFilter.GetFilters(), func(f *accesslogv3.AccessLogFilter) bool { return !filterMatches(f, x) })
	case *accesslogv3.AccessLogFilter_OrFilter:
		return slices.ContainsFunc(by.OrFilter.GetFilters(), func(f *accesslogv3.AccessLogFilter) bool { return filterMatches(f, x) })
	}
	return false // reported as unsure
}

// addHeaders adds headers to the response whose values are format strings. Empty values are
// skipped.
func (x *exchange) addHeaders(options []*corev3.HeaderValueOption) {
	for _, option := range options {
		if value := x.format(option.GetHeader().GetValue()); value != "" || option.GetKeepEmptyValue() {
			put(&x.reply.header, option, value)
		}
	}
}

// format expands a format string: %% is a percent sign, %REQ(name)% is a request header, %RESP(name)% one of the
// response.
func (x *exchange) format(text string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "%")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		operator, after, _ := strings.Cut(rest, "%")
		name, isHeader := strings.CutPrefix(operator, "REQ(")
		ofResponse, isOfResponse := strings.CutPrefix(operator, "RESP(")
		switch {
		case operator == "":
			b.WriteByte('%')
		case isHeader && name == ":AUTHORITY)":
			b.WriteString(x.host)
		case isHeader && name == ":PATH)":
			b.WriteString(x.path)
		case isHeader && x.known:
			b.WriteString(x.header.value(strings.ToLower(strings.TrimSuffix(name, ")"))))
		case isHeader:
		case isOfResponse && x.reply != nil:
			b.WriteString(x.reply.header.value(strings.TrimSuffix(ofResponse, ")")))
		case operator == "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
			b.WriteString(clientAddress)
		case operator == "PATH(NQ:PATH)":
			path, _, _ := strings.Cut(x.path, "?")
			b.WriteString(path)
		default:
			x.err = fmt.Errorf("%w: the format %q", ErrNotModelled, operator)
		}
		text = after
	}
}
