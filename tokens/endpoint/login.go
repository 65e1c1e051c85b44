package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/tokens"
	"gatepost/tokens/shield"
)

// Limits on the user service's answer: the length of a user id in bytes, the length of a scope, and
// the number of scopes of a session.
const (
	maxUserID = 256
	maxScope  = 64
	maxScopes = 64
)

// login is one POST /token in progress.
type login struct {
	*Handler
	client
	settings *definitions.Tokens
	w        http.ResponseWriter
	r        *http.Request

	asked   bool            // whether the user service was asked
	session *tokens.Session // nil until it is stored
	reason  string          // the reason to log with the outcome
}

// login handles POST /token, and counts and logs its outcome. It logs the user of a successful
// login only, because people type passwords into the wrong field.
func (h *Handler) login(w http.ResponseWriter, r *http.Request) {
	r, span := h.config.Tracer.FromRequest(r, "login")
	defer span.End()
	l := &login{Handler: h, client: clientOf(r), settings: h.settings(), w: w, r: r}
	o := l.run()
	span.SetAttributes(o.attribute())
	h.metrics.countLogin(o)
	var leftOut []slog.Attr
	if !l.asked { // the shield limits the others
		var ok bool
		if leftOut, ok = h.loginLines.Admit(h.config.Now()); !ok {
			return
		}
	}
	attributes := append(o.attributes(),
		slog.String("request_id", l.requestID),
		slog.String("client", l.client.String()))
	attributes = append(attributes, leftOut...)
	if l.reason != "" {
		attributes = append(attributes, slog.String("reason", l.reason))
	}
	if l.session != nil {
		attributes = append(attributes, slog.String("user", l.session.User), slog.String("session", l.session.ID))
	}
	h.config.Logger.LogAttrs(r.Context(), o.level(), "login", append(attributes, convention.EventLogin.Attr())...)
}

