package nodegateway

import (
	"slices"
	"strings"
)

// addGeneral adds the changes that no single setting has, if the settings are such that they apply.
func (i *importer) addGeneral() {
	anyService := func(is func(service) bool) bool { return slices.ContainsFunc(i.services, is) }
	for _, change := range []struct {
		applies bool
		text    string
	}{
		{len(i.services) > 0, "A path ends at a segment: /orders takes /orders and /orders/5, not /ordersfoo. " +
			"The longest path wins, not the first."},
		{anyService(func(s service) bool { return len(s.methods) > 0 }), "allowedMethods count: other methods get 405, which the old " +
			"gateway, by a slip, never sent. GET allows HEAD."},
		{len(i.services) > 0, "An upstream has 15 s for its whole response; http-proxy sets no limit by itself (timeout)."},
		{anyService(func(s service) bool { return s.authenticate }), "Tokens of the old gateway, and cookies and JWTs, stop working: " +
			"users log in again."},
		{anyService(func(s service) bool { return s.authenticate }), "Upstreams no longer get the token. They get the user's id in " +
			"x-user-id (identity.user_header, forward_token)."},
		{i.authenticator != "", "Only POST /token is the login. The old gateway took every method and every path that begins with /token."},
		{i.authenticator != "", "The user service is asked at the login only. A token can be refreshed for 30 days without it " +
			"(tokens.session_lifetime); a user who is blocked there keeps the session until gatepost tokens revoke --user ID."},
		{anyService(func(s service) bool { return strings.HasPrefix(s.upstream, "https:") }), "https upstreams are verified with the " +
			"roots of gatepost --ca-file, not with those of Node."},
	} {
		if change.applies {
			i.notes++
			i.general = append(i.general, change.text)
		}
	}
}
