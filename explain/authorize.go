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
	"gatepost/tokens"
)

// extAuthz is Envoy's ext_authz filter with Gatepost behind it: the decision is package authz's own.
type extAuthz struct {
	name   string
	config *extauthzv3.ExtAuthz
	// maxHeaders and maxBytes are how many headers a request may have, and how many bytes of them; 0: any number.
	maxHeaders, maxBytes int
}

// outgrown says whether the request, with what Envoy has added to it, has more headers than it may have. Envoy looks
// once more after what Gatepost changed. The address is that of a client on this machine.
func (f extAuthz) outgrown(x *exchange) bool {
	all := append(fields{
		{":method", x.method}, {":path", x.path}, {":scheme", "http"}, {"x-forwarded-for", "127.0.0.1"}, {"x-forwarded-proto", "http"},
		{"x-request-id", "5f0c7a2e-0000-4000-8000-000000000001"}, {"x-envoy-external-address", "127.0.0.1"},
	}, x.header...)
	size := len(":authority") - len("host")
	for _, h := range all {
		size += len(h.Name) + len(h.Value)
	}
	return f.maxHeaders > 0 && all.lines() > f.maxHeaders || f.maxBytes > 0 && size > f.maxBytes
}

// settingsHolder is what may say something about a filter: a virtual host, a route.
type settingsHolder interface {
	GetTypedPerFilterConfig() map[string]*anypb.Any
}

// extensions are what the virtual host and the route tell Gatepost, merged, and whether it is asked at all.
func (f extAuthz) extensions(x *exchange) (all map[string]string, asked bool) {
	all, asked = map[string]string{}, true
	for _, level := range []settingsHolder{x.vhost, x.route} {
		says := new(extauthzv3.ExtAuthzPerRoute)
		there, err := settings(level, f.name, says)
		switch {
		case err != nil:
			x.err = err
		case there && says.GetDisabled():
			asked = false
		case there:
			asked = true
			maps.Copy(all, says.GetCheckSettings().GetContextExtensions())
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
	x.asked = decision.LookedUp
	if decision.Token != (tokens.Hash{}) {
		x.token = decision.Token.String()
	}
	if decision.Outcome() != authz.Allowed {
		x.reason = decision.Reason.String()
	}
	f.apply(x, decision.Response())
}

// response adds to the answer what Gatepost has said to.
func (extAuthz) response(x *exchange) {
	for _, h := range x.adds {
		put(&x.reply.header, h, h.GetHeader().GetValue())
	}
}

// checkedHeaders are the request headers that Envoy sends with a Check.
func (f extAuthz) checkedHeaders(header fields) map[string]string {
	all := map[string]string{}
	for _, h := range header {
		if matchAny(f.config.GetAllowedHeaders().GetPatterns(), h.Name) {
			all[h.Name] = printable(header.value(h.Name))
		}
	}
	return all
}

// printable puts a ! for each byte that is no part of UTF-8, as Envoy does: a gRPC message cannot have it.
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

// apply changes the request as the response to its Check requires.
func (f extAuthz) apply(x *exchange, response *authv3.CheckResponse) {
	if denied := response.GetDeniedResponse(); denied != nil {
		r := x.answer(int(denied.GetStatus().GetCode()), denied.GetBody())
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
			x.endsWithToken = true // the router obeys it and takes it out
			continue
		}
		x.set = append(x.set, Field{name, h.GetHeader().GetValue()})
	}
	for _, name := range response.GetOkResponse().GetHeadersToRemove() {
		x.header.remove(strings.ToLower(name))
	}
	if f.outgrown(x) {
		x.answer(500, "").flag = flagUnauthorized
		x.set, x.adds, x.reason = nil, nil, "too_many_headers"
	}
}

// someone stands for the id of the token's user, where nobody was asked for it.
const someone = "(the id of the token's user)"

// liveSession knows every token, as one with these scopes.
type liveSession struct{ scopes []string }

func (l liveSession) Principal(_ context.Context, h tokens.Hash) (tokens.Principal, error) {
	s := &tokens.Session{Hash: h, User: someone, Scopes: l.scopes, Expires: time.Now().Add(time.Hour)}
	return s.Principal(), nil
}

// noSession knows no token.
type noSession struct{}

func (noSession) Principal(context.Context, tokens.Hash) (tokens.Principal, error) {
	return tokens.Principal{}, tokens.ErrUnknown
}