// run processes the login and returns its outcome.
func (l *login) run() outcome {
	if l.settings == nil || l.settings.Authenticator == nil {
		writeRetry(l.w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
		return l.withReason(notConfigured, "no tokens.authenticator is defined")
	}
	a := l.settings.Authenticator
	b, err := readBody(l.r)
	if err != nil {
		return l.badRequest(err)
	}
	user, err := userName(a.UserField, l.r, b)
	if err != nil {
		return l.badRequest(err)
	}
	pass, err := l.config.Shield.Admit(l.r.Context(), shieldSettings(&l.settings.Shield), l.address, user)
	if err != nil {
		return l.refusedByShield(err)
	}
	defer pass.Done(l.r.Context(), shield.Unjudged)

	l.asked = true
	answer, err := l.forward(l.r, a, b)
	if err != nil {
		return l.forwardFailed(pass, b, err)
	}
	defer answer.release()
	if answer.status != http.StatusOK {
		pass.Done(l.r.Context(), shieldOutcome(answer.status))
		answer.deliver(l.w)
		if answer.status >= 500 {
			return l.withReason(serviceFailed, fmt.Sprintf("the user service returned %d", answer.status))
		}
		return refused
	}
	id, why := userID(a.UserHeader, answer.header.Values(a.UserHeader))
	if why != "" {
		pass.Done(l.r.Context(), shield.Refused)
		unauthorized(l.w, convention.Challenge)
		return l.withReason(noUser, why)
	}
	pass.Done(l.r.Context(), shield.Opened)
	return l.open(answer, id)
}

// shieldSettings returns the settings for the shield.
func shieldSettings(s *definitions.Shield) *shield.Settings {
	return &shield.Settings{
		Address:    shield.Limit(s.Address),
		User:       shield.Limit(s.User),
		Concurrent: s.Concurrent,
		Breaker:    shield.BreakerSettings(s.Breaker),
	}
}

// open mints a token, stores its session, and sends it with the user service's answer.
func (l *login) open(answer *answer, user string) outcome {
	if err := l.r.Context().Err(); err != nil {
		return clientGone // no client is left to receive a token
	}
	token, err := tokens.Mint(tokens.Format(l.settings.Format))
	if err != nil {
		return l.fault(err)
	}
	now, s := l.config.Now(), l.settings
	session, err := tokens.NewSession(token.Hash(), user, l.scopes(answer), now, s.Lifetime, s.SessionLifetime)
	if err != nil {
		return l.fault(err)
	}
	session.UserAgent, session.ClientAddress = l.agent, l.client.String()

	ctx, cancel := l.storeContext(l.r)
	defer cancel()
	if err := l.config.Store.Create(ctx, session, s.MaxSessions); err != nil {
		// A token that is not stored must not be returned.
		writeRetry(l.w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
		return l.withReason(storeDown, err.Error())
	}
	l.session = session
	l.respond(answer, token, session)
	return opened
}

func (l *login) respond(answer *answer, token tokens.Token, session *tokens.Session) {
	header, expiresIn := l.w.Header(), seconds(session, l.config.Now())
	answer.copyTo(header)
	setTokenHeaders(header, token.Reveal(), expiresIn, "token,expires_in,"+l.settings.Authenticator.UserHeader)
	if answer.body.Len() == 0 {
		delete(header, "Content-Encoding") // it described the empty body
		header.Set("Content-Type", "application/json")
		// writing to a buffer cannot fail
		_ = json.NewEncoder(answer.body).Encode(newGrant(token.Reveal(), expiresIn, session.Scopes))
	}
	answer.write(l.w)
}

func (l *login) withReason(o outcome, why string) outcome {
	l.reason = why
	return o
}

// fault responds to an internal error like to an unavailable store: the client did nothing wrong.
func (l *login) fault(err error) outcome {
	writeRetry(l.w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
	return l.withReason(failed, err.Error())
}

// badRequest responds to a login that cannot be forwarded.
func (l *login) badRequest(err error) outcome {
	var ambiguous ambiguousError
	switch {
	case errors.Is(err, errTooLarge):
		convention.WriteJSON(l.w, http.StatusRequestEntityTooLarge, convention.TextTooLarge)
		return tooLarge
	case errors.As(err, &ambiguous):
		convention.WriteJSON(l.w, http.StatusBadRequest, textAmbiguous+ambiguous.Error())
		return l.withReason(unreadable, "ambiguous user name: "+ambiguous.Error())
	}
	convention.WriteJSON(l.w, http.StatusBadRequest, textUnreadable)
	return unreadable
}

// refusedByShield responds to a login that the shield refuses.
func (l *login) refusedByShield(err error) outcome {
	var r *shield.Refusal
	if !errors.As(err, &r) {
		return l.fault(err)
	}
	switch r.Reason {
	case shield.Throttled:
		writeRetry(l.w, http.StatusTooManyRequests, textTooMany, r.RetryAfter)
		return throttled
	case shield.Busy:
		writeRetry(l.w, http.StatusServiceUnavailable, textNoUsers, r.RetryAfter)
		return busy
	}
	writeRetry(l.w, http.StatusServiceUnavailable, textNoUsers, r.RetryAfter)
	return broken
}

// forwardFailed responds to a login that the user service did not answer, and reports it to the
// shield.
func (l *login) forwardFailed(pass *shield.Pass, b *body, err error) outcome {
	if errors.Is(err, errTooLarge) || errors.Is(err, errClient) {
		return l.badRequest(err)
	}
	if !b.unread() { // otherwise the client may be the cause
		pass.Done(l.r.Context(), shield.Unanswered)
	}
	if errors.Is(err, errSlow) {
		writeRetry(l.w, http.StatusGatewayTimeout, textSlow, retrySoon)
		return timedOut
	}
	writeRetry(l.w, http.StatusServiceUnavailable, textNoUsers, retrySoon)
	return l.withReason(unreachable, err.Error())
}

// shieldOutcome returns the shield's outcome for a status other than 200. Any refusal counts as a
// failed login. So a service that answers 404 to an unknown user and 401 to a wrong password does
// not reveal which. Statuses about the service or the request do not count.
func shieldOutcome(status int) shield.Outcome {
	switch status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return shield.Unanswered
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return shield.Unjudged
	}
	if status >= 500 {
		return shield.Unjudged
	}
	return shield.Refused
}

// userID returns the user's id from the values of the header name, or why there is none.
func userID(name string, values []string) (id, why string) {
	bad := func(what string) (string, string) {
		return "", fmt.Sprintf("the user service returned 200 with %s header %q (tokens.authenticator.user_header)", what, name)
	}
	switch {
	case len(values) == 0:
		return bad("no")
	case len(values) > 1:
		return bad("more than one")
	case values[0] == "":
		return bad("an empty")
	case len(values[0]) > maxUserID:
		return bad("more than 256 bytes in the")
	}
	for i := range len(values[0]) {
		// The id is sent as a header of later requests, so it must be printable ASCII.
		if c := values[0][i]; c < ' ' || c > '~' {
			return bad("control or non-ASCII characters in the")
		}
	}
	return values[0], ""
}

// scopes returns the session's scopes. It drops invalid ones (RFC 6749 §3.3) and logs their number.
func (l *login) scopes(answer *answer) []string {
	var good []string
	bad := 0
	for _, line := range answer.header.Values(l.settings.Authenticator.ScopesHeader) {
		for scope := range strings.SplitSeq(line, " ") {
			switch {
			case scope == "" || slices.Contains(good, scope):
			case !validScope(scope) || len(good) == maxScopes:
				bad++
			default:
				good = append(good, scope)
			}
		}
	}
	if bad > 0 {
		l.config.Logger.LogAttrs(l.r.Context(), slog.LevelWarn, "invalid scopes from the user service are left out",
			slog.Int("left_out", bad), slog.String("request_id", l.requestID))
	}
	return good
}

// validScope implements scope-token = 1*( %x21 / %x23-5B / %x5D-7E ), with a limited length.
func validScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '"' || c == '\\' || c > '~' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= maxScope
}
