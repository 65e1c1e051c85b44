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
	errOver      = fmt.Errorf("%w: its session is over", tokens.ErrUnknown) // by our clock or in spite of the store
)

// call counts and logs what comes of a call below the token path.
func (h *Handler) call(name string, f func(http.ResponseWriter, *http.Request) (outcome, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o, err := f(w, r)
		h.metrics.calls.WithLabelValues(name, string(o)).Inc()
		level := o.level()
		if level == slog.LevelInfo {
			level = slog.LevelDebug
		}
		if !h.config.Logger.Enabled(r.Context(), level) {
			return
		}
		c := clientOf(r)
		attributes := []slog.Attr{
			slog.String("call", name), slog.String("outcome", string(o)),
			slog.String("request_id", c.requestID), slog.String("client", c.String()),
		}
		if err != nil {
			attributes = append(attributes, slog.Any("error", err))
		}
		h.config.Logger.LogAttrs(r.Context(), level, "token call", attributes...)
	}
}

// revoke ends the session of the token in the form, else of the one in Authorization (RFC 7009 §2). That no such session is there
// is what the caller wanted.
func (h *Handler) revoke(w http.ResponseWriter, r *http.Request) (outcome, error) {
	token, err := presented(r, "token")
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

// refresh exchanges the presented token for a new one. Within the grace a repeated call gets the same one.
func (h *Handler) refresh(w http.ResponseWriter, r *http.Request) (outcome, error) {
	settings := h.settings()
	if settings == nil {
		return h.deny(w, errors.New("no definitions are served"))
	}
	old, err := presented(r, "refresh_token", "token")
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
	handOver(w.Header(), token.Reveal(), expiresIn, "token,expires_in")
	convention.WriteJSON(w, http.StatusOK, newGrant(token.Reveal(), expiresIn, session.Scopes))
	return done, nil
}

// rotate exchanges old for a new token of the same session, and returns the one to hand out: another call may have
// exchanged it before.
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
		return tokens.Token{}, nil, errors.Join(errors.New("the store took one session for another"), h.config.Store.Revoke(ctx, next.Hash))
	}
	token, err = old.Unseal(given.Token, given.Session.Hash)
	return token, given.Session, err
}

// nobody is the user of a session that no store may take. No user service can name it: a header has no NUL.
const nobody = "nobody\x00"

// next returns the session under its next token. If old opens nothing, the store is still asked, because it may be in its
// grace or be reused, but it is offered a session of nobody: should old be live after all, it refuses that, and nothing
// changes.
func (h *Handler) next(ctx context.Context, old, hash tokens.Hash, now time.Time, lifetime time.Duration) (*tokens.Session, error) {
	session, err := h.lookup(ctx, old)
	switch {
	case errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, errOver):
		return tokens.NewSession(hash, nobody, nil, now, time.Minute, time.Minute)
	case err != nil:
		return nil, err
	}
	return session.Renewed(hash, now, lifetime), nil
}

// introspection is the answer of RFC 7662 §2.2.
type introspection struct {
	Active    bool   `json:"active"`
	Scope     string `json:"scope,omitempty"`
	Subject   string `json:"sub,omitempty"`
	TokenType string `json:"token_type,omitempty"`
	Issued    int64  `json:"iat,omitempty"`
	Expires   int64  `json:"exp,omitempty"`
	ID        string `json:"sid,omitempty"`
}

// introspect tells a caller about its own token. Of any other it says what it says of none (RFC 7662 §2.2).
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

// presented returns the token that a call is about: of the first of the form's fields that is there, else of
// Authorization. It is errNoToken, [tokens.ErrMalformed] or the form's error where there is none.
func presented(r *http.Request, fields ...string) (tokens.Token, error) {
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

// lookup is the store's, and takes its word for nothing that can be checked here.
func (h *Handler) lookup(ctx context.Context, hash tokens.Hash) (*tokens.Session, error) {
	session, err := h.config.Store.Lookup(ctx, hash)
	if err != nil {
		return nil, err
	}
	if session.Hash != hash || !session.Live(h.config.Now()) {
		return nil, errOver
	}
	return session, nil
}

// readForm returns the form in a request's body; no body is an empty form. A field that is given twice makes
// it errMalformed ("parameters MUST NOT be included more than once", RFC 6749 §3.2).
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
	// A token in a body of another type would not be seen, and the one in Authorization taken for it.
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

// deny is the one place where an error of a call becomes an answer. What is not known is a 503: "no" and
// "can't tell" are different things.
func (h *Handler) deny(w http.ResponseWriter, err error) (outcome, error) {
	switch {
	case errors.Is(err, tokens.ErrUnavailable): // first: it says nothing about the token, whatever else it is
		later(w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
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
		convention.WriteJSON(w, http.StatusRequestEntityTooLarge, textTooLarge)
		return tooLarge, nil
	case errors.Is(err, errNotAForm):
		convention.WriteJSON(w, http.StatusUnsupportedMediaType, textNotAForm)
		return unreadable, nil
	case errors.Is(err, errMalformed), errors.Is(err, errClient):
		convention.WriteJSON(w, http.StatusBadRequest, textUnreadable)
		return unreadable, nil
	}
	later(w, http.StatusServiceUnavailable, textUnavailable, retrySoon)
	return failed, err
}

// seconds is how long a session's token opens services, in whole seconds as expires_in has it.
func seconds(s *tokens.Session, now time.Time) int64 {
	return max(0, int64(math.Round(s.Expires.Sub(now).Seconds())))
}
