package explain

import (
	"context"
	"maps"
	"strings"
	"time"

	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/tokens"
)

// extAuthz is Envoy's ext_authz filter with Gatepost behind it. Package authz makes the decision.
type extAuthz struct {
	name   string
	config *extauthzv3.ExtAuthz
	// maxHeaders and maxBytes limit the number of request headers and their size; 0 means no limit.
	maxHeaders, maxBytes int
}

// clientAddress is the address that every client has here.
const clientAddress = "127.0.0.1"

// exceedsLimits reports whether the request exceeds the header limits after Envoy and Gatepost
// added headers. Envoy checks the limits again in ext_authz, before it removes headers such as
// Authorization.
func (f extAuthz) exceedsLimits(x *exchange) bool {
	all := append(fields{
		{":method", x.method}, {":path", x.path}, {":scheme", "http"}, {convention.HeaderForwardedFor, clientAddress},
		{"x-forwarded-proto", "http"}, {convention.HeaderRequestID, "5f0c7a2e-0000-4000-8000-000000000001"},
	}, x.header...)
	all.set(convention.HeaderClientAddress, clientAddress)
	size := len(":authority") - len("host")
	for _, h := range all {
		size += len(h.Name) + len(h.Value)
	}
	return f.maxHeaders > 0 && all.lines() > f.maxHeaders || f.maxBytes > 0 && size > f.maxBytes
}

// settingsHolder is a virtual host or a route: it can have per-filter configuration.
type settingsHolder interface {
	GetTypedPerFilterConfig() map[string]*anypb.Any
}

// extensions merges the context extensions of the virtual host and the route. asked is false if the
// filter is disabled.
func (f extAuthz) extensions(x *exchange) (all map[string]string, asked bool) {
	all, asked = map[string]string{}, true
	for _, level := range []settingsHolder{x.vhost, x.route} {
		if disables(level, f.name) {
			asked = false
			continue
		}
		perRoute := new(extauthzv3.ExtAuthzPerRoute)
		there, err := settings(level, f.name, perRoute)
		switch {
		case err != nil:
			x.err = err
		case there && perRoute.GetDisabled():
			asked = false
		case there:
			asked = true
			maps.Copy(all, perRoute.GetCheckSettings().GetContextExtensions())
		}
	}
	return all, asked
}

func (f extAuthz) request(x *exchange) {
	extensions, asked := f.extensions(x)
	if !asked || x.err != nil {
		return
	}
	x.checked = true
	ctx, cancel := context.WithTimeout(x.ctx, authz.LookupTimeout)
	defer cancel()
	decision := authz.Decide(ctx, authz.NewRequest(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: extensions,
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Method: x.method, Path: x.path, Host: x.host, Scheme: "http", Protocol: "HTTP/1.1",
			Headers: f.checkedHeaders(x.header),
		}},
	}}), x.sessions, time.Now)
	x.lookedUp = decision.LookedUp
	if decision.Token != (tokens.Hash{}) {
		x.token = decision.Token.String()
	}
	if decision.Outcome() != authz.Allowed {
		x.reason = decision.Reason.String()
	}
	f.apply(x, decision.Response())
}

// response adds the response headers that Gatepost requested.
func (extAuthz) response(x *exchange) {
	for _, h := range x.adds {
		put(&x.reply.header, h, h.GetHeader().GetValue())
	}
}

// checkedHeaders returns the request headers that Envoy includes in a Check.
func (f extAuthz) checkedHeaders(header fields) map[string]string {
	all := map[string]string{}
	for _, h := range header {
		if matchAny(f.config.GetAllowedHeaders().GetPatterns(), h.Name) {
			all[h.Name] = printable(header.value(h.Name))
		}
	}
	return all
}

// printable replaces each byte that is not valid UTF-8 by !, as Envoy does: gRPC strings must be
// UTF-8.
func printable(value string) string {
	var b strings.Builder
	for i, c := range value {
		if c == '\uFFFD' && !strings.HasPrefix(value[i:], "\uFFFD") {
			b.WriteByte('!')
			continue
		}
		b.WriteRune(c)
	}
	return b.String()
}

// apply changes the request as the Check response requires.
func (f extAuthz) apply(x *exchange, response *authv3.CheckResponse) {
	if denied := response.GetDeniedResponse(); denied != nil {
		r := x.localReply(int(denied.GetStatus().GetCode()), denied.GetBody())
		r.flag = flagUnauthorized
		for _, h := range denied.GetHeaders() {
			put(&r.header, h, h.GetHeader().GetValue())
		}
		return
	}
	x.adds = response.GetOkResponse().GetResponseHeadersToAdd()
	for _, h := range response.GetOkResponse().GetHeaders() {
		name := strings.ToLower(h.GetHeader().GetKey())
		put(&x.header, h, h.GetHeader().GetValue())
		if name == authz.HeaderStreamDuration {
			x.endsWithToken = true // the router applies this header and removes it
			continue
		}
		x.set = append(x.set, Field{name, h.GetHeader().GetValue()})
	}
	if f.exceedsLimits(x) {
		x.localReply(500, "").flag = flagUnauthorized
		x.set, x.adds, x.reason = nil, nil, convention.ReasonTooManyHeaders
	}
	for _, name := range response.GetOkResponse().GetHeadersToRemove() {
		x.header.remove(strings.ToLower(name))
	}
}

// placeholderUser is shown instead of the user's id if the token was not looked up.
const placeholderUser = "(the id of the token's user)"

// liveSession is a store in which every token is live and has these scopes.
type liveSession struct{ scopes []string }

func (l liveSession) Principal(_ context.Context, h tokens.Hash) (tokens.Principal, error) {
	s := &tokens.Session{Hash: h, User: placeholderUser, Scopes: l.scopes, Expires: time.Now().Add(time.Hour)}
	return s.Principal(), nil
}

// noSession is a store in which every token is unknown.
type noSession struct{}

func (noSession) Principal(context.Context, tokens.Hash) (tokens.Principal, error) {
	return tokens.Principal{}, tokens.ErrUnknown
}
