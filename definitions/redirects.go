package definitions

import (
	"slices"
	"strings"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// parseRedirect parses the redirect of a service s, whose message is m.
func parseRedirect(f *findings, m *gatewayv1.Service, s *Service, field string) *Redirect {
	r := &Redirect{Status: defaultRedirect}
	if m.GetRedirect().Status != nil {
		r.Status = int(m.GetRedirect().GetStatus())
	}
	text := m.GetRedirect().GetTo()
	to, fault := parseAddress(text, SchemeHTTP, SchemeHTTPS)
	r.To = to
	switch at := field + ".redirect.to"; {
	case fault != nil:
		f.add(at, fault)
	case strings.ContainsRune(text, '?'):
		f.add(at, aboutAddresses.faultf("remove it; a request keeps its own", "%s has a query", shown(text)))
	default:
		if path := to.EscapedPath(); path != "" {
			f.add(at, pathFault(path))
		}
		if slices.Contains(s.Hosts, strings.ToLower(to.Hostname())) && (to.Path == "" || within(to.Path, s.Path)) {
			f.add(at, aboutAddresses.faultf("write another address", "%s leads back to the service", shown(text)))
		}
	}
	for _, other := range []struct {
		name string
		set  bool
	}{
		{"upstreams", len(m.GetUpstreams()) > 0}, {"keep_prefix", m.GetKeepPrefix()}, {"forward_token", m.GetForwardToken()},
		{"timeout", m.GetTimeout() != nil}, {"websocket", m.GetWebsocket()}, {"grpc", m.GetGrpc()}, {"request_headers", m.GetRequestHeaders() != nil},
		{"health_check", m.GetHealthCheck() != nil}, {"outlier_detection", m.OutlierDetection != nil}, {"retries", m.GetRetries() != nil},
		{"limits", m.GetLimits() != nil}, {"canary", m.GetCanary() != nil}, {"affinity", m.GetAffinity() != nil},
		{"max_request_bytes", m.GetMaxRequestBytes() != ""}, {"compression", m.GetCompression()}, {"rate_limits", len(m.GetRateLimits()) > 0},
	} {
		if other.set {
			f.add(field+"."+other.name, aboutAddresses.faultf("remove one of them",
				"has no effect on a service with a redirect (%s)", f.where(field+".redirect")))
		}
	}
	return r
}

// KeepsPath reports whether clients are sent to the same path.
func (r *Redirect) KeepsPath() bool { return r.To.EscapedPath() == "" }
