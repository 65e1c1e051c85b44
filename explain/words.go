package explain

import (
	"fmt"
	"strings"

	"gatepost/definitions"
)

// steps says what was decided, in order.
func (e *Explainer) steps(x *exchange, a *Answer) []Step {
	var steps []Step
	add := func(part, format string, args ...any) {
		steps = append(steps, Step{part, fmt.Sprintf(format, args...)})
	}
	if x.refused != "" {
		add("path", "refused before it is matched: %s", x.refused)
		return steps
	}
	if sent, _, _ := strings.Cut(x.sent, "?"); sent != a.Path {
		add("path", "%s is matched as %s", sent, a.Path)
	} else {
		add("path", "%s", a.Path)
	}
	switch s := a.Service; {
	case s != nil && s.Public:
		add("service", "%s at %s:%d takes %s and what lies below it, without a token", s.Name, s.File, s.Line, s.Path)
	case s != nil:
		add("service", "%s at %s:%d takes %s and what lies below it, with a token", s.Name, s.File, s.Line, s.Path)
	case x.forward != nil:
		add("service", "none: the gateway's own call %q", a.Route)
	case isVersion(x.route):
		add("service", "none: the gateway tells its version")
	case x.reply.status == 400:
		add("service", "none: the path is refused")
		return steps
	default:
		add("service", "none")
	}
	e.servedStep(a.Service, add)
	e.methodStep(x, a, add)
	e.originStep(x, add)
	e.tokenStep(x, add)
	return steps
}

func (e *Explainer) methodStep(x *exchange, a *Answer, add func(part, format string, args ...any)) {
	switch {
	case x.preflight:
		add("preflight", "answered by Envoy, before any token is asked for; nothing reaches an upstream")
	case x.reply.status == 405 && x.reply.local:
		add("method", "%s is not among %s", x.method, x.reply.header.value("allow"))
	case a.Service != nil:
		add("method", "%s is among %s", x.method, strings.Join(a.Service.Methods, ", "))
	}
}

func (e *Explainer) originStep(x *exchange, add func(part, format string, args ...any)) {
	origin, there := x.header.get("origin")
	listed := e.served.Origins
	switch {
	case len(listed) == 0 && there && origin != "":
		add("origin", "%s may read the answer: no origins are listed, so every page may call", origin)
	case len(listed) == 0:
	case x.reason == "origin_refused" && origin == "":
		add("origin", "the request has none, and only the listed ones may call")
	case x.reason == "origin_refused":
		add("origin", "%s is not on the list", origin)
	case x.checked:
		add("origin", "%s is on the list", origin)
	case x.preflight && x.origin == "":
		add("origin", "%s is not on the list: the preflight is answered without leave to call", origin)
	case x.preflight:
		add("origin", "%s is on the list", origin)
	}
}

func (e *Explainer) tokenStep(x *exchange, add func(part, format string, args ...any)) {
	if unread := e.unreadTokenOf(x); unread != nil {
		add("token", "%s", unread.step(e, x))
		if x.reason == "token_missing" {
			return
		}
	}
	service := e.taker(x.route)
	if service == nil || !service.Authenticate || !x.checked {
		return
	}
	switch x.reason {
	case "token_missing":
		add("token", "the request shows none")
	case "token_malformed":
		add("token", "what Authorization says is no token of this gateway's, raw or after Bearer; no store is asked")
	case "token_unknown":
		add("token", "%s was never issued, has expired or was revoked, says %s", x.token, e.store)
	case "scope_missing":
		add("token", "%s is live, says %s, and has not all of the scopes %s", x.token, e.store, strings.Join(service.Scopes, ", "))
	case "store_unavailable":
		add("token", "%s has the right form; %s could not tell whose it is", x.token, e.store)
	case "", "withheld":
		if !x.asked { // the request was answered before its token was looked up
			return
		}
		if e.sessions == nil {
			add("token", "%s has the right form; whose it is was not asked (--redis URL or --admin ADDR asks)", x.token)
			return
		}
		add("token", "%s is live, says %s", x.token, e.store)
	}
}

