package definitions

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// parseGateway turns a message into its parsed form and adds the problems of its values to f. If two values collide,
// the later one is the problem, and it names the line of the earlier one. If f has problems, the result must not be
// used.
func parseGateway(f *findings, m *gatewayv1.Gateway) *Gateway {
	g := &Gateway{
		Origins:  m.GetOrigins(),
		Cors:     corsOf(m.GetCors()),
		Tokens:   tokensOf(m.GetTokens()),
		Identity: Identity{UserHeader: strings.ToLower(cmp.Or(m.GetIdentity().GetUserHeader(), defaultIdentityHeader))},

		AccessLog: accessLogOf(m.GetAccessLog()),
		Tracing:   Tracing{TrustIncoming: m.GetTracing().GetTrustIncoming()},
	}
	var fault *fault
	g.Listen, fault = parseListen(cmp.Or(m.GetListen(), defaultListen))
	f.add("listen", fault)
	checkOrigins(f, g.Origins)
	checkCors(f, &g.Cors, len(g.Origins) > 0)
	checkTokens(f, &g.Tokens, m.GetTokens().GetAuthenticator())
	g.Tokens.Hosts = parseHosts(f, m.GetTokens().GetHosts(), "tokens.hosts")
	if g.Tokens.Cookie != "" && len(g.Origins) == 0 {
		f.add("tokens.cookie", aboutOrigins.faultf("list the origins that may, under origins",
			"would let every page on the web act as its visitor: browsers send a cookie by themselves"))
	}
	if a := m.GetAccessLog(); a != nil && a.GetFormat() == "" {
		f.add("access_log.format", aboutFields.faultf("write ecs, text or off", "is missing"))
	}
	f.add("identity.user_header", identityHeaderFault(m.GetIdentity().GetUserHeader()))
	g.ClientAddresses = parseClientAddresses(f, m.GetClientAddresses())
	g.RateLimits = parseRateLimits(f, m.GetRateLimits(), nil, g, "rate_limits")
	g.RateLimitHeaders = m.GetRateLimitHeaders()
	g.ResponseHeaders = parseHeaders(f, m.GetResponseHeaders(), "response_headers", responseHeader(g))
	if m.GetTls() != nil {
		g.TLS = parseTLS(f, m.GetTls(), g.Listen)
	}
	g.Services = make([]*Service, len(m.GetServices()))
	for i, s := range m.GetServices() {
		g.Services[i] = parseService(f, s, g, "services["+strconv.Itoa(i)+"]")
	}
	checkAmongServices(f, g.Services)
	return g
}

func parseClientAddresses(f *findings, m *gatewayv1.ClientAddresses) ClientAddresses {
	c := ClientAddresses{ProxyProtocol: m.GetProxyProtocol()}
	first := map[netip.Prefix]string{} // :: range → field
	for i, text := range m.GetTrustedProxies() {
		field := fmt.Sprintf("client_addresses.trusted_proxies[%d]", i)
		proxies, fault := parseRange(text)
		if earlier, twice := first[proxies]; twice && fault == nil {
			fault = twinFault(f, text, earlier)
		}
		f.add(field, fault)
		first[proxies] = field
		c.TrustedProxies = append(c.TrustedProxies, proxies)
	}
	if c.ProxyProtocol && len(c.TrustedProxies) == 0 {
		f.add("client_addresses.proxy_protocol", aboutAddresses.faultf("list the addresses of your proxies under trusted_proxies",
			"is true, and would let every client choose its address"))
	}
	return c
}

func checkOrigins(f *findings, origins []string) {
	first := map[string]int{}
	for i, origin := range origins {
		field := fmt.Sprintf("origins[%d]", i)
		f.add(field, originFault(origin))
		if earlier, twice := first[origin]; twice {
			f.add(field, twinFault(f, origin, fmt.Sprintf("origins[%d]", earlier)))
			continue
		}
		first[origin] = i
	}
}

