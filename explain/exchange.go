package explain

import (
	"context"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"gatepost/authz"
)

// exchange is one request on its way through Envoy, and what has become of it.
type exchange struct {
	ctx      context.Context
	sessions authz.Sessions
	err      error // what could not be told

	// The request as it came: its target, the path in that, and its headers as far as they were read.
	target, sent string
	client       fields
	// The request as Envoy has it now. path has its query still; header names are in lower case.
	method, path, host string
	header             fields
	// known says whether Envoy had read the headers when it answered.
	known bool
	// refused is why the connection manager answered by itself.
	refused string

	vhost *routev3.VirtualHost
	route *routev3.Route

	// asked says that a store was asked for the session of a token; reason is authz's word for why a request
	// did not pass; token is the token's fingerprint.
	asked         bool
	reason, token string
	// checked says that Gatepost was asked, set what headers it gave the request, adds those of the answer, and
	// endsWithToken that the exchange lives no longer than the token.
	checked       bool
	set           []Field
	adds          []*corev3.HeaderValueOption
	endsWithToken bool
	// upgrade is the protocol that the request asks to change to; empty: none.
	upgrade string

	// preflight says that the CORS filter answered, origin that it lets that origin read the answer.
	preflight bool
	origin    string

	forward *Forward
	reply   *reply
}

// reply is an answer, on its way back.
type reply struct {
	// local says that Envoy or Gatepost made it: one that an upstream makes is not known here.
	local bool
	// flag is Envoy's response flag, by which local replies are told apart.
	flag   string
	status int
	header fields
	body   string
}

// answer ends the way of the request with an answer of Envoy's own.
func (x *exchange) answer(status int, body string) *reply {
	x.reply = &reply{local: true, status: status, body: body}
	return x.reply
}

// settings unpacks what the route says about a filter into m, and whether it says anything.
func settings(from settingsHolder, filter string, m proto.Message) (bool, error) {
	packed := from.GetTypedPerFilterConfig()[filter]
	if packed == nil {
		return false, nil
	}
	return true, packed.UnmarshalTo(m)
}

// fields are headers, with names in lower case, in their order.
type fields []Field

// get returns the value of a header, and whether there is one. Several of one name are one to Envoy's matchers
// and to Gatepost, joined by commas; empty ones add nothing.
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

// joined are the request headers of which Envoy keeps one line however many came, beside those of no interest here.
var joined = []string{
	"accept", "accept-encoding", "access-control-request-headers", "access-control-request-method", "authorization",
	"cache-control", "content-length", "content-type", "host", "origin", "pragma", "referer", "user-agent", "via",
	"x-client-trace-id", "x-envoy-original-path", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto",
	"x-request-id",
}

// lines is how many lines the headers have to Envoy.
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

// set puts one header in the place of all of its name.
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
