package definitions

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// checkMeaning finds what is wrong with values by what they mean, each by itself and all together. Where two of
// them collide the later one is the problem, and it names the line of the earlier.
func checkMeaning(f *findings, g *gatewayv1.Gateway) {
	f.add("listen", listenFault(g.GetListen()))
	checkOrigins(f, g)
	checkCors(f, g.GetCors(), len(g.GetOrigins()) > 0)
	checkTokens(f, g.GetTokens())
	if g.GetTokens().GetCookie() != "" && len(g.GetOrigins()) == 0 {
		f.add("tokens.cookie", faultf("list the origins that may, under origins",
			"would let every page on the web act as its visitor: browsers send a cookie by themselves"))
	}
	f.add("identity.user_header", identityHeaderFault(g.GetIdentity().GetUserHeader()))
	tokensPath := cmp.Or(g.GetTokens().GetPath(), defaultTokensPath)
	listen := canonicalListen(cmp.Or(g.GetListen(), defaultListen))
	for i, s := range g.GetServices() {
		checkService(f, s, fmt.Sprintf("services[%d]", i), tokensPath)
		for j, upstream := range s.GetUpstreams() {
			f.add(fmt.Sprintf("services[%d].upstreams[%d]", i, j), ownAddressFault(upstream, listen))
		}
	}
	checkAmongServices(f, g.GetServices())
}

