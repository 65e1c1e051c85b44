package definitions

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// ownedHeaders are request headers that have another meaning to HTTP, Envoy or the gateway. The gateway removes the
// client's copy of the identity header, and none of these may be removed.
var ownedHeaders = []string{
	// RFC 9110 §7.6.1 and RFC 9112: the connection's own.
	"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
	"proxy-authenticate", "proxy-authorization",
	// The request's own.
	"host", "authorization", "origin", "cookie", "date", "expect", "range", "via", "user-agent", "referer",
	"accept", "accept-charset", "accept-encoding", "accept-language", "cache-control", "pragma",
	"if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "max-forwards",
	// Where it comes from and how it is traced.
	"forwarded", "x-real-ip", "x-request-id", "x-original-url", "x-rewrite-url", "traceparent", "tracestate",
	"x-http-method-override", "x-ot-span-context",
}

// ownedPrefixes are the prefixes of more such headers.
var ownedPrefixes = []string{"content-", "x-forwarded-", "x-envoy-", "access-control-", "sec-", "x-b3-", "grpc-"}

func isOwned(header string) bool {
	header = strings.ToLower(header)
	return slices.Contains(ownedHeaders, header) ||
		slices.ContainsFunc(ownedPrefixes, func(prefix string) bool { return strings.HasPrefix(header, prefix) })
}

// identityHeaderFault is the problem of a request header that cannot contain the user's id.
func identityHeaderFault(header string) *fault {
	if header != "" && isOwned(header) {
		return aboutFields.faultf("choose one of its own, such as x-user-id", "%s means something else to HTTP or to Envoy", shown(header))
	}
	return nil
}

// answerHeaders are more response headers, beside ownedHeaders, that cannot contain the user's id or scopes.
var answerHeaders = []string{
	"token", "expires_in", // the gateway's own in the same response
	"set-cookie", "location", "server", "age", "etag", "expires", "vary", "www-authenticate", "retry-after", "allow", "last-modified",
}

// answerHeaderFault is the problem of a response header that cannot contain the user's id or scopes.
func answerHeaderFault(header string) *fault {
	if header != "" && (isOwned(header) || slices.Contains(answerHeaders, strings.ToLower(header))) {
		return aboutFields.faultf("choose one of its own", "%s means something else in an answer", shown(header))
	}
	return nil
}

// The headers that definitions cannot change, in requests, in responses and in both. Names that end in a hyphen are
// prefixes.
var (
	connectionHeaders = []string{ // RFC 9110 §7.6.1 and RFC 9112, and what Envoy makes of them
		"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length",
		"proxy-authenticate", "proxy-authorization", "host", "x-request-id",
		"access-control-", "sec-websocket-", "x-envoy-", "x-gatepost-", "grpc-",
	}
	// Who asks, from where and with which credentials.
	requestHeaders = []string{"authorization", "cookie", "origin", "expect", "forwarded", "x-real-ip", "true-client-ip", "x-forwarded-"}
	// Envoy writes Date, caches depend on Vary, and a client needs to know what a 401 and a 429 ask of it.
	responseHeaders = []string{"date", "vary", "www-authenticate", "retry-after", "x-ratelimit-"}
)

// headerRule returns the problem of a header that definitions change.
type headerRule func(name string) *fault

// requestHeader is the rule for the headers of requests.
func requestHeader(g *Gateway) headerRule { return g.headerRule("request", requestHeaders) }

// responseHeader is the rule for the headers of responses.
func responseHeader(g *Gateway) headerRule { return g.headerRule("response", responseHeaders) }

func (g *Gateway) headerRule(kind string, more []string) headerRule {
	owned := slices.Concat(connectionHeaders, more, []string{g.Identity.UserHeader})
	return func(name string) *fault {
		if !headerName.MatchString(name) {
			return aboutFields.faultf("letters, digits, hyphens and underscores, such as X-Frame-Options", "%s is not a header name", shown(name))
		}
		if slices.ContainsFunc(owned, func(o string) bool {
			return strings.EqualFold(name, o) || strings.HasSuffix(o, "-") && strings.HasPrefix(strings.ToLower(name), o)
		}) {
			return aboutFields.faultf("remove it", "%s of a %s belongs to HTTP, to Envoy or to the gateway", shown(name), kind)
		}
		return nil
	}
}

var (
	headerName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	// headerValue has visible ASCII characters, with spaces between them.
	headerValue = regexp.MustCompile(`^[\x21-\x7E]([\x20-\x7E]{0,998}[\x21-\x7E])?$`)
)

// parseHeaders parses changes of headers, each header once.
func parseHeaders(f *findings, m *gatewayv1.Headers, field string, rule headerRule) Headers {
	var h Headers
	first := map[string]string{} // :: name in lower case → field
	take := func(at, name string) string {
		lower := strings.ToLower(name)
		if earlier, twice := first[lower]; twice {
			f.add(at, aboutFields.faultf("remove one of them", "%s is changed twice, first on %s", shown(name), f.where(earlier)))
		}
		first[lower] = at
		f.add(at, rule(name))
		return lower
	}
	for _, name := range slices.Sorted(maps.Keys(m.GetSet())) {
		at, value := entryOf(field+".set", name), m.GetSet()[name]
		h.Set = append(h.Set, Header{take(at, name), value})
		if !headerValue.MatchString(value) {
			f.add(at, aboutFields.faultf("write 1 to 1000 visible ASCII characters, without a space at the start or the end; remove removes a header",
				"%s cannot be the value of a header", aboutValue(value)))
		}
	}
	slices.SortFunc(h.Set, func(a, b Header) int { return cmp.Compare(a.Name, b.Name) })
	for i, name := range m.GetRemove() {
		h.Remove = append(h.Remove, take(fmt.Sprintf("%s.remove[%d]", field, i), name))
	}
	return h
}

// aboutValue describes a value that no header can have. It does not show the value, which can be a key: problems are
// logged, and are in the status and the support bundle.
func aboutValue(value string) string {
	for _, c := range value {
		if c < ' ' || c > '~' {
			return fmt.Sprintf("a text with the character %q", c)
		}
	}
	switch {
	case value == "":
		return "an empty text"
	case strings.TrimSpace(value) != value:
		return "a text with a space at its start or end"
	}
	return fmt.Sprintf("a text of %d bytes", len(value))
}
