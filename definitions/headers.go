package definitions

import (
	"slices"
	"strings"
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
