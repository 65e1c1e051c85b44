package authz

import (
	"encoding/json"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// What a denied client reads. The first is the text of the gateway that this one replaces; one text for all
// that is wrong with a token, so that none can be told from another.
const (
	textNotAllowed = "You are not allowed to access this API!"
	textScope      = "Your token does not allow this."
	textCannotTell = "The gateway cannot decide about this request at the moment."
)

const challenge = `Bearer realm="gatepost"`

// field is a header of an answer.
type field struct{ name, value string }

// response returns the answer of a verdict.
func (v *verdict) response() *authv3.CheckResponse {
	switch v.reason {
	case public, tokenKnown:
		return allow(v.changes())
	case originRefused: // no challenge: no credentials would help
		return deny(codes.Unauthenticated, typev3.StatusCode_Unauthorized, textNotAllowed)
	case tokenMissing: // no error code where no credentials were shown (RFC 6750 §3.1)
		return deny(codes.Unauthenticated, typev3.StatusCode_Unauthorized, textNotAllowed,
			field{"www-authenticate", challenge})
	case tokenMalformed, tokenUnknown:
		return deny(codes.Unauthenticated, typev3.StatusCode_Unauthorized, textNotAllowed,
			field{"www-authenticate", challenge + `, error="invalid_token"`})
	case scopeMissing:
		return deny(codes.PermissionDenied, typev3.StatusCode_Forbidden, textScope,
			field{"www-authenticate", challenge + `, error="insufficient_scope"` + scopeParameter(v.rule.scopes)})
	default: // fail closed
		return deny(codes.Unavailable, typev3.StatusCode_ServiceUnavailable, textCannotTell,
			field{"retry-after", "1"})
	}
}

// allow is the only maker of an answer that lets a request pass.
func allow(c changes) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{HeadersToRemove: c.remove[:c.drops]}
	for _, h := range c.set[:c.sets] {
		ok.Headers = append(ok.Headers, option(h))
	}
	if c.answer.name != "" {
		o := option(c.answer)
		o.AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
		ok.ResponseHeadersToAdd = []*corev3.HeaderValueOption{o}
	}
	return &authv3.CheckResponse{
		Status:       &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
	}
}

// deny is the only maker of an answer that stops a request: text as a JSON string, with the headers. What a
// denial says may be wrong a moment later, so nobody may keep it (a cache between us and the client could be set
// to keep errors).
func deny(code codes.Code, status typev3.StatusCode, text string, headers ...field) *authv3.CheckResponse {
	body, _ := json.Marshal(text) // a string always has a JSON form
	options := []*corev3.HeaderValueOption{
		option(field{"content-type", "application/json"}),
		option(field{"cache-control", "no-store"}),
	}
	for _, h := range headers {
		options = append(options, option(h))
	}
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(code)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: status},
			Headers: options,
			Body:    string(body),
		}},
	}
}

func option(h field) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: h.name, Value: h.value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// scopeParameter returns the scope parameter of a challenge (RFC 6750 §3), or nothing where the scopes have a
// character that it may not have (RFC 6749 §3.3).
func scopeParameter(scopes string) string {
	foreign := func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }
	if strings.ContainsFunc(scopes, foreign) {
		return ""
	}
	return `, scope="` + scopes + `"`
}
