package authz

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"gatepost/tokens"
)

// Reason is why a request passes or does not. The zero Reason lets nothing pass.
type Reason uint8

// The reasons, each with its label in metrics and logs (see [Reason.String]).
const (
	ReasonNoRule Reason = iota // the route carries no rule, or an invalid one
	ReasonBadUser
	ReasonStoreUnavailable
	ReasonCallerGone
	ReasonOriginRefused
	ReasonTokenMissing
	ReasonTokenMalformed
	ReasonTokenUnknown
	ReasonScopeMissing
	ReasonPublic
	ReasonTokenKnown
	reasons // the number of reasons
)

// Outcome is the side of a decision. "Denied" and "cannot tell" differ: a client whose request is denied throws its
// token away.
type Outcome string

// The outcomes, as they appear in metrics and logs.
const (
	Allowed    Outcome = "allow"
	Denied     Outcome = "deny"
	CannotTell Outcome = "error"
)

// Outcome returns the outcome that a reason leads to.
func (r Reason) Outcome() Outcome {
	switch r {
	case ReasonPublic, ReasonTokenKnown:
		return Allowed
	case ReasonOriginRefused, ReasonTokenMissing, ReasonTokenMalformed, ReasonTokenUnknown, ReasonScopeMissing:
		return Denied
	default: // fail closed: an unknown reason is no decision
		return CannotTell
	}
}

var labels = [reasons]string{
	ReasonNoRule:           "no_rule",
	ReasonBadUser:          "bad_user",
	ReasonStoreUnavailable: "store_unavailable",
	ReasonCallerGone:       "caller_gone",
	ReasonOriginRefused:    "origin_refused",
	ReasonTokenMissing:     "token_missing",
	ReasonTokenMalformed:   "token_malformed",
	ReasonTokenUnknown:     "token_unknown",
	ReasonScopeMissing:     "scope_missing",
	ReasonPublic:           "public",
	ReasonTokenKnown:       "token_known",
}

func (r Reason) String() string { return labels[r] }

// Decision is the result of [Decide]. The zero Decision lets nothing pass.
type Decision struct {
	Reason Reason
	// Token is the hash of the presented token, or zero if there is none or a malformed one.
	Token tokens.Hash
	// LookedUp reports whether the session of the token was looked up.
	LookedUp bool
	// User is the id that the upstream receives. It is set if Reason is ReasonTokenKnown.
	User string
	// Err is what prevented a decision. It is nil if the outcome is not CannotTell.
	Err error

	// principal is the principal of a live token. It is set if Reason is ReasonTokenKnown, ReasonScopeMissing or
	// ReasonBadUser.
	principal tokens.Principal

	rule     rule            // the zero rule if Reason is ReasonNoRule
	stripped strippedHeaders // the request's headers without the tokens in them
	left     time.Duration   // the lifetime of the token if the request could outlast it, else 0
}

// Outcome returns the outcome of the decision.
func (d *Decision) Outcome() Outcome { return d.Reason.Outcome() }

// Decide decides whether a request may pass. The rule is the one that the request carries. It changes nothing, and
// calls sessions at most once: only if the request needs a token and presents one that is well-formed. now is called
// after that.
func Decide(ctx context.Context, r *Request, sessions Sessions, now func() time.Time) Decision {
	d, needsSession := evaluate(r)
	if !needsSession {
		return d
	}
	d.LookedUp = true
	principal, err := sessions.Principal(ctx, d.Token)
	d.resolve(principal, err, now())
	if d.Reason == ReasonStoreUnavailable && ctx.Err() != nil {
		d.Reason = ReasonCallerGone // nobody waits for the response, and the store is not to blame
	}
	return d
}

// evaluate makes every decision that needs no session. If needsSession is true, the caller must look up d.Token and
// pass the result to resolve.
func evaluate(q *Request) (d Decision, needsSession bool) {
	r, err := q.rawRule.parse()
	if err != nil { // fail closed: a request without a valid rule must not pass
		return Decision{Reason: ReasonNoRule, Err: err}, false
	}
	d.rule = r
	if r.origins != "" && !originAllowed(r.origins, q.origin) {
		d.Reason = ReasonOriginRefused
		return d, false
	}
	var credentials credentials
	d.stripped = q.extractCredentials(&r, &credentials)
	if !r.authenticate {
		d.Reason = ReasonPublic
		return d, false
	}
	credentials.authorization(q.authorization)
	switch {
	case credentials.bad:
		d.Reason = ReasonTokenMalformed
		return d, false
	case !credentials.any:
		d.Reason = ReasonTokenMissing
		return d, false
	}
	d.Token = credentials.token
	return d, true
}

var (
	errWrongSession = errors.New("the store returned the session of another token")
	errUserID       = errors.New("the user's id is not a valid header value")
)

// resolve completes a decision with the result of the look-up, at the time now.
func (d *Decision) resolve(h tokens.Principal, err error, now time.Time) {
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		d.Reason = ReasonTokenUnknown
	case err != nil: // the token may be valid: never 401
		d.Reason, d.Err = ReasonStoreUnavailable, err
	case !h.Has(d.Token): // never another user's identity
		d.Reason, d.Err = ReasonStoreUnavailable, errWrongSession
	case !h.Live(now):
		d.Reason = ReasonTokenUnknown
	case !hasScopes(h, d.rule.scopes):
		d.Reason, d.principal = ReasonScopeMissing, h
	case !validHeaderValue(h.User()):
		d.Reason, d.Err, d.principal = ReasonBadUser, errUserID, h
	default:
		d.Reason, d.User, d.principal = ReasonTokenKnown, h.User(), h
		if left := h.Expires().Sub(now); d.rule.longest == 0 || left < d.rule.longest {
			d.left = left
		}
	}
}

// originAllowed reports whether origin is in list, byte for byte. "null", which is nobody's origin, and several origins
// joined by a comma never are.
func originAllowed(list, origin string) bool {
	if origin == "" || origin == "null" || strings.ContainsAny(origin, ", ") {
		return false
	}
	for one := range strings.SplitSeq(list, " ") {
		if one == origin {
			return true
		}
	}
	return false
}

// hasScopes reports whether a session has every scope of the list needed.
func hasScopes(h tokens.Principal, needed string) bool {
	if needed == "" {
		return true
	}
	for one := range strings.SplitSeq(needed, " ") {
		if one != "" && !h.HasScope(one) {
			return false
		}
	}
	return true
}

// validHeaderValue reports whether a user's id reaches the upstream unchanged: UTF-8, which protobuf requires, without
// control characters and without spaces at its ends, which the receiver would trim.
func validHeaderValue(user string) bool {
	if user == "" || strings.TrimSpace(user) != user || !utf8.ValidString(user) {
		return false
	}
	return !strings.ContainsFunc(user, func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 })
}