func twinFault(f *findings, value, earlier string) *fault {
	return aboutFields.faultf("remove one of them", "%s is in the list twice, first on %s", shown(value), f.where(earlier))
}

func checkCors(f *findings, c *Cors, originsSet bool) {
	if c.AllowCredentials && !originsSet {
		f.add("cors.allow_credentials", aboutOrigins.faultf("list the origins that may, under origins",
			"is true, which would let every page on the web act with its visitor's cookies"))
	}
	checkHeaderTwins(f, "cors.allow_headers", c.AllowHeaders)
	checkHeaderTwins(f, "cors.expose_headers", c.ExposeHeaders)
	f.add("cors.max_age", wholeSeconds(c.MaxAge))
}

// checkHeaderTwins finds header names that differ only in case. The constraints find equal names.
func checkHeaderTwins(f *findings, list string, names []string) {
	first := map[string]int{}
	for i, name := range names {
		lower := strings.ToLower(name)
		if earlier, twice := first[lower]; twice {
			f.add(fmt.Sprintf("%s[%d]", list, i), twinFault(f, name, fmt.Sprintf("%s[%d]", list, earlier)))
			continue
		}
		first[lower] = i
	}
}

// checkTokens checks t, and parses the URL of the authenticator, whose message is m.
func checkTokens(f *findings, t *Tokens, m *gatewayv1.Authenticator) {
	f.add("tokens.path", tokensPathFault(t.Path))
	f.add("tokens.lifetime", wholeSeconds(t.Lifetime))
	f.add("tokens.session_lifetime", wholeSeconds(t.SessionLifetime))
	if t.SessionLifetime < t.Lifetime && !f.isSpoilt("tokens.lifetime") {
		f.add("tokens.session_lifetime", aboutFields.faultf("write at least "+seconds(t.Lifetime)+", or a shorter lifetime",
			"is shorter than the lifetime of a token, %s (%s)", seconds(t.Lifetime), f.where("tokens.lifetime")))
	}
	a := t.Authenticator
	if a == nil {
		return
	}
	var fault *fault
	a.URL, fault = parseAddress(m.GetUrl(), SchemeHTTP, SchemeHTTPS)
	f.add("tokens.authenticator.url", fault)
	f.add("tokens.authenticator.user_header", answerHeaderFault(m.GetUserHeader()))
	f.add("tokens.authenticator.scopes_header", answerHeaderFault(m.GetScopesHeader()))
	if a.UserHeader == a.ScopesHeader {
		field := "tokens.authenticator.scopes_header"
		if m.GetScopesHeader() == "" {
			field = "tokens.authenticator.user_header"
		}
		f.add(field, aboutFields.faultf("use two headers", "the user's id and the scopes would come in one header, %s",
			shown(cmp.Or(m.GetUserHeader(), defaultUserIDHeader))))
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.0fs", d.Seconds()) }

// wholeSeconds refuses a fraction of a second, because HTTP and the stores count in seconds (expires_in, max-age,
// EXPIRE).
func wholeSeconds(d time.Duration) *fault {
	if d%time.Second == 0 {
		return nil
	}
	return aboutFields.faultf("write whole seconds, such as 60s", "has a part of a second, which cannot be sent to a client")
}

// parseService parses a service of g and checks it by itself.
func parseService(f *findings, m *gatewayv1.Service, g *Gateway, field string) *Service {
	s := serviceOf(m)
	s.Hosts = parseHosts(f, m.GetHosts(), field+".hosts")
	checkPlace(f, s, g, field)
	s.RequestHeaders = parseHeaders(f, m.GetRequestHeaders(), field+".request_headers", requestHeader(g))
	s.ResponseHeaders = parseHeaders(f, m.GetResponseHeaders(), field+".response_headers", responseHeader(g))
	s.MaxRequestBytes = parseMaxRequestBytes(f, m, s, field)
	s.RateLimits = parseRateLimits(f, m.GetRateLimits(), s, g, field+".rate_limits")
	if s.Maintenance != nil {
		f.add(field+".maintenance.retry_after", wholeSeconds(s.Maintenance.RetryAfter))
	}
	if m.GetRedirect() != nil {
		s.Redirect = parseRedirect(f, m, s, field)
	}
	s.Upstreams = parseUpstreams(f, m.GetUpstreams(), field+".upstreams", g.addresses(), nil, "")
	if len(m.GetUpstreams()) == 0 && m.GetRedirect() == nil {
		f.add(field+".upstreams", aboutFields.faultf(words["gatepost.v1.Service.upstreams"].remedy, "is missing"))
	}
	parseResilience(f, s, m, g, field)
	if u := m.GetUpstreamTls(); u != nil {
		s.UpstreamTLS = parseUpstreamTLS(f, u, s, field)
	}
	checkAccess(f, s, g, field)
	checkProtocols(f, s, m, field)
	return s
}

// checkPlace checks that the name and the path of a service are its to have.
func checkPlace(f *findings, s *Service, g *Gateway, field string) {
	if name := strings.ToLower(s.Name); name == "gatepost" || strings.HasPrefix(name, "gatepost-") {
		f.add(field+".name", aboutPaths.faultf("choose another", "%s is a name that the gateway keeps for itself", shown(s.Name)))
	}
	switch fault := pathFault(s.Path); {
	case fault != nil:
		f.add(field+".path", fault)
	case within(s.Path, g.Tokens.Path):
		f.add(field+".path", aboutPaths.faultf("choose another, or another tokens.path",
			"%s is a path that the gateway keeps for its tokens (%s, %s)", shown(s.Path), g.Tokens.Path, f.where("tokens.path")))
	case within(s.Path, OwnPath):
		f.add(field+".path", aboutPaths.faultf("choose another", "%s is a path that the gateway keeps for itself", shown(s.Path)))
	}
}

// checkAccess checks what a service requires of its clients.
func checkAccess(f *findings, s *Service, g *Gateway, field string) {
	if !s.Authenticate && len(s.Scopes) > 0 {
		f.add(field+".scopes", aboutOrigins.faultf("remove the one or the other",
			"are asked of a service that is public (%s)", f.where(field+".authenticate")))
	}
	if s.ClientCertificate && (g.TLS == nil || g.TLS.ClientCertificates == nil) {
		f.add(field+".client_certificate", aboutTLS.faultf("name their CAs under tls.client_certificates",
			"is true, and clients are not asked for a certificate"))
	}
	if s.WebSocket && !slices.Contains(s.Methods, "GET") {
		f.add(field+".websocket", aboutOrigins.faultf("allow GET too",
			"begins with a GET, which is none of the methods (%s)", f.where(field+".allowed_methods")))
	}
}

// checkProtocols finds services whose upstreams cannot take what clients send.
func checkProtocols(f *findings, s *Service, m *gatewayv1.Service, field string) {
	upstreams := f.where(field + ".upstreams")
	speaks := func(scheme string) bool { return len(s.Upstreams) > 0 && s.Upstreams[0].Scheme == scheme }
	if s.WebSocket && speaks(SchemeH2C) {
		f.add(field+".websocket", aboutAddresses.faultf("write http or https there, or make two services",
			"needs HTTP/1.1, and the upstreams on %s are h2c", upstreams))
	}
	if !s.GRPC {
		return
	}
	switch {
	case speaks(SchemeHTTP):
		f.add(field+".grpc", aboutAddresses.faultf("write h2c or https there", "needs HTTP/2, and the upstreams on %s are http", upstreams))
	case s.WebSocket:
		f.add(field+".grpc", aboutAddresses.faultf("make two services", "is true beside websocket (%s)", f.where(field+".websocket")))
	case !slices.Contains(s.Methods, "POST"):
		f.add(field+".grpc", aboutAddresses.faultf("allow POST too",
			"calls by POST, which is none of the methods (%s)", f.where(field+".allowed_methods")))
	}
	if m.GetTimeout() != nil {
		f.add(field+".timeout", aboutAddresses.faultf("remove it", "has no effect on a gRPC call, which ends by its grpc-timeout"))
	}
}

// parseUpstreams parses a list of upstreams and checks that they are alternatives to each other, and to those in
// another list of the service.
func parseUpstreams(f *findings, texts []string, list string, listen []netip.AddrPort, others []Upstream, othersList string) []Upstream {
	out := slices.Grow(slices.Clone(others), len(texts))
	first := make([]string, len(others)) // :: index in out → field
	for i := range first {
		first[i] = othersList
	}
	for i, text := range texts {
		field := list + "[" + strconv.Itoa(i) + "]"
		u, fault := parseUpstream(text)
		if fault != nil {
			f.add(field, fault)
			continue
		}
		f.add(field, mismatch(f, u, text, out, first))
		at := slices.IndexFunc(listen, func(own netip.AddrPort) bool { return ownAddressFault(u, text, own) != nil })
		if at >= 0 {
			f.add(field, ownAddressFault(u, text, listen[at]))
		}
		out, first = append(out, u), append(first, field)
	}
	out = out[len(others):]
	slices.SortFunc(out, func(a, b Upstream) int {
		return strings.Compare(a.Host+":"+strconv.Itoa(int(a.Port)), b.Host+":"+strconv.Itoa(int(b.Port)))
	})
	return out
}

// mismatch is the problem of u beside the upstreams before it, whose fields are given.
func mismatch(f *findings, u Upstream, text string, before []Upstream, fields []string) *fault {
	if len(before) == 0 {
		return nil
	}
	model := before[0]
	switch {
	case u.Scheme != model.Scheme:
		return aboutAddresses.faultf("write "+model.Scheme+" for all, or make two services",
			"is %s, and the upstream on %s is %s", u.Scheme, f.where(fields[0]), model.Scheme)
	case u.Base != model.Base:
		return aboutAddresses.faultf("upstreams of a service differ in host and port alone; make two services",
			"has the path %s, and the upstream on %s has %s", shown(u.Base), f.where(fields[0]), shown(model.Base))
	}
	if i := slices.Index(before, u); i >= 0 {
		return twinFault(f, text, fields[i])
	}
	return nil
}

// checkAmongServices finds services with the same name, or with the same path under the same host.
func checkAmongServices(f *findings, services []*Service) {
	names, places := make(map[string]int, len(services)), make(map[Place]int, len(services)) // :: → index of the first service that has it
	for i, s := range services {
		if earlier, taken := names[s.Name]; taken {
			f.add(fmt.Sprintf("services[%d].name", i), aboutFields.faultf("give each service a name of its own",
				"%s is also the name of the service on %s", shown(s.Name), f.where(fmt.Sprintf("services[%d].name", earlier))))
		} else {
			names[s.Name] = i
		}
		for place := range s.places() {
			if earlier, taken := places[place]; taken {
				f.add(fmt.Sprintf("services[%d].path", i), samePlaceFault(f, s, place, services[earlier], earlier))
				break
			}
			places[place] = i
		}
	}
}

// samePlaceFault is the problem of a service s whose path another one has, under the same host.
func samePlaceFault(f *findings, s *Service, place Place, other *Service, index int) *fault {
	remedy, under := "give each service a path of its own; letters count alike in any case", ""
	if place.Host != "" {
		remedy, under = "give each service under this host a path of its own; letters count alike in any case", " under "+place.Host
	}
	return aboutFields.faultf(remedy, "%s is also the path of the service %q on %s%s",
		shown(s.Path), other.Name, f.where(fmt.Sprintf("services[%d].path", index)), under)
}
