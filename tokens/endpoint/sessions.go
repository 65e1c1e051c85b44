package endpoint

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"gatepost/convention"
	"gatepost/tokens"
)

// sessionJSON is the JSON form of a session for its owner, without its token and its hash.
type sessionJSON struct {
	ID            string     `json:"id"`
	Current       bool       `json:"current"`
	Issued        time.Time  `json:"issued"`
	Expires       time.Time  `json:"expires"`
	Ends          time.Time  `json:"ends"`
	Scope         string     `json:"scope,omitempty"`
	ClientAddress string     `json:"client_address,omitempty"`
	UserAgent     string     `json:"user_agent,omitempty"`
	LastSeen      *time.Time `json:"last_seen,omitempty"`
	LastAddress   string     `json:"last_address,omitempty"`
}

// sessions lists the caller's sessions, the newest first.
func (h *Handler) sessions(w http.ResponseWriter, r *http.Request) (outcome, error) {
	caller, err := h.caller(r)
	if err != nil {
		return h.deny(w, err)
	}
	ctx, cancel := h.storeContext(r)
	defer cancel()
	all, err := h.config.Store.Sessions(ctx, caller.User)
	if err != nil {
		return h.deny(w, err)
	}
	list := make([]sessionJSON, 0, len(all))
	for _, s := range all {
		if s.User == caller.User { // guards against another user's session from the store
			list = append(list, newSessionJSON(s, caller))
		}
	}
	convention.WriteJSON(w, http.StatusOK, map[string][]sessionJSON{"sessions": list})
	return done, nil
}

func newSessionJSON(s, caller *tokens.Session) sessionJSON {
	l := sessionJSON{
		ID:            s.ID,
		Current:       s.ID == caller.ID,
		Issued:        s.Issued,
		Expires:       s.Expires,
		Ends:          s.Ends,
		Scope:         scopeText(s),
		ClientAddress: s.ClientAddress,
		UserAgent:     s.UserAgent,
		LastAddress:   s.LastAddress,
	}
	if !s.LastSeen.IsZero() {
		l.LastSeen = &s.LastSeen
	}
	return l
}

// endedJSON is the response to a call that ends sessions: their number.
type endedJSON struct {
	Ended int `json:"ended"`
}

// endSessions ends all sessions of the caller.
func (h *Handler) endSessions(w http.ResponseWriter, r *http.Request) (outcome, error) {
	caller, err := h.caller(r)
	if err != nil {
		return h.deny(w, err)
	}
	ctx, cancel := h.storeContext(r)
	defer cancel()
	n, err := h.config.Store.RevokeUser(ctx, caller.User)
	if err != nil {
		return h.deny(w, err)
	}
	convention.WriteJSON(w, http.StatusOK, endedJSON{n})
	return done, nil
}

// endSession ends one of the caller's sessions. Another user's session is reported as unknown.
func (h *Handler) endSession(w http.ResponseWriter, r *http.Request) (outcome, error) {
	caller, err := h.caller(r)
	if err != nil {
		return h.deny(w, err)
	}
	ctx, cancel := h.storeContext(r)
	defer cancel()
	err = h.config.Store.RevokeSession(ctx, caller.User, r.PathValue("id"))
	if errors.Is(err, tokens.ErrUnknown) && !errors.Is(err, tokens.ErrUnavailable) {
		notFound(w)
		return unknown, nil
	}
	if err != nil {
		return h.deny(w, err)
	}
	convention.WriteJSON(w, http.StatusOK, endedJSON{1})
	return done, nil
}

func scopeText(s *tokens.Session) string { return strings.Join(s.Scopes, " ") }