func checkOrigins(f *findings, g *gatewayv1.Gateway) {
	first := map[string]int{}
	for i, origin := range g.GetOrigins() {
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
	return faultf("remove one of them", "%s is in the list twice, first on %s", shown(value), f.where(earlier))
}

func checkCors(f *findings, c *gatewayv1.Cors, originsSet bool) {
	if c.GetAllowCredentials() && !originsSet {
		f.add("cors.allow_credentials", faultf("list the origins that may, under origins",
			"is true, which would let every page on the web act with its visitor's cookies"))
	}
	checkHeaderTwins(f, "cors.allow_headers", c.GetAllowHeaders())
	checkHeaderTwins(f, "cors.expose_headers", c.GetExposeHeaders())
	f.add("cors.max_age", wholeSeconds(c.GetMaxAge()))
}

// checkHeaderTwins finds header names that differ in case alone; the rules find those that are the same.
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

func checkTokens(f *findings, t *gatewayv1.Tokens) {
	if path := t.GetPath(); path != "" {
		f.add("tokens.path", tokensPathFault(path))
	}
	f.add("tokens.lifetime", wholeSeconds(t.GetLifetime()))
	f.add("tokens.session_lifetime", wholeSeconds(t.GetSessionLifetime()))
	lifetime := defaultLifetime
	if t.GetLifetime() != nil {
		lifetime = t.GetLifetime().AsDuration()
	}
	if session := t.GetSessionLifetime(); session != nil && session.AsDuration() < lifetime && !f.isSpoilt("tokens.lifetime") {
		f.add("tokens.session_lifetime", faultf("write at least "+seconds(lifetime)+", or a shorter lifetime",
			"is shorter than the lifetime of a token, %s (%s)", seconds(lifetime), f.where("tokens.lifetime")))
	}
	a := t.GetAuthenticator()
	if a == nil {
		return
	}
	f.add("tokens.authenticator.url", authenticatorFault(a.GetUrl()))
	f.add("tokens.authenticator.user_header", answerHeaderFault(a.GetUserHeader()))
	f.add("tokens.authenticator.scopes_header", answerHeaderFault(a.GetScopesHeader()))
	user, scopes := cmp.Or(a.GetUserHeader(), defaultUserIDHeader), cmp.Or(a.GetScopesHeader(), defaultScopesHeader)
	if strings.EqualFold(user, scopes) {
		where := "tokens.authenticator.scopes_header"
		if a.GetScopesHeader() == "" {
			where = "tokens.authenticator.user_header"
		}
		f.add(where, faultf("use two headers", "the user's id and the scopes would come in one header, %s", shown(user)))
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.0fs", d.Seconds()) }

// wholeSeconds refuses a part of a second where HTTP or a store counts in seconds (expires_in, max-age, EXPIRE).
func wholeSeconds(d *durationpb.Duration) *fault {
	if d.GetNanos() == 0 {
		return nil
	}
	return faultf("write whole seconds, such as 60s", "has a part of a second, which cannot be told to a client")
}

// checkService checks a service by itself.
func checkService(f *findings, s *gatewayv1.Service, field, tokensPath string) {
	if name := strings.ToLower(s.GetName()); name == "gatepost" || strings.HasPrefix(name, "gatepost-") {
		f.add(field+".name", faultf("choose another", "%s is a name that the gateway keeps for itself", shown(s.GetName())))
	}
	path := s.GetPath()
	switch fault := pathFault(path); {
	case fault != nil:
		f.add(field+".path", fault)
	case within(path, tokensPath):
		f.add(field+".path", faultf("choose another, or another tokens.path",
			"%s is a path that the gateway keeps for its tokens (%s, %s)", shown(path), tokensPath, f.where("tokens.path")))
	case within(path, OwnPath):
		f.add(field+".path", faultf("choose another", "%s is a path that the gateway keeps for itself", shown(path)))
	}
	checkUpstreams(f, s.GetUpstreams(), field+".upstreams")
	if s.Authenticate != nil && !s.GetAuthenticate() && len(s.GetScopes()) > 0 {
		f.add(field+".scopes", faultf("remove the one or the other",
			"are asked of a service that is public (%s)", f.where(field+".authenticate")))
	}
	if methods := s.GetAllowedMethods(); s.GetWebsocket() && len(methods) > 0 && !slices.Contains(methods, "GET") {
		f.add(field+".websocket", faultf("allow GET too",
			"begins with a GET, which is none of the methods (%s)", f.where(field+".allowed_methods")))
	}
}

// checkUpstreams checks the upstreams of a service by themselves, and that they are alternatives to each other.
func checkUpstreams(f *findings, texts []string, list string) {
	var model *upstream // the first good one
	modelField := ""
	first := map[string]string{} // :: host:port → field
	for i, text := range texts {
		field := fmt.Sprintf("%s[%d]", list, i)
		u, fault := parseUpstream(text)
		if fault != nil {
			f.add(field, fault)
			continue
		}
		if model == nil {
			model, modelField = &u, field
		}
		switch earlier, twice := first[u.address()]; {
		case u.scheme != model.scheme:
			f.add(field, faultf("write "+model.scheme+" for all, or make two services",
				"is %s, and the upstream on %s is %s", u.scheme, f.where(modelField), model.scheme))
		case u.base != model.base:
			f.add(field, faultf("upstreams of a service differ in host and port alone; make two services",
				"has the path %s, and the upstream on %s has %s", shown(u.base), f.where(modelField), shown(model.base)))
		case twice:
			f.add(field, twinFault(f, text, earlier))
		default:
			first[u.address()] = field
		}
	}
}

// checkAmongServices finds services of the same name or the same path.
func checkAmongServices(f *findings, services []*gatewayv1.Service) {
	names, paths := make(map[string]int, len(services)), make(map[string]int, len(services)) // :: → index of the first service that has it
	for i, s := range services {
		if earlier, taken := names[s.GetName()]; taken {
			f.add(fmt.Sprintf("services[%d].name", i), faultf("give each service a name of its own",
				"%s is also the name of the service on %s", shown(s.GetName()), f.where(fmt.Sprintf("services[%d].name", earlier))))
		} else {
			names[s.GetName()] = i
		}
		path := strings.ToLower(s.GetPath())
		if earlier, taken := paths[path]; taken {
			f.add(fmt.Sprintf("services[%d].path", i), faultf("give each service a path of its own; letters count alike in any case",
				"%s is also the path of the service %q on %s",
				shown(s.GetPath()), services[earlier].GetName(), f.where(fmt.Sprintf("services[%d].path", earlier))))
		} else {
			paths[path] = i
		}
	}
}
