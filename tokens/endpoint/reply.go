package endpoint

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The answers' texts, each a JSON string. The first three are the old gateway's.
const (
	textUnauthorized = "You are not allowed to access this API!"
	textNotFound     = "Could not find any resources for given path."
	textMethod       = "Method not allowed"
	textTooMany      = "Too many logins, try again later."
	textUnavailable  = "The gateway cannot answer this now, try again later."
	textNoUsers      = "The user service does not answer, try again later."
	textSlow         = "The user service did not answer in time, try again later."
	textTooLarge     = "The request is too large."
	textNotAForm     = "The request's body is not a form (application/x-www-form-urlencoded)."
	textUnreadable   = "The request's body cannot be read."
	textAmbiguous    = "The login does not name its user in one way: " // and what to change
)

// challenge is the WWW-Authenticate of a 401 where no token was shown, and invalidToken of one where it was
// (RFC 6750 §3). One text for unknown, expired and revoked.
const (
	challenge    = `Bearer realm="gatepost"`
	invalidToken = `Bearer realm="gatepost", error="invalid_token"`
)

// retrySoon is the Retry-After where nobody knows better.
const retrySoon = time.Second

// Header values that are in every answer. They are shared and never written to.
var (
	valueNoStore = []string{"no-store"}
	valueNoCache = []string{"no-cache"}
	valueJSON    = []string{"application/json"}
)

// noStore keeps an answer out of every cache (RFC 6749 §5.1).
func noStore(header http.Header) {
	header["Cache-Control"] = valueNoStore
	header["Pragma"] = valueNoCache
}

// reply answers with a value as JSON. It cannot fail on the values that are given to it.
func reply(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`"internal error"`)
	}
	header := w.Header()
	noStore(header)
	header["Content-Type"] = valueJSON
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

func unauthorized(w http.ResponseWriter, challenge string) {
	w.Header().Set("WWW-Authenticate", challenge)
	reply(w, http.StatusUnauthorized, textUnauthorized)
}

func notFound(w http.ResponseWriter) { reply(w, http.StatusNotFound, textNotFound) }

func methodNotAllowed(w http.ResponseWriter, allowed methods) {
	names := make([]string, len(allowed))
	for i, m := range allowed {
		names[i] = m.name
	}
	w.Header().Set("Allow", strings.Join(names, ", "))
	reply(w, http.StatusMethodNotAllowed, textMethod)
}

// later answers that another try makes sense after a while.
func later(w http.ResponseWriter, status int, text string, after time.Duration) {
	seconds := max(1, int(math.Ceil(after.Seconds())))
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	reply(w, status, text)
}

// grant is the answer of RFC 6749 §5.1.
type grant struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"`
	Scope       string `json:"scope,omitempty"`
}

func newGrant(token string, expiresIn int64, scopes []string) grant {
	return grant{AccessToken: token, TokenType: "Bearer", ExpiresIn: expiresIn, Scope: strings.Join(scopes, " ")}
}

// handOver puts a token into an answer's headers, in place of whatever has their names.
func handOver(header http.Header, token string, expiresIn int64, exposed string) {
	header["Token"] = []string{token}
	header["Expires_in"] = []string{strconv.FormatInt(expiresIn, 10)}
	header["Access-Control-Expose-Headers"] = []string{exposed}
	noStore(header)
}
