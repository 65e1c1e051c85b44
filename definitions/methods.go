package definitions

import "slices"

// http1Methods are the methods that Envoy's HTTP/1.1 parser knows. It rejects a request with any other method as
// malformed. Over HTTP/2, Envoy accepts every method.
var http1Methods = []string{
	"ACL", "BIND", "CHECKOUT", "CONNECT", "COPY", "DELETE", "GET", "HEAD", "LINK", "LOCK", "MERGE", "MKACTIVITY",
	"MKCALENDAR", "MKCOL", "MOVE", "MSEARCH", "NOTIFY", "OPTIONS", "PATCH", "POST", "PROPFIND", "PROPPATCH", "PURGE",
	"PUT", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "TRACE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE",
}

// TakenOverHTTP1 reports whether Envoy accepts requests with the method over HTTP/1.1.
func TakenOverHTTP1(method string) bool { return slices.Contains(http1Methods, method) }

// knownMethods are the methods of the IANA registry that a service can have (RFC 9110 §16.1.1), and others in wide
// use: PURGE and BAN of caches, QUERY, and those of UPnP and Icecast. The most common come first, because nearest
// prefers the first of equally near names.
var knownMethods = []string{
	"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY", "PURGE",
	"ACL", "BAN", "BASELINE-CONTROL", "BIND", "CHECKIN", "CHECKOUT", "COPY", "LABEL", "LINK", "LOCK", "M-SEARCH", "MERGE",
	"MKACTIVITY", "MKCALENDAR", "MKCOL", "MKREDIRECTREF", "MKWORKSPACE", "MOVE", "MSEARCH", "NOTIFY", "ORDERPATCH",
	"PROPFIND", "PROPPATCH", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "UNBIND", "UNCHECKOUT", "UNLINK",
	"UNLOCK", "UNSUBSCRIBE", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL",
}
