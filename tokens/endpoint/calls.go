package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"net/url"
	"time"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/tokens"
)

// maxForm bounds the body of a call, in bytes.
const maxForm = 64 << 10

var (
	errNoToken   = errors.New("no token")
	errNotAForm  = errors.New("not a form")
	errMalformed = errors.New("malformed form")
	// by this clock, or the store mixed sessions
	errExpired = fmt.Errorf("%w: the session has expired", tokens.ErrUnknown)
)

// events are what the calls that change something are called in the log. :: call → event
var events = map[string]convention.Event{
	"revoke": convention.EventRevoke, "refresh": convention.EventRefresh,
	"end_session": convention.EventSessionEnded, "end_sessions": convention.EventSessionEnded,
}

// call counts and logs the outcome of a call below the token path.
func (h *Handler) call(name string, f func(http.ResponseWriter, *http.Request) (outcome, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r, span := h.config.Tracer.FromRequest(r, name)
		defer span.End()
		o, err := f(w, r)
		span.SetAttributes(o.attribute())
		h.metrics.calls.WithLabelValues(name, string(o)).Inc()
		level := o.level()
		if level == slog.LevelInfo {
			level = slog.LevelDebug
		}
		if !h.config.Logger.Enabled(r.Context(), level) {
			return
		}
		var leftOut []slog.Attr
		if level > slog.LevelDebug {
			var ok bool
			if leftOut, ok = h.callLines.Admit(h.config.Now()); !ok {
				return
			}
		}
		c := clientOf(r)
		attributes := append(o.attributes(),
			slog.String("call", name), slog.String("request_id", c.requestID), slog.String("client", c.String()))
		attributes = append(attributes, leftOut...)
		if err != nil {
			attributes = append(attributes, slog.Any("error", err))
		}
		if event, changes := events[name]; changes {
			attributes = append(attributes, event.Attr())
		}
		h.config.Logger.LogAttrs(r.Context(), level, "token call", attributes...)
	}
}

// revoke ends the session of the token in the form, else of the token in Authorization (RFC 7009
// §2). It succeeds if there is no such session, because that is what the caller wants.
func (h *Handler) revoke(w http.ResponseWriter, r *http.Request) (outcome, error) {
	token, err := requestToken(r, "token")
	switch {
	case errors.Is(err, tokens.ErrMalformed): // "invalid tokens do not cause an error response" (§2.2)
		convention.WriteJSON(w, http.StatusOK, struct{}{})
		return unknown, nil
	case err != nil:
		return h.deny(w, err)
	}
	ctx, cancel := h.storeContext(r)
	defer cancel()
	if err := h.config.Store.Revoke(ctx, token.Hash()); err != nil {
		return h.deny(w, err)
	}
	convention.WriteJSON(w, http.StatusOK, struct{}{})
	return done, nil
}

// refresh exchanges the request's token for a new one. Within the grace, a repeated call returns
// the same new token.
func (h *Handler) refresh(w http.ResponseWriter, r *http.Request) (outcome, error) {
	settings := h.settings()
	if settings == nil {
		return h.deny(w, errors.New("no definitions are served"))
	}
	old, err := requestToken(r, "refresh_token", "token")
	if err != nil {
		return h.deny(w, err)
	}
	ctx, cancel := h.storeContext(r)
	defer cancel()
	now := h.config.Now()
	token, session, err := h.rotate(ctx, old, now, settings)
	if err != nil {
		return h.deny(w, err)
	}
	expiresIn := seconds(session, now)
	setTokenHeaders(w.Header(), token.Reveal(), expiresIn, "token,expires_in")
	convention.WriteJSON(w, http.StatusOK, newGrant(token.Reveal(), expiresIn, session.Scopes))
	return done, nil
}

// rotate exchanges old for a new token of the same session and returns the token for the client.
// That is an earlier one if another call has already exchanged old.
func (h *Handler) rotate(ctx context.Context, old tokens.Token, now time.Time, settings *definitions.Tokens) (tokens.Token, *tokens.Session, error) {
	token, err := tokens.Mint(tokens.Format(settings.Format))
	if err != nil {
		return tokens.Token{}, nil, err
	}
	sealed, err := old.Seal(token)
	if err != nil {
		return tokens.Token{}, nil, err
	}
	next, err := h.next(ctx, old.Hash(), token.Hash(), now, settings.Lifetime)
	if err != nil {
		return tokens.Token{}, nil, err
	}
	given, err := h.config.Store.Rotate(ctx, old.Hash(), tokens.Successor{Session: next, Token: sealed}, settings.RefreshGrace)
	if err != nil {
		return tokens.Token{}, nil, err
	}
	if given.Session.User == nobody {
		return tokens.Token{}, nil, errors.Join(errors.New("the store mixed up two sessions"), h.config.Store.Revoke(ctx, next.Hash))
	}
	token, err = old.Unseal(given.Token, given.Session.Hash)
	return token, given.Session, err
}

// nobody is the user of a session that a store must reject. No user service can return it, because
// a header has no NUL.
const nobody = "nobody\x00"

// next returns the session with its next token. If old is unknown, the store still has to check
// whether old is in its grace or reused. It gets a session of nobody for that: if old is live after
// all, the store rejects that session and changes nothing.
func (h *Handler) next(ctx context.Context, old, hash tokens.Hash, now time.Time, lifetime time.Duration) (*tokens.Session, error) {
	session, err := h.lookup(ctx, old)
	switch {
	case errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, errExpired):
		return tokens.NewSession(hash, nobody, nil, now, time.Minute, time.Minute)
	case err != nil:
		return nil, err
	}
	return session.Renewed(hash, now, lifetime), nil
}

