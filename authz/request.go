package authz

import (
	"cmp"

	"gatepost/convention"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// The request headers that a decision depends on. Envoy sends header names in lower case, and joins the values of a
// repeated header by commas.
const (
	headerAuthorization = "authorization"
	headerOrigin        = "origin"
	headerCookie        = "cookie"
	headerSubprotocols  = "sec-websocket-protocol"
)

// CheckedHeaders are the request headers that Envoy must send with a Check, if the definitions accept a token in the
// cookie or in subprotocols of these names. A decision can depend on no other header. A header that is added here must
// also be added to [Request] and, if decisions depend on it, to [Shared.ModuleInputs].
func CheckedHeaders(cookie, subprotocol string) []string {
	headers := []string{headerAuthorization, headerOrigin, convention.HeaderRequestID}
	if cookie != "" {
		headers = append(headers, headerCookie)
	}
	if subprotocol != "" {
		headers = append(headers, headerSubprotocols)
	}
	return headers
}

// Request is what a Check holds: the input of the decision, and what a log line about it names.
type Request struct {
	rawRule
	// authorization and origin are the values of the headers. An empty header is the same as none.
	authorization, origin string
	// cookie and subprotocols are too. Envoy sends them only if the definitions accept a token in one of them.
	cookie, subprotocols string
	// The others are for people and decide nothing. path includes the query. source is the address of the connection, and
	// address the client's according to Envoy, if they can differ.
	requestID, streamID, method, host, path, source, address string
}

// client returns the client's address.
func (q *Request) client() string { return cmp.Or(q.address, q.source) }

// NewRequest returns the Request of a Check of the generated type.
func NewRequest(r *authv3.CheckRequest) *Request {
	q := new(Request)
	attributes := r.GetAttributes()
	for key, value := range attributes.GetContextExtensions() {
		q.rawRule.set(key, value)
	}
	http := attributes.GetRequest().GetHttp()
	for name, value := range http.GetHeaders() {
		q.setHeader(name, value)
	}
	q.streamID, q.method, q.host, q.path = http.GetId(), http.GetMethod(), http.GetHost(), http.GetPath()
	q.source = attributes.GetSource().GetAddress().GetSocketAddress().GetAddress()
	return q
}

// setHeader sets the value of one request header.
func (q *Request) setHeader(name, value string) {
	switch name {
	case headerAuthorization:
		q.authorization = value
	case headerOrigin:
		q.origin = value
	case headerCookie:
		q.cookie = value
	case headerSubprotocols:
		q.subprotocols = value
	case convention.HeaderRequestID:
		q.requestID = value
	case convention.HeaderClientAddress:
		q.address = value
	}
}
