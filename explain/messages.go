package explain

import (
	"fmt"
	"net/http"
	"strings"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/xds"
)

// steps lists the decisions in order.
func (e *Explainer) steps(x *exchange, a *Explanation) []Step {
	var steps []Step
	add := func(part, format string, args ...any) {
		steps = append(steps, Step{part, fmt.Sprintf(format, args...)})
	}
	if x.handshake != "" {
		add("handshake", "%s", x.handshake)
	}
	if x.closed != "" {
		add("handshake", "refused: %s", x.closed)
		return steps
	}
	if x.refused != "" {
		add("path", "rejected before routing: %s", x.refused)
		return steps
	}
	if sent, _, _ := strings.Cut(x.sent, "?"); a.Path != "" && sent != a.Path {
		add("path", "%s is matched as %s", sent, a.Path)
	} else {
		add("path", "%s", sent)
	}
	switch s := a.Service; {
	case s != nil && s.Public:
		add("service", "%s at %s:%d serves %s and the paths below it%s, without a token", s.Name, s.File, s.Line, s.Path, under(s.Hosts))
	case s != nil:
		add("service", "%s at %s:%d serves %s and the paths below it%s, with a token", s.Name, s.File, s.Line, s.Path, under(s.Hosts))
	case x.forward != nil:
		add("service", "none: the gateway's own route %q", a.Route)
	case x.reply.status == http.StatusPermanentRedirect:
		add("service", "none: the listener without TLS redirects")
		return steps
	case isVersion(x.route):
		add("service", "none: the gateway returns its version")
	case isMalformedHost(x.route):
		add("service", "none: the host %s is rejected", x.host)
		return steps
	case x.reply.status == 400:
		add("service", "none: the path is rejected")
		return steps
	default:
		add("service", "none")
	}
	e.servedStep(a.Service, add)
	e.methodStep(x, a, add)
	e.originStep(x, add)
	e.tokenStep(x, add)
	e.limitSteps(x, add)
	return steps
}

func (e *Explainer) methodStep(x *exchange, a *Explanation, add func(part, format string, args ...any)) {
	switch {
	case x.preflight:
		add("preflight", "answered by Envoy before authorization; no upstream is called")
	case x.reply.status == 405 && x.reply.local:
		add("method", "%s is not one of %s", x.method, x.reply.header.value("allow"))
	case a.Service != nil:
		add("method", "%s is one of %s", x.method, strings.Join(a.Service.Methods, ", "))
	}
}

func (e *Explainer) originStep(x *exchange, add func(part, format string, args ...any)) {
	origin, there := x.header.get("origin")
	listed := e.served.Origins
	switch {
	case len(listed) == 0 && there && origin != "":
		add("origin", "%s may read the response: no origins are listed, so every page may call", origin)
	case len(listed) == 0:
	case x.reason == authz.ReasonOriginRefused.String() && origin == "":
		add("origin", "the request has no Origin, and only listed origins may call")
	case x.reason == authz.ReasonOriginRefused.String():
		add("origin", "%s is not on the list", origin)
	case x.checked:
		add("origin", "%s is on the list", origin)
	case x.preflight && x.origin == "":
		add("origin", "%s is not on the list: the preflight response does not allow the call", origin)
	case x.preflight:
		add("origin", "%s is on the list", origin)
	}
}

func (e *Explainer) tokenStep(x *exchange, add func(part, format string, args ...any)) {
	if unread := e.unreadTokenOf(x); unread != nil {
		add("token", "%s", unread.step(e, x))
		if x.reason == authz.ReasonTokenMissing.String() {
			return
		}
	}
	service := e.serviceOf(x.route)
	if service == nil || !service.Authenticate || !x.checked {
		return
	}
	switch x.reason {
	case authz.ReasonTokenMissing.String():
		add("token", "the request has none")
	case authz.ReasonTokenMalformed.String():
		add("token", "the value of Authorization is not a token of this gateway, raw or after Bearer; no store lookup")
	case authz.ReasonTokenUnknown.String():
		add("token", "%s is unknown, expired or revoked, according to %s", x.token, e.store)
	case authz.ReasonScopeMissing.String():
		add("token", "%s is live, according to %s, but lacks some of the scopes %s", x.token, e.store, strings.Join(service.Scopes, ", "))
	case authz.ReasonStoreUnavailable.String():
		add("token", "%s has the right form; the lookup by %s failed", x.token, e.store)
	case "", "withheld":
		if !x.lookedUp { // the request was denied before the lookup
			return
		}
		if e.sessions == nil {
			add("token", "%s has the right form; it was not looked up (use --redis URL or --admin ADDR)", x.token)
			return
		}
		add("token", "%s is live, according to %s", x.token, e.store)
	}
}

