package definitions

import (
	"slices"
	"strings"
)

// ownedHeaders are the request headers that say something else than who the user is: to HTTP, to Envoy, or to
// the gateway. A client's copy of the identity header is taken away, and none of these may be.
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

// ownedPrefixes begin the names of whole families of such headers.
var ownedPrefixes = []string{"content-", "x-forwarded-", "x-envoy-", "access-control-", "sec-", "x-b3-", "grpc-"}

func isOwned(header string) bool {
	header = strings.ToLower(header)
	return slices.Contains(ownedHeaders, header) ||
		slices.ContainsFunc(ownedPrefixes, func(prefix string) bool { return strings.HasPrefix(header, prefix) })
}

// identityHeaderFault says why a request header cannot tell the upstream who is calling.
func identityHeaderFault(header string) *fault {
	if header != "" && isOwned(header) {
		return faultf("choose one of its own, such as x-user-id", "%s means something else to HTTP or to Envoy", shown(header))
	}
	return nil
}

// answerHeaders are the headers of an answer that cannot bear what the user service says of a user, beside those
// that a request has too.
var answerHeaders = []string{
	"token", "expires_in", // the gateway's own in the same answer
	"set-cookie", "location", "server", "age", "etag", "expires", "vary", "www-authenticate", "retry-after", "allow", "last-modified",
}

// answerHeaderFault says why a header of the user service's answer cannot bear what it says of the user.
func answerHeaderFault(header string) *fault {
	if header != "" && (isOwned(header) || slices.Contains(answerHeaders, strings.ToLower(header))) {
		return faultf("choose one of its own", "%s means something else in an answer", shown(header))
	}
	return nil
}
