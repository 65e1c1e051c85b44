package authz

import (
	"encoding/json"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"gatepost/convention"
)

// The bodies of denials that only this package sends.
const (
	textScope      = "Your token does not allow this."
	textCannotTell = "The gateway cannot decide about this request at the moment."
)

// field is a header of a response.
type field struct{ name, value string }

// Response returns the response to the Check. Anything but an allow is a denial with a body for the client.
func (d *Decision) Response() *authv3.CheckResponse {
	r := d.response()
	if d.rule.log {
		r.DynamicMetadata = d.metadata()
	}
	return r
}

func (d *Decision) response() *authv3.CheckResponse {
	switch d.Reason {
	case ReasonPublic, ReasonTokenKnown:
		return allow(d.headerChanges())
	case ReasonOriginRefused: // no challenge: no credentials would help
		return deny(codes.Unauthenticated, typev3.StatusCode_Unauthorized, convention.TextUnauthorized)
	case ReasonTokenMissing: // no error code without credentials (RFC 6750 §3.1)
		return deny(codes.Unauthenticated, typev3.StatusCode_Unauthorized, convention.TextUnauthorized,
			field{"www-authenticate", convention.Challenge})
	case ReasonTokenMalformed, ReasonTokenUnknown:
		return deny(codes.Unauthenticated, typev3.StatusCode_Unauthorized, convention.TextUnauthorized,
			field{"www-authenticate", convention.ChallengeInvalidToken})
	case ReasonScopeMissing:
		return deny(codes.PermissionDenied, typev3.StatusCode_Forbidden, textScope,
			field{"www-authenticate", convention.Challenge + `, error="insufficient_scope"` + scopeParameter(d.rule.scopes)})
	default: // fail closed
		return deny(codes.Unavailable, typev3.StatusCode_ServiceUnavailable, textCannotTell,
			field{"retry-after", "1"})
	}
}

// allow makes every response that lets a request pass.
func allow(c headerChanges) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{HeadersToRemove: c.remove}
	for _, h := range c.set {
		ok.Headers = append(ok.Headers, option(h))
	}
	if c.response.name != "" {
		o := option(c.response)
		o.AppendAction = corev3.HeaderValueOption_ADD_IF_ABSENT
		ok.ResponseHeadersToAdd = []*corev3.HeaderValueOption{o}
	}
	return &authv3.CheckResponse{
		Status:       &rpcstatus.Status{Code: int32(codes.OK)},
		HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok},
	}
}

// deny makes every response that stops a request: text as a JSON string, with the headers. A denial may be wrong a
// moment later, so no cache between the gateway and the client may keep it.
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

// scopeParameter returns the scope parameter of a challenge (RFC 6750 §3), or nothing if a scope has a character that
// the parameter may not have (RFC 6749 §3.3).
func scopeParameter(scopes string) string {
	foreign := func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }
	if strings.ContainsFunc(scopes, foreign) {
		return ""
	}
	return `, scope="` + scopes + `"`
}
