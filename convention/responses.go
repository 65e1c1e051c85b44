package convention

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// The bodies that more than one part sends, each as a JSON string. They are those of the gateway that this one
// replaces. The first is the same for everything that can be wrong with a token, so that a client cannot distinguish
// the cases.
const (
	TextUnauthorized     = "You are not allowed to access this API!"
	TextNotFound         = "Could not find any resources for given path."
	TextMethodNotAllowed = "Method not allowed"
	TextTooLarge         = "The request is too large."
)

// The values of WWW-Authenticate (RFC 6750 §3): of a 401 without credentials, and of one for a token that is unknown,
// expired, revoked or malformed.
const (
	Challenge             = `Bearer realm="gatepost"`
	ChallengeInvalidToken = Challenge + `, error="invalid_token"`
)

// Header values that are in every response. They are shared and never written to.
var (
	valueNoStore = []string{"no-store"}
	valueNoCache = []string{"no-cache"}
	valueJSON    = []string{"application/json"}
)

// NoStore keeps a response out of every cache (RFC 6749 §5.1).
func NoStore(header http.Header) {
	header["Cache-Control"] = valueNoStore
	header["Pragma"] = valueNoCache
}

// WriteJSON writes a response with value as JSON, which no cache keeps. A value that has no JSON form becomes a 500.
func WriteJSON(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`"internal error"`)
	}
	WriteJSONText(w, status, body)
}

// WriteJSONText is WriteJSON for a body that is JSON already.
func WriteJSONText(w http.ResponseWriter, status int, body []byte) {
	header := w.Header()
	NoStore(header)
	header["Content-Type"] = valueJSON
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}