// limitSteps names the limits that a request can meet. How many requests there were is not known.
func (e *Explainer) limitSteps(x *exchange, add func(part, format string, args ...any)) {
	if x.preflight || isVersion(x.route) {
		return
	}
	limits := func(to string, all []definitions.RateLimit) {
		for _, l := range all {
			add("limit", "429 above %d requests to the %s in %s of %s, %d at once%s (not counted here)", l.Requests, to, l.Period(), l.Counts(), l.Burst, together(l))
		}
	}
	limits("gateway", e.served.RateLimits)
	s := e.serviceOf(x.route)
	if s == nil || x.route.GetRoute() == nil {
		return
	}
	limits("service", s.RateLimits)
	if s.MaxRequestBytes > 0 {
		add("limit", "413 for a body of more than %d bytes", s.MaxRequestBytes)
	}
}

// together returns what a limit of the cluster does differently.
func together(l definitions.RateLimit) string {
	switch {
	case l.RefuseWithoutRedis:
		return ", through all gateways; 503 without Redis"
	case l.Cluster:
		return ", through all gateways; no limit without Redis"
	}
	return ""
}

// reason returns why a request got its outcome, and what to change for another one.
func (e *Explainer) reason(x *exchange) (reason, why, change string) {
	service := e.serviceOf(x.route)
	switch {
	case x.closed != "":
		return "handshake_refused", "Envoy closes the connection: " + x.closed, "use a name of a certificate, or set tls.default_certificate"
	case x.refused != "":
		return convention.ReasonMalformed, "Envoy rejects the request: " + x.refused, "send it in the plain form"
	case x.preflight:
		why, change = e.preflightReason(x, service)
		return convention.ReasonPreflight, why, change
	case x.reason != "":
		why, change = e.denialReason(x, service)
		return x.reason, why, e.orFix(service, change)
	case x.forward != nil:
		return "forwarded", forwardReason(x, service), ""
	}
	return e.replyReason(x, service)
}

// forwardReason returns which part a forwarded request reaches.
func forwardReason(x *exchange, service *definitions.Service) string {
	switch {
	case strings.HasPrefix(x.path, convention.ACMEChallengePath):
		return "Gatepost answers the challenge of a CA (tls.acme)"
	case service == nil:
		return "Gatepost's token handler responds"
	}
	subject := "its upstream responds"
	if len(service.Upstreams) > 1 {
		subject = "its upstreams respond"
	}
	return fmt.Sprintf("the request is sent to the service %q; whether %s is not checked", service.Name, subject)
}

// replyReason returns why Envoy responds by itself: as the route of a service has it, or because there is none.
func (e *Explainer) replyReason(x *exchange, service *definitions.Service) (reason, why, change string) {
	switch {
	case x.route.GetRedirect() != nil:
		return "redirected", fmt.Sprintf("the service %q redirects to %s", service.Name, x.reply.header.value("location")), ""
	case x.route.GetDirectResponse().GetStatus() == xds.StatusNoCertificate:
		return convention.ReasonNoCertificate, fmt.Sprintf("the service %q needs a client certificate", service.Name),
			"present one in the handshake, or remove client_certificate at " + e.location(service)
	case x.route.GetDirectResponse().GetStatus() == xds.StatusMaintenance:
		return convention.ReasonMaintenance, fmt.Sprintf("the service %q is in maintenance", service.Name), fmt.Sprintf("remove maintenance at %s when it is over", e.location(service))
	case x.reply.status == http.StatusPermanentRedirect:
		return "redirected", "a request without TLS is redirected to the listener for TLS", "use the https URL, or set tls.redirect: false"
	case isVersion(x.route):
		return "version", "this path returns the version that Envoy serves", ""
	case x.reply.status == 405:
		return convention.ReasonMethodNotAllowed, fmt.Sprintf("%s is not allowed here", x.method), e.orFix(service, e.allowMethod(x, service))
	case x.reply.status == 404:
		return convention.ReasonNotFound, "no service has this path", e.definePath(x)
	case isMalformedHost(x.route):
		return convention.ReasonMalformed, "services differ by the host, and the host is not a name or an address", "send the host as a name, with or without a port"
	case x.reply.status == 400:
		return convention.ReasonMalformed, "a dot segment of the path has a parameter (/..;), which some servers resolve to a path outside the service", "send the path without it"
	case x.checked:
		return authz.ReasonStoreUnavailable.String(), "Gatepost could not decide", "see the log of Gatepost"
	}
	return "answered", "Envoy responds by itself", ""
}

