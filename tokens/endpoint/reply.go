package endpoint

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"gatepost/convention"
)

// The bodies of responses, each a JSON string.
const (
	textTooMany     = "Too many logins, try again later."
	textUnavailable = "The gateway cannot answer this now, try again later."
	textNoUsers     = "The user service does not answer, try again later."
	textSlow        = "The user service did not answer in time, try again later."
	textNotAForm    = "The request's body is not a form (application/x-www-form-urlencoded)."
	textUnreadable  = "The request's body cannot be read."
	textAmbiguous   = "The login does not name its user in one way: " // and what to change
)

// retrySoon is the default Retry-After.
const retrySoon = time.Second

func unauthorized(w http.ResponseWriter, challenge string) {
	w.Header().Set("WWW-Authenticate", challenge)
	convention.WriteJSON(w, http.StatusUnauthorized, convention.TextUnauthorized)
}

func notFound(w http.ResponseWriter) {
	convention.WriteJSON(w, http.StatusNotFound, convention.TextNotFound)
}

func methodNotAllowed(w http.ResponseWriter, allowed methods) {
	names := make([]string, len(allowed))
	for i, m := range allowed {
		names[i] = m.name
	}
	w.Header().Set("Allow", strings.Join(names, ", "))
	convention.WriteJSON(w, http.StatusMethodNotAllowed, convention.TextMethodNotAllowed)
}

// writeRetry writes a response that lets the client retry after a while.
func writeRetry(w http.ResponseWriter, status int, text string, after time.Duration) {
	seconds := max(1, int(math.Ceil(after.Seconds())))
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	convention.WriteJSON(w, status, text)
}

// grant is the response of RFC 6749 §5.1.
type grant struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"`
	Scope       string `json:"scope,omitempty"`
}

func newGrant(token string, expiresIn int64, scopes []string) grant {
	return grant{AccessToken: token, TokenType: "Bearer", ExpiresIn: expiresIn, Scope: strings.Join(scopes, " ")}
}

// setTokenHeaders sets the headers that carry a token, replacing existing ones.
func setTokenHeaders(header http.Header, token string, expiresIn int64, exposed string) {
	header["Token"] = []string{token}
	header["Expires_in"] = []string{strconv.FormatInt(expiresIn, 10)}
	header["Access-Control-Expose-Headers"] = []string{exposed}
	convention.NoStore(header)
}
