package admin

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"

	"gatepost/convention"
	"gatepost/tokens"
)

// maxLookup limits the body of a lookup, in bytes. A hash and its name need less than a hundred.
const maxLookup = 1 << 10

// LookupRequest asks for the session of a token. It is sent in a body, never in a URL, and
// identifies the token by its hash, which grants no access. The client does not send the token
// itself.
type LookupRequest struct {
	// TokenHash is the SHA-256 of the token, in hex.
	TokenHash string `json:"token_hash"`
}

// LookupResponse is the response to a LookupRequest.
type LookupResponse struct {
	// Session is the live session of the token, or nil if the token is unknown, expired or revoked.
	// The status is 200 in both cases, because a server without this API would respond with 404.
	Session *Session `json:"session"`
}

// lookup finds the session of a token in the store that requests are checked against. If the store
// is unavailable, it responds with 503.
func (s *Server) lookup(w http.ResponseWriter, r *http.Request) {
	body, err := wholeBody(w, r, maxLookup)
	var hash tokens.Hash
	if err == nil {
		hash, err = parseLookup(body)
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, "want token_hash: the SHA-256 of a token in hex")
		return
	}
	session, err := s.config.Sessions.Lookup(r.Context(), hash)
	switch {
	case errors.Is(err, tokens.ErrUnavailable):
		s.fail(w, err)
	case errors.Is(err, tokens.ErrUnknown):
		convention.WriteJSON(w, http.StatusOK, LookupResponse{})
	case err != nil:
		s.fail(w, err)
	default:
		convention.WriteJSON(w, http.StatusOK, LookupResponse{&NewSessions([]*tokens.Session{session})[0]})
	}
}

// parseLookup returns the hash in a LookupRequest. Errors do not quote the input, because it could
// be a token.
func parseLookup(body []byte) (hash tokens.Hash, err error) {
	var q LookupRequest
	if err := json.Unmarshal(body, &q); err != nil {
		return hash, err
	}
	decoded, err := hex.DecodeString(q.TokenHash)
	if err != nil {
		return hash, err
	}
	if len(decoded) != len(hash) {
		return hash, errors.New("not the length of a hash")
	}
	return tokens.Hash(decoded), nil
}
