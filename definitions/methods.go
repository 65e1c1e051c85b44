package definitions

import "slices"

// http1Methods are the methods that Envoy's HTTP/1.1 parser knows. A request with any other is malformed to it;
// over HTTP/2 it takes every method.
var http1Methods = []string{
	"ACL", "BIND", "CHECKOUT", "CONNECT", "COPY", "DELETE", "GET", "HEAD", "LINK", "LOCK", "MERGE", "MKACTIVITY",
	"MKCALENDAR", "MKCOL", "MOVE", "MSEARCH", "NOTIFY", "OPTIONS", "PATCH", "POST", "PROPFIND", "PROPPATCH", "PURGE",
	"PUT", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "TRACE", "UNBIND", "UNLINK", "UNLOCK", "UNSUBSCRIBE",
}

// TakenOverHTTP1 says whether Envoy takes requests of this method over HTTP/1.1.
func TakenOverHTTP1(method string) bool { return slices.Contains(http1Methods, method) }
