package authz

import (
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
)

// The request headers that Check looks at. Envoy sends header names in lower case, and the values of a header
// that came more than once as one, joined by commas.
const (
	headerAuthorization = "authorization"
	headerOrigin        = "origin"
	headerCookie        = "cookie"
	headerSubprotocols  = "sec-websocket-protocol"
	headerRequestID     = "x-request-id"
)

// request is what Check reads of a request: what the decision is made from, and what a denial is told by.
type request struct {
	carried
	// authorization and origin are the headers' values; empty where the request has none. An empty header
	// shows no credentials and names no origin, so it is the same as none.
	authorization, origin string
	// cookie and subprotocols are too; Envoy tells them only where the definitions let one bear the token.
	cookie, subprotocols string
	// hits is how many requests of the service the module in Envoy has let pass since the last Check, and rawMetadata the
	// metadata before it was read.
	hits        int64
	rawMetadata string
	// The rest is for people to read and decides nothing. path has its query still.
	requestID, streamID, method, path, client string
}

// setHeader keeps the value of one request header.
func (q *request) setHeader(name, value string) {
	switch name {
	case headerAuthorization:
		q.authorization = value
	case headerOrigin:
		q.origin = value
	case headerCookie:
		q.cookie = value
	case headerSubprotocols:
		q.subprotocols = value
	case headerRequestID:
		q.requestID = value
	}
}

// read takes the facts out of a CheckRequest of the generated type.
func (q *request) read(r *authv3.CheckRequest) {
	attributes := r.GetAttributes()
	for key, value := range attributes.GetContextExtensions() {
		q.set(key, value)
	}
	http := attributes.GetRequest().GetHttp()
	for name, value := range http.GetHeaders() {
		q.setHeader(name, value)
	}
	q.streamID, q.method, q.path = http.GetId(), http.GetMethod(), http.GetPath()
	q.client = attributes.GetSource().GetAddress().GetSocketAddress().GetAddress()
	q.readHits(attributes.GetMetadataContext())
}
