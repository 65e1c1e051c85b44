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

// maxUserID is the longest user id that is taken from the user service, in bytes, maxScope and maxScopes the longest scope and how
// many of them a session has.
const (
	maxUserID = 256
	maxScope  = 64
	maxScopes = 64
)

// login is a POST of user name and password that is on its way through.
type login struct {
	*Handler
	client
	settings *definitions.Tokens
	w        http.ResponseWriter
	r        *http.Request

	session *tokens.Session // once it is opened
	why     string          // what to log beside the outcome
}

// login answers POST /token, and counts and logs what came of it. The user is named where the login was good, and else nothing
// that was typed: people type passwords into the wrong field.
func (h *Handler) login(w http.ResponseWriter, r *http.Request) {
	l := &login{Handler: h, client: clientOf(r), settings: h.settings(), w: w, r: r}
	o := l.run()
	h.metrics.countLogin(o)
	attributes := make([]slog.Attr, 0, 6)
	attributes = append(attributes,
		slog.String("outcome", string(o)),
		slog.String("request_id", l.requestID),
		slog.String("client", l.client.String()))
	if l.why != "" {
		attributes = append(attributes, slog.String("reason", l.why))
	}
	if l.session != nil {
		attributes = append(attributes, slog.String("user", l.session.User), slog.String("session", l.session.ID))
	}
	h.config.Logger.LogAttrs(r.Context(), o.level(), "login", attributes...)
}

// run takes the login through its steps, each of which may be the last.
func (l *login) run() outcome {
	if l.settings == nil || l.settings.Authenticator == nil {
		later(l.w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
		return l.because(notConfigured, "no tokens.authenticator is defined")
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
	pass, err := l.config.Shield.Admit(l.r.Context(), limits(&l.settings.Shield), l.address, user)
	if err != nil {
		return l.held(err)
	}
	defer pass.Done(l.r.Context(), shield.Unjudged)

	answer, err := l.forward(l.r, a, b)
	if err != nil {
		return l.unanswered(pass, b, err)
	}
	defer answer.release()
	if answer.status != http.StatusOK {
		pass.Done(l.r.Context(), judge(answer.status))
		answer.deliver(l.w)
		if answer.status >= 500 {
			return l.because(serviceFailed, fmt.Sprintf("the user service answered %d", answer.status))
		}
		return refused
	}
	id, why := userID(a.UserHeader, answer.header.Values(a.UserHeader))
	if why != "" {
		pass.Done(l.r.Context(), shield.Refused)
		unauthorized(l.w, convention.Challenge)
		return l.because(noUser, why)
	}
	pass.Done(l.r.Context(), shield.Opened)
	return l.open(answer, id)
}

// limits returns the settings of the shield.
func limits(s *definitions.Shield) *shield.Settings {
	return &shield.Settings{
		Address:    shield.Limit(s.Address),
		User:       shield.Limit(s.User),
		Concurrent: s.Concurrent,
		Breaker:    shield.BreakerSettings(s.Breaker),
	}
}

// open mints a token, has the store keep its session, and hands it over in the user service's own answer.
func (l *login) open(answer *answer, user string) outcome {
	if err := l.r.Context().Err(); err != nil {
		return clientGone // nobody is there to take a token
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
		// A token that is not kept is not handed out.
		later(l.w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
		return l.because(storeDown, err.Error())
	}
	l.session = session
	l.handOver(answer, token, session)
	return opened
}

func (l *login) handOver(answer *answer, token tokens.Token, session *tokens.Session) {
	header, expiresIn := l.w.Header(), seconds(session, l.config.Now())
	answer.copyTo(header)
	handOver(header, token.Reveal(), expiresIn, "token,expires_in,"+l.settings.Authenticator.UserHeader)
	if answer.body.Len() == 0 {
		delete(header, "Content-Encoding") // of the body that was not there
		header.Set("Content-Type", "application/json")
		_ = json.NewEncoder(answer.body).Encode(newGrant(token.Reveal(), expiresIn, session.Scopes)) // a buffer takes all
	}
	answer.write(l.w)
}

func (l *login) because(o outcome, why string) outcome {
	l.why = why
	return o
}

// fault answers for what should not happen, as for a store that is down: nothing is wrong with the client.
func (l *login) fault(err error) outcome {
	later(l.w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
	return l.because(failed, err.Error())
}

// badRequest answers for a login that cannot be sent on.
func (l *login) badRequest(err error) outcome {
	var ambiguous ambiguousError
	switch {
	case errors.Is(err, errTooLarge):
		convention.WriteJSON(l.w, http.StatusRequestEntityTooLarge, textTooLarge)
		return tooLarge
	case errors.As(err, &ambiguous):
		convention.WriteJSON(l.w, http.StatusBadRequest, textAmbiguous+ambiguous.Error())
		return l.because(unreadable, "ambiguous user name: "+ambiguous.Error())
	}
	convention.WriteJSON(l.w, http.StatusBadRequest, textUnreadable)
	return unreadable
}

// held answers for a login that the shield holds back.
func (l *login) held(err error) outcome {
	var r *shield.Refusal
	if !errors.As(err, &r) {
		return l.fault(err)
	}
	switch r.Reason {
	case shield.Throttled:
		later(l.w, http.StatusTooManyRequests, textTooMany, r.RetryAfter)
		return throttled
	case shield.Busy:
		later(l.w, http.StatusServiceUnavailable, textNoUsers, r.RetryAfter)
		return busy
	}
	later(l.w, http.StatusServiceUnavailable, textNoUsers, r.RetryAfter)
	return broken
}

// unanswered answers for a login that the user service did not answer, and tells the shield whose fault it was.
func (l *login) unanswered(pass *shield.Pass, b *body, err error) outcome {
	if errors.Is(err, errTooLarge) || errors.Is(err, errClient) {
		return l.badRequest(err)
	}
	if !b.unread() { // else it may have been the client that kept it waiting
		pass.Done(l.r.Context(), shield.Unanswered)
	}
	if errors.Is(err, errSlow) {
		later(l.w, http.StatusGatewayTimeout, textSlow, retrySoon)
		return timedOut
	}
	later(l.w, http.StatusServiceUnavailable, textNoUsers, retrySoon)
	return l.because(unreachable, err.Error())
}

// judge says what a status other than 200 means to the shield. Whatever opened nothing is a failed login, so
// that a service which answers 404 for an unknown user and 401 for a wrong password is not told apart by it, save where
// the service speaks of itself or of the request.
func judge(status int) shield.Outcome {
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

// userID returns the user's id from the values of the header with a name, or why there is none.
func userID(name string, values []string) (id, why string) {
	bad := func(what string) (string, string) {
		return "", fmt.Sprintf("the user service's 200 has %s header %q (tokens.authenticator.user_header)", what, name)
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
		// It goes into a header of every request to come, where nothing else is safe.
		if c := values[0][i]; c < ' ' || c > '~' {
			return bad("control or non-ASCII characters in the")
		}
	}
	return values[0], ""
}

// scopes returns the session's scopes. One that RFC 6749 §3.3 does not allow is left out, and said to be.
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
		l.config.Logger.LogAttrs(l.r.Context(), slog.LevelWarn, "the user service's 200 has scopes that are none; they are left out",
			slog.Int("left_out", bad), slog.String("request_id", l.requestID))
	}
	return good
}

// validScope: scope-token = 1*( %x21 / %x23-5B / %x5D-7E ), of a length that services can ask for.
func validScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '"' || c == '\\' || c > '~' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= maxScope
}
