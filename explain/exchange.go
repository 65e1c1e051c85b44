package explain

import (
	"context"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"gatepost/authz"
	"gatepost/convention"
)

// exchange is the state of one request on its way through Envoy.
type exchange struct {
	ctx      context.Context
	sessions authz.Sessions
	err      error // the first failure; the explanation is then incomplete

	// The request as the client sent it: its target, the path in the target, and the headers that
	// were parsed.
	target, sent string
	client       fields
	// The request as Envoy sees it now. path includes the query; header names are in lower case.
	method, path, host string
	header             fields
	// certificate reports whether the client has presented a certificate.
	certificate bool
	// handshake describes which certificate the client gets, and closed is why it gets none. Both are empty if that is
	// not known.
	handshake, closed string
	// known reports whether Envoy had parsed the headers before it responded.
	known bool
	// refused is the connection manager's reason for rejecting the request.
	refused string

	vhost *routev3.VirtualHost
	route *routev3.Route
	// rerouted reports whether the route was not found first, but by the scope filter.
	rerouted bool

	// lookedUp reports whether the session of a token was looked up. reason is the reason that
	// authz gives for a denial. token is the token's fingerprint.
	lookedUp      bool
	reason, token string
	// checked reports whether Envoy sent a Check to Gatepost. set are the request headers that
	// Gatepost set; adds are the response headers that it adds. If endsWithToken is true, Envoy
	// ends the stream when the token expires.
	checked       bool
	set           []Field
	adds          []*corev3.HeaderValueOption
	endsWithToken bool
	// upgrade is the protocol that the request wants to switch to, or "".
	upgrade string

	// preflight reports whether the CORS filter responded. origin is the origin that it allows to
	// read the response.
	preflight bool
	origin    string

	forward *Forward
	reply   *reply
	// removed are the headers that a filter removes from the upstream's response.
	removed []string
}

// reply is a response on its way back to the client.
type reply struct {
	// local reports whether Envoy or Gatepost produced the reply. Replies of upstreams are not
	// modelled.
	local bool
	// flag is Envoy's response flag, which identifies the cause of a local reply.
	flag   string
	status int
	header fields
	body   string
}

// localReply ends the request with a response from Envoy.
func (x *exchange) localReply(status int, body string) *reply {
	x.reply = &reply{local: true, status: status, body: body}
	return x.reply
}

// settings unpacks the per-filter configuration of from into m. It returns false if there is none.
func settings(from settingsHolder, filter string, m proto.Message) (bool, error) {
	packed := from.GetTypedPerFilterConfig()[filter]
	if packed == nil {
		return false, nil
	}
	return true, packed.UnmarshalTo(m)
}

// disables reports whether a filter is disabled at a level.
func disables(level settingsHolder, filter string) bool {
	return level.GetTypedPerFilterConfig()[filter].MessageIs((*routev3.FilterConfig)(nil))
}

// fields are headers in order, with names in lower case.
type fields []Field

// get returns the value of a header and whether it is present. Repeated headers are joined with
// commas and empty values are dropped, as Envoy's matchers and Gatepost do.
func (f fields) get(name string) (value string, there bool) {
	var values []string
	for _, one := range f {
		if one.Name != name {
			continue
		}
		there = true
		if one.Value != "" {
			values = append(values, one.Value)
		}
	}
	return strings.Join(values, ","), there
}

// joined are the request headers that Envoy stores as one line even if they are repeated. Headers
// that do not matter here are left out.
var joined = []string{
	"accept", "accept-encoding", "access-control-request-headers", "access-control-request-method", "authorization",
	"cache-control", "content-length", "content-type", "host", "origin", "pragma", "referer", "user-agent", "via",
	"x-client-trace-id", "x-envoy-original-path", convention.HeaderForwardedFor, "x-forwarded-host", "x-forwarded-port",
	"x-forwarded-proto", convention.HeaderRequestID,
}

// lines returns the number of header lines that Envoy counts.
func (f fields) lines() int {
	n := 0
	for i, one := range f {
		if !slices.Contains(joined, one.Name) || !f[:i].has(one.Name) {
			n++
		}
	}
	return n
}

func (f fields) value(name string) string {
	value, _ := f.get(name)
	return value
}

func (f fields) has(name string) bool {
	_, ok := f.get(name)
	return ok
}

// set replaces all headers with this name by a single one.
func (f *fields) set(name, value string) {
	for i, one := range *f {
		if one.Name == name {
			rest := append(fields{}, (*f)[i+1:]...)
			rest.remove(name)
			*f = append(append((*f)[:i:i], Field{name, value}), rest...)
			return
		}
	}
	f.add(name, value)
}

func (f *fields) add(name, value string) { *f = append(*f, Field{name, value}) }

func (f *fields) remove(name string) {
	kept := (*f)[:0:0]
	for _, one := range *f {
		if one.Name != name {
			kept = append(kept, one)
		}
	}
	*f = kept
}
