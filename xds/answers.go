package xds

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// StatusNoCertificate is the status of the direct response to a request without a client certificate that its service
// needs. Clients get 403. Its own status gives it its own text.
const StatusNoCertificate = 597

// withoutCertificate matches requests of connections without a client certificate. Envoy has verified each certificate
// in the handshake. (`validated` would be false for a session that is resumed.)
func withoutCertificate(at *routev3.RouteMatch) *routev3.RouteMatch {
	out := with(at)
	out.TlsContext = &routev3.RouteMatch_TlsContextMatchOptions{Presented: wrapperspb.Bool(false)}
	return out
}

// StatusMaintenance is the status of the direct response of a service in maintenance. Clients get 503. Its own status
// tells it from the 503 of an upstream that cannot be reached, whose body the listener writes (replies).
const StatusMaintenance = 599

// redirectReplies keep the redirects of services as they are, but let pages of other origins follow them.
func redirectReplies() (out []reply) {
	for _, status := range []uint32{http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		out = append(out, reply{status: status, own: true})
	}
	return out
}

// maintenance answers all requests for a service, with and without a token. If origins are listed, the request needs
// one of them, as for every other response.
func (b *builder) maintenance(s endpointGroup, open *anypb.Any) (out []*routev3.Route) {
	headers := []*corev3.HeaderValueOption{setHeader("content-type", "application/json"), setHeader("cache-control", "no-store")}
	if wait := s.maintenance.RetryAfter; wait > 0 {
		headers = append(headers,
			setHeader("retry-after", strconv.FormatInt(int64(wait/time.Second), 10)),
			setHeader("access-control-expose-headers", strings.Join(b.exposed("retry-after"), ",")))
	}
	for _, at := range s.at {
		route := answer(s.name+" maintenance", at, StatusMaintenance, open, headers...)
		route.GetDirectResponse().Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: jsonString(s.maintenance.Message)}}
		out = append(out, b.logged(route, s, decidedMaintenance))
	}
	return out
}

// redirect is a match and where its requests are redirected.
type redirect struct {
	at *routev3.RouteMatch
	to *routev3.RedirectAction
}

// redirects returns the routes of a service with a redirect. As in forwards, there are two if nothing replaces the
// prefix.
func (s *service) redirects() []redirect {
	def := s.def.Redirect
	to := func(rewrite string) *routev3.RedirectAction {
		action := &routev3.RedirectAction{
			SchemeRewriteSpecifier: &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: def.To.Scheme},
			HostRedirect:           def.To.Host,
			ResponseCode:           redirectCodes[def.Status],
		}
		if rewrite != "" {
			action.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: rewrite}
		}
		return action
	}
	root := strings.TrimSuffix(def.To.EscapedPath(), "/")
	switch {
	case def.KeepsPath():
		return []redirect{{atAndBelow(s.path), to("")}}
	case s.path == "/":
		return []redirect{{prefix("/"), to(root + "/")}}
	case root != "":
		return []redirect{{atAndBelow(s.path), to(root)}}
	}
	return []redirect{{exactPath(s.path), to("/")}, {prefix(s.path + "/"), to("/")}}
}

// redirectCodes are Envoy's names of the statuses.
var redirectCodes = map[int]routev3.RedirectAction_RedirectResponseCode{
	http.StatusMovedPermanently:  routev3.RedirectAction_MOVED_PERMANENTLY,
	http.StatusFound:             routev3.RedirectAction_FOUND,
	http.StatusTemporaryRedirect: routev3.RedirectAction_TEMPORARY_REDIRECT,
	http.StatusPermanentRedirect: routev3.RedirectAction_PERMANENT_REDIRECT,
}
