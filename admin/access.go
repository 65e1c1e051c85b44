package admin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"gatepost/convention"
	"gatepost/tokens/shield"
)

// Role is what a token of operators permits. A role includes the roles before it.
type Role int

// The roles. Anonymous is the role without a token.
const (
	Anonymous Role = iota
	Read
	Operate
)

// permission is what a call needs.
type permission int

const (
	// none: no token is needed.
	none permission = iota
	// reads: any token. On a local address none is needed.
	reads
	// ends: a token with the role operate. On a local address without a token file none is needed, because ending sessions
	// was open there before there were tokens, and it only takes access away.
	ends
	// operates: a token with the role operate. What gives access or changes what is served is never open.
	operates
)

// Caller is the caller of a call of the admin API.
type Caller struct {
	// Name is the name of the token.
	Name string
	Role Role
}

// guesses limits wrong tokens of one client address. A token has at least 32 characters, so the limit protects the log
// more than the tokens.
var guesses = shield.Settings{Address: shield.Limit{Failures: 20, Forgive: 30 * time.Second, Base: time.Second, Cap: time.Minute}}

// access decides which caller may make which call.
type access struct {
	local  bool       // the address is loopback or a Unix socket
	file   *tokenFile // nil: there is none
	link   link
	shield *shield.Shield
	logger *slog.Logger

	// checking is held while a wrong token is counted: the shield counts concurrent tries of one address as failures.
	checking sync.Mutex
}

// IsLocal reports whether only processes of this machine reach an address of the flags.
func IsLocal(address string) bool {
	if strings.HasPrefix(address, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// callerKey is the key of the Caller in the context of a request.
type callerKey struct{}

// callerOf returns the caller of a request that require has passed on.
func callerOf(r *http.Request) Caller {
	caller, _ := r.Context().Value(callerKey{}).(Caller)
	return caller
}

// by returns the name of the caller, for the log.
func by(r *http.Request) string {
	return cmp.Or(callerOf(r).Name, "local, without a token")
}

// require serves next to callers with the permission. A wrong token is refused even if none is needed, so that its
// owner notices.
func (a *access) require(p permission, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := a.identify(r)
		switch {
		case err != nil:
			a.respondRefused(w, r, err)
		case a.permits(caller.Role, p):
			next(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
		case caller.Role == Anonymous:
			w.Header().Set("WWW-Authenticate", `Bearer realm="gatepost admin"`)
			writeError(w, http.StatusUnauthorized, "this call needs a token of --admin-token-file: send Authorization: Bearer TOKEN")
		default:
			a.logger.Warn("admin call refused", "by", caller.Name, "client", r.RemoteAddr, "method", r.Method, "path", r.URL.Path,
				convention.EventAdminRefused.Attr())
			writeError(w, http.StatusForbidden, "this call needs a token with the role operate")
		}
	})
}

// respondRefused responds to a wrong token with the error of refuse.
func (a *access) respondRefused(w http.ResponseWriter, r *http.Request, err error) {
	if throttled := (*shield.Refusal)(nil); errors.As(err, &throttled) {
		w.Header().Set("Retry-After", strconv.Itoa(int(throttled.RetryAfter/time.Second)+1))
		writeError(w, http.StatusTooManyRequests, "too many wrong tokens from this address; try again later")
		return
	}
	a.logger.Warn("admin token refused", "client", r.RemoteAddr, "method", r.Method, "path", r.URL.Path, convention.EventAdminRefused.Attr())
	w.Header().Set("WWW-Authenticate", `Bearer realm="gatepost admin", error="invalid_token"`)
	writeError(w, http.StatusUnauthorized, err.Error())
}

func (a *access) permits(role Role, p permission) bool {
	switch p {
	case none:
		return true
	case reads:
		return a.local || role >= Read
	case ends:
		return a.local && a.file == nil || role >= Operate
	}
	return role >= Operate
}

var (
	errNotBearer = errors.New("want one header Authorization: Bearer TOKEN")
	errNoToken   = errors.New("the token is not one of --admin-token-file")
)

// identify returns the caller of a request. The error is a *shield.Refusal after too many wrong tokens.
func (a *access) identify(r *http.Request) (Caller, error) {
	sent := r.Header.Values("Authorization")
	if len(sent) == 0 {
		return Caller{}, nil
	}
	scheme, token, _ := strings.Cut(sent[0], " ")
	err := errNotBearer
	if len(sent) == 1 && strings.EqualFold(scheme, "Bearer") {
		caller := a.owner(sha256.Sum256([]byte(strings.TrimSpace(token))))
		if caller.Role > Anonymous {
			return caller, nil
		}
		err = errNoToken
	}
	return Caller{}, a.refuse(r, err)
}

// refuse counts a wrong token and returns its error, or a *shield.Refusal after too many. Right tokens are not counted
// and never refused: others behind the same address cannot lock an operator out.
func (a *access) refuse(r *http.Request, wrong error) error {
	client := netip.IPv4Unspecified() // all clients of a Unix socket
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		client = from.Addr()
	}
	a.checking.Lock()
	defer a.checking.Unlock()
	pass, err := a.shield.Admit(r.Context(), &guesses, client, "")
	if err != nil {
		return err
	}
	pass.Done(r.Context(), shield.Refused)
	return wrong
}

// owner returns the owner of the token with a hash, or the zero Caller. Its duration does not depend on the hash.
func (a *access) owner(hash [sha256.Size]byte) (owner Caller) {
	for _, one := range a.file.current() {
		if subtle.ConstantTimeCompare(one.hash[:], hash[:]) == 1 {
			owner = one.Caller
		}
	}
	if a.link.owns(hash) {
		owner = linkCaller
	}
	return owner
}

func writeError(w http.ResponseWriter, code int, text string) {
	convention.WriteJSON(w, code, map[string]string{"error": text})
}

// may returns what the caller of a request may do: read, end (sessions) or operate.
func (a *access) may(r *http.Request) string {
	caller := callerOf(r)
	switch {
	case a.permits(caller.Role, operates):
		return "operate"
	case a.permits(caller.Role, ends):
		return "end"
	}
	return "read"
}