func (e *Explainer) denialReason(x *exchange, service *definitions.Service) (why, change string) {
	path := e.served.Tokens.Path
	switch x.reason {
	case "withheld":
		return fmt.Sprintf("the service %q is served without its upstreams, because Envoy rejects them: %s", service.Name, e.rejected()),
			fmt.Sprintf("fix the upstreams that Envoy rejects at %s", e.location(service))
	case authz.ReasonOriginRefused.String():
		return "only listed origins may call, whatever the path", e.listOrigin(x)
	case convention.ReasonUpgradeRefused:
		if service == nil {
			return "no service at this path accepts WebSockets", "use the path of a service that does"
		}
		return fmt.Sprintf("the service %q does not accept WebSockets", service.Name), fmt.Sprintf("set websocket: true at %s", e.location(service))
	case authz.ReasonTokenMissing.String():
		why = fmt.Sprintf("the service %q needs a token", service.Name)
		if unread := e.unreadTokenOf(x); unread != nil {
			return why, unread.change(e)
		}
		return why, fmt.Sprintf("send Authorization: Bearer TOKEN with a token of POST %s, or set authenticate: false at %s", path, e.location(service))
	case authz.ReasonTokenMalformed.String():
		return "the value of Authorization is not a token of this gateway",
			fmt.Sprintf("send the token by itself or after Bearer, exactly as POST %s returned it", path)
	case authz.ReasonTokenUnknown.String():
		return "the token is unknown, expired or revoked", fmt.Sprintf("log in again: POST %s", path)
	case authz.ReasonScopeMissing.String():
		return fmt.Sprintf("the token's session lacks scopes that %q requires: %s", service.Name, strings.Join(service.Scopes, ", ")),
			fmt.Sprintf("have the user service grant them at login, or change scopes at %s", e.location(service))
	case authz.ReasonStoreUnavailable.String():
		return "the token store is unavailable, so the token could not be checked", "check that the store is running"
	case convention.ReasonTooManyHeaders:
		return "with what the gateway adds, the request exceeds Envoy's header limit", "send fewer headers"
	case authz.ReasonBadUser.String():
		return "the user's id cannot be put into a header", "have the user service return a different id"
	}
	return "Gatepost could not decide: " + x.reason, ""
}

func (e *Explainer) listOrigin(x *exchange) string {
	if origin := x.header.value("origin"); origin != "" && origin != "null" {
		return fmt.Sprintf("add %s to origins in %s, if its pages may call", origin, e.definitions.Name)
	}
	return fmt.Sprintf("send the Origin of a listed page, or remove origins from %s to let everyone call", e.definitions.Name)
}

func (e *Explainer) allowMethod(x *exchange, service *definitions.Service) string {
	allowed := x.reply.header.value("allow")
	if service == nil {
		return "send " + strings.ReplaceAll(allowed, ", ", " or ")
	}
	if x.method == "OPTIONS" && x.header.value("access-control-request-method") == "" {
		return "a preflight has Origin and Access-Control-Request-Method; any other OPTIONS must be in allowed_methods"
	}
	return fmt.Sprintf("add %s to allowed_methods of %q at %s, or send %s", x.method, service.Name, e.location(service), strings.ReplaceAll(allowed, ", ", " or "))
}

func (e *Explainer) definePath(x *exchange) string {
	path, _, _ := strings.Cut(x.path, "?")
	host := lowerASCII(withoutPort(x.host))
	if s := e.served.At(path); s != nil && !s.Covers(host) {
		return fmt.Sprintf("%s is the path of %q at %s%s: send such a Host, or add %s to its hosts", s.Path, s.Name, e.location(s), under(s.Hosts), host)
	}
	if s := e.served.Nearest(path); s != nil {
		return fmt.Sprintf("did you mean %s, the path of %q at %s?", s.Path, s.Name, e.location(s))
	}
	return fmt.Sprintf("define a service with this path in %s", e.definitions.Name)
}

// under names hosts in a sentence.
func under(hosts []string) string {
	if len(hosts) == 0 {
		return ""
	}
	const most = 5
	text := " under " + strings.Join(hosts[:min(len(hosts), most)], ", ")
	if len(hosts) > most {
		text += fmt.Sprintf(" and %d more", len(hosts)-most)
	}
	return text
}