// words say why a request got its outcome, and what to change for another.
func (e *Explainer) words(x *exchange) (reason, why, change string) {
	service := e.taker(x.route)
	switch {
	case x.refused != "":
		return "malformed", "Envoy refuses the request: " + x.refused, "send it in the plain form"
	case x.preflight:
		why, change = e.preflightWords(x, service)
		return "preflight", why, change
	case x.reason != "":
		why, change = e.denialWords(x, service)
		return x.reason, why, e.orMend(service, change)
	case x.forward != nil && service == nil:
		return "forwarded", "the token handler of Gatepost answers", ""
	case x.forward != nil:
		its := "its upstream responds"
		if len(service.Upstreams) > 1 {
			its = "its upstreams respond"
		}
		return "forwarded", fmt.Sprintf("the request is sent to the service %q; whether %s is not checked", service.Name, its), ""
	case isVersion(x.route):
		return "version", "this path tells which version Envoy serves", ""
	case x.reply.status == 405:
		return "method_not_allowed", fmt.Sprintf("%s is not allowed here", x.method), e.orMend(service, e.allowMethod(x, service))
	case x.reply.status == 404:
		return "not_found", "no service has this path", e.definePath(x)
	case x.reply.status == 400:
		return "malformed", "a dot segment of the path bears a parameter (/..;), by which some servers leave the service's path", "send the path without it"
	case x.checked:
		return "store_unavailable", "Gatepost could not decide", "see the log of Gatepost"
	}
	return "answered", "Envoy answers by itself", ""
}

func (e *Explainer) denialWords(x *exchange, service *definitions.Service) (why, change string) {
	path := e.served.Tokens.Path
	switch x.reason {
	case "withheld":
		return fmt.Sprintf("the service %q is served without its upstreams, because Envoy refuses them: %s", service.Name, e.rejected()),
			fmt.Sprintf("mend what Envoy refuses about %s", e.at(service))
	case "origin_refused":
		return "only listed origins may call, whatever the path", e.listOrigin(x)
	case "upgrade_refused":
		if service == nil {
			return "nothing here takes WebSockets", "ask for the path of a service that does"
		}
		return fmt.Sprintf("the service %q takes no WebSockets", service.Name), fmt.Sprintf("set websocket: true at %s", e.at(service))
	case "token_missing":
		why = fmt.Sprintf("the service %q needs a token", service.Name)
		if unread := e.unreadTokenOf(x); unread != nil {
			return why, unread.change(e)
		}
		return why, fmt.Sprintf("send Authorization: Bearer TOKEN with a token of POST %s, or set authenticate: false at %s", path, e.at(service))
	case "token_malformed":
		return "what Authorization says cannot be a token of this gateway",
			fmt.Sprintf("send the token by itself or after Bearer, as POST %s gave it", path)
	case "token_unknown":
		return "the token opens nothing (any more)", fmt.Sprintf("log in again: POST %s", path)
	case "scope_missing":
		return fmt.Sprintf("the token's session has not all of the scopes that %q needs: %s", service.Name, strings.Join(service.Scopes, ", ")),
			fmt.Sprintf("have the user service grant them at login, or change scopes at %s", e.at(service))
	case "store_unavailable":
		return "the token store could not be asked, which is no word about the token", "see that the store is up"
	case "too_many_headers":
		return "with what the gateway adds, the request has more headers than Envoy takes to be forwarded", "send fewer headers"
	case "bad_user":
		return "the user's id cannot be put into a header", "have the user service send another"
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
	return fmt.Sprintf("add %s to allowed_methods of %q at %s, or send %s", x.method, service.Name, e.at(service), strings.ReplaceAll(allowed, ", ", " or "))
}

func (e *Explainer) definePath(x *exchange) string {
	path, _, _ := strings.Cut(x.path, "?")
	if s := e.served.Nearest(path); s != nil {
		return fmt.Sprintf("did you mean %s, the path of %q at %s?", s.Path, s.Name, e.at(s))
	}
	return fmt.Sprintf("define a service with this path in %s", e.definitions.Name)
}
