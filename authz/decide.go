package authz

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"gatepost/tokens"
)

// reason is why a request passes or does not. Its zero value lets nothing pass.
type reason uint8

const (
	noRule reason = iota // the route brought no rule, or none that can be read
	badUser
	storeDown
	callerGone
	originRefused
	tokenMissing
	tokenMalformed
	tokenUnknown
	scopeMissing
	public
	tokenKnown
	reasons // how many there are
)

// decision is the side on which a reason comes down. "No" and "cannot tell" are different things: a client that
// is told "no" throws its token away.
type decision string

const (
	allowed    decision = "allow"
	denied     decision = "deny"
	cannotTell decision = "error"
)

// decision and name label what is counted and logged.
func (r reason) decision() decision {
	switch r {
	case public, tokenKnown:
		return allowed
	case originRefused, tokenMissing, tokenMalformed, tokenUnknown, scopeMissing:
		return denied
	default: // fail closed: what is not known to be an answer is none
		return cannotTell
	}
}

var names = [reasons]string{
	noRule:         "no_rule",
	badUser:        "bad_user",
	storeDown:      "store_unavailable",
	callerGone:     "caller_gone",
	originRefused:  "origin_refused",
	tokenMissing:   "token_missing",
	tokenMalformed: "token_malformed",
	tokenUnknown:   "token_unknown",
	scopeMissing:   "scope_missing",
	public:         "public",
	tokenKnown:     "token_known",
}

func (r reason) String() string { return names[r] }

// verdict is a decision with what its answer is made from. The zero verdict lets nothing pass.
type verdict struct {
	reason reason
	// rule is the route's; the zero rule where the reason is noRule.
	rule rule
	// token is the hash of the token that was shown; zero where none was, or none that could be one.
	token tokens.Hash
	// shown is what the request shows of tokens outside Authorization, and what is left of it without them.
	shown shown
	// user is who the upstream is told the request is from; set where the reason is tokenKnown.
	user string
	// left is how long the token still lives, where the request could outlast it; else 0.
	left time.Duration
	// cause is what hindered the decision, where something did.
	cause error
}

// judge decides as far as can be told from the request itself. Where it says ask, everything is in order but
// for the token in the verdict: who holds it, [verdict.settle] must be told.
func (q *request) judge() (v verdict, ask bool) {
	r, err := q.carried.rule()
	if err != nil { // fail closed: a request whose rule is unknown must not pass
		return verdict{reason: noRule, cause: err}, false
	}
	v.rule = r
	if r.origins != "" && !listed(r.origins, q.origin) {
		v.reason = originRefused
		return v, false
	}
	var credentials credentials
	v.shown = q.look(&r, &credentials)
	if !r.authenticate {
		v.reason = public
		return v, false
	}
	credentials.authorization(q.authorization)
	switch {
	case credentials.bad:
		v.reason = tokenMalformed
		return v, false
	case !credentials.any:
		v.reason = tokenMissing
		return v, false
	}
	v.token = credentials.token
	return v, true
}

var errMixedUp = errors.New("the store answered with the session of another token")

// settle ends a decision with what the store said about the token, at the time now.
func (v *verdict) settle(h tokens.Holder, err error, now time.Time) {
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		v.reason = tokenUnknown
	case err != nil: // not a word about the token: never 401
		v.reason, v.cause = storeDown, err
	case !h.Has(v.token): // never another user's identity
		v.reason, v.cause = storeDown, errMixedUp
	case !h.Live(now):
		v.reason = tokenUnknown
	case !holds(h, v.rule.scopes):
		v.reason = scopeMissing
	case !presentable(h.User()):
		v.reason, v.cause = badUser, errors.New("the user's id cannot be put in a header")
	default:
		v.reason, v.user = tokenKnown, h.User()
		if left := h.Expires().Sub(now); v.rule.longest == 0 || left < v.rule.longest {
			v.left = left
		}
	}
}

// listed says whether origin is one of those in list, byte for byte. Neither "null", which is nobody's origin,
// nor several origins joined by a comma is ever listed.
func listed(list, origin string) bool {
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

// holds says whether a session has every scope of the list needed.
func holds(h tokens.Holder, needed string) bool {
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

// presentable says whether a user's id reaches the upstream as it is: a header's value without control
// characters, without spaces at its ends, which the receiver would cut off, and in UTF-8, which protobuf asks for.
func presentable(user string) bool {
	if user == "" || strings.TrimSpace(user) != user || !utf8.ValidString(user) {
		return false
	}
	return !strings.ContainsFunc(user, func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 })
}
