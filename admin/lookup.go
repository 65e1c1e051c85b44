package admin

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"gatepost/convention"
	"gatepost/tokens"
)

// maxQuestion bounds the body of a question, in bytes: a hash and its name are less than a hundred.
const maxQuestion = 1 << 10

// Question asks whose a token is. It stands in a body, never in a URL, and names the token by its hash, which opens
// nothing: the token itself stays with who asks.
type Question struct {
	// TokenHash is the SHA-256 of the token, in hex.
	TokenHash string `json:"token_hash"`
}

// Found answers a Question.
type Found struct {
	// Session is the live session of the token; nil: the token was never issued, has expired or was revoked. That is
	// said with a 200, because a 404 would also come from a server that knows no such question.
	Session *Session `json:"session"`
}

// lookup tells whose a token is, by the very store that decides about requests. A store that cannot tell is a 503.
func (s *Server) lookup(w http.ResponseWriter, r *http.Request) {
	hash, err := readQuestion(http.MaxBytesReader(w, r.Body, maxQuestion))
	if err != nil {
		convention.WriteJSON(w, http.StatusBadRequest, map[string]string{"error": "want the SHA-256 of a token, in hex, as token_hash"})
		return
	}
	session, err := s.config.Sessions.Lookup(r.Context(), hash)
	switch {
	case errors.Is(err, tokens.ErrUnavailable):
		s.fail(w, err)
	case errors.Is(err, tokens.ErrUnknown):
		convention.WriteJSON(w, http.StatusOK, Found{})
	case err != nil:
		s.fail(w, err)
	default:
		convention.WriteJSON(w, http.StatusOK, Found{&Show([]*tokens.Session{session})[0]})
	}
}

// readQuestion returns the hash that is asked about. What is wrong with it is not repeated: it may be a token.
func readQuestion(body io.Reader) (hash tokens.Hash, err error) {
	var q Question
	if err := json.NewDecoder(body).Decode(&q); err != nil {
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