// introspection is the response of RFC 7662 §2.2.
type introspection struct {
	Active    bool   `json:"active"`
	Scope     string `json:"scope,omitempty"`
	Subject   string `json:"sub,omitempty"`
	TokenType string `json:"token_type,omitempty"`
	Issued    int64  `json:"iat,omitempty"`
	Expires   int64  `json:"exp,omitempty"`
	ID        string `json:"sid,omitempty"`
}

// introspect describes the caller's own token. For any other token the response is the same as for
// an unknown one (RFC 7662 §2.2).
func (h *Handler) introspect(w http.ResponseWriter, r *http.Request) (outcome, error) {
	form, err := readForm(r)
	if err != nil {
		return h.deny(w, err)
	}
	session, err := h.caller(r)
	if err != nil {
		return h.deny(w, err)
	}
	if form.Has("token") {
		if asked, err := tokens.Parse(form.Get("token")); err != nil || asked.Hash() != session.Hash {
			convention.WriteJSON(w, http.StatusOK, introspection{})
			return inactive, nil
		}
	}
	convention.WriteJSON(w, http.StatusOK, introspection{
		Active:    true,
		Scope:     scopeText(session),
		Subject:   session.User,
		TokenType: "Bearer",
		Issued:    session.Issued.Unix(),
		Expires:   session.Expires.Unix(),
		ID:        session.ID,
	})
	return done, nil
}

// requestToken returns the token of a call: the first of the form's fields that is present, else
// Authorization. It returns errNoToken, [tokens.ErrMalformed] or the form's error if there is none.
func requestToken(r *http.Request, fields ...string) (tokens.Token, error) {
	form, err := readForm(r)
	if err != nil {
		return tokens.Token{}, err
	}
	for _, field := range fields {
		if form.Has(field) {
			return tokens.Parse(form.Get(field))
		}
	}
	return authorization(r)
}

func authorization(r *http.Request) (tokens.Token, error) {
	switch values := r.Header["Authorization"]; {
	case len(values) == 0 || len(values) == 1 && values[0] == "":
		return tokens.Token{}, errNoToken
	case len(values) > 1:
		return tokens.Token{}, tokens.ErrMalformed
	default:
		return tokens.FromAuthorization(values[0])
	}
}

// caller returns the live session of the token in Authorization.
func (h *Handler) caller(r *http.Request) (*tokens.Session, error) {
	token, err := authorization(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := h.storeContext(r)
	defer cancel()
	return h.lookup(ctx, token.Hash())
}

// lookup calls the store's Lookup and checks its result.
func (h *Handler) lookup(ctx context.Context, hash tokens.Hash) (*tokens.Session, error) {
	session, err := h.config.Store.Lookup(ctx, hash)
	if err != nil {
		return nil, err
	}
	if session.Hash != hash || !session.Live(h.config.Now()) {
		return nil, errExpired
	}
	return session, nil
}

// readForm returns the form in a request's body; an empty body is an empty form. A repeated field
// is errMalformed ("parameters MUST NOT be included more than once", RFC 6749 §3.2).
func readForm(r *http.Request) (url.Values, error) {
	if r.ContentLength == 0 {
		return nil, nil
	}
	if r.ContentLength > maxForm {
		return nil, errTooLarge
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	switch {
	case err != nil:
		return nil, errClient
	case len(data) > maxForm:
		return nil, errTooLarge
	case len(data) == 0:
		return nil, nil
	}
	// In a body of another type, a token would be overlooked and the one in Authorization used.
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/x-www-form-urlencoded" {
		return nil, errNotAForm
	}
	form, err := url.ParseQuery(string(data))
	if err != nil {
		return nil, errMalformed
	}
	for _, values := range form {
		if len(values) > 1 {
			return nil, errMalformed
		}
	}
	return form, nil
}

// deny writes the response for an error of any call. An unavailable store is a 503, never a
// refusal.
func (h *Handler) deny(w http.ResponseWriter, err error) (outcome, error) {
	switch {
	case errors.Is(err, tokens.ErrUnavailable): // first, because it may wrap ErrUnknown
		writeRetry(w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
		return storeDown, err
	case errors.Is(err, errNoToken):
		unauthorized(w, convention.Challenge)
		return unauthorised, nil
	case errors.Is(err, tokens.ErrReused):
		unauthorized(w, convention.ChallengeInvalidToken)
		return reused, err
	case errors.Is(err, tokens.ErrMalformed), errors.Is(err, tokens.ErrUnknown):
		unauthorized(w, convention.ChallengeInvalidToken)
		return unauthorised, nil
	case errors.Is(err, errTooLarge):
		convention.WriteJSON(w, http.StatusRequestEntityTooLarge, convention.TextTooLarge)
		return tooLarge, nil
	case errors.Is(err, errNotAForm):
		convention.WriteJSON(w, http.StatusUnsupportedMediaType, textNotAForm)
		return unreadable, nil
	case errors.Is(err, errMalformed), errors.Is(err, errClient):
		convention.WriteJSON(w, http.StatusBadRequest, textUnreadable)
		return unreadable, nil
	}
	writeRetry(w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
	return failed, err
}

// seconds returns the remaining lifetime of a session's token in whole seconds, for expires_in.
func seconds(s *tokens.Session, now time.Time) int64 {
	return max(0, int64(math.Round(s.Expires.Sub(now).Seconds())))
}
