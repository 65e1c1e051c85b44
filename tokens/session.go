package tokens

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// MaxUserLength is the maximum length of a user id, in bytes.
const MaxUserLength = 4096

// ErrInvalid means that a session cannot be stored: its user is empty, too long or not UTF-8, its
// hash is zero, its id is not a UUID, or its times are inconsistent or past.
var ErrInvalid = errors.New("invalid session")

// Session is a login's session. A *Session returned by a store or the cache is shared and must not
// be changed.
type Session struct {
	// Hash is the hash of the session's token.
	Hash Hash
	// ID is the public id, a UUID, by which the owner or an operator can end the session. It gives
	// no access.
	ID string
	// User is the user's id from the user service.
	User string
	// Scopes are the granted scopes, sorted.
	Scopes []string
	// Issued is the time of the login.
	Issued time.Time
	// Expires is the token's expiry, at most Ends.
	Expires time.Time
	// Ends is the end of the session, even if its token is refreshed.
	Ends time.Time
	// ClientAddress and UserAgent describe the client at the login, if known.
	ClientAddress, UserAgent string
	// LastSeen and LastAddress describe the last use, sampled at most once a minute.
	LastSeen    time.Time
	LastAddress string
}

// Live reports whether the session's token is valid at the time now.
func (s *Session) Live(now time.Time) bool { return now.Before(s.Expires) }

// NewSession returns the session of a login of user at the time now. Its token, with the hash h,
// expires after lifetime, and the session ends after sessionLifetime. It has a new public id and
// times of whole milliseconds in UTC. It copies scopes.
func NewSession(h Hash, user string, scopes []string, now time.Time, lifetime, sessionLifetime time.Duration) (*Session, error) {
	id, err := uuid.NewRandom()
	if err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	scopes = slices.Clone(scopes)
	slices.Sort(scopes)
	s := &Session{Hash: h, ID: id.String(), User: user, Scopes: slices.Compact(scopes), Issued: stamp(now)}
	s.Ends = s.Issued.Add(sessionLifetime)
	s.Expires = earlier(s.Issued.Add(lifetime), s.Ends)
	return s, s.valid()
}

// Renewed returns the same session with a new token that has the hash h and expires after lifetime,
// but at most when the session ends.
func (s *Session) Renewed(h Hash, now time.Time, lifetime time.Duration) *Session {
	next := *s
	next.Hash = h
	next.Expires = earlier(stamp(now).Add(lifetime), s.Ends)
	return &next
}

// valid returns nil, or [ErrInvalid] with the reason.
func (s *Session) valid() error {
	switch {
	case s.Hash == Hash{}:
		return fmt.Errorf("%w: it has no token", ErrInvalid)
	case !canonicalUUID(s.ID):
		return fmt.Errorf("%w: its id is not a UUID", ErrInvalid)
	case s.User == "":
		return fmt.Errorf("%w: it has no user", ErrInvalid)
	case len(s.User) > MaxUserLength:
		return fmt.Errorf("%w: its user has %d bytes, more than %d", ErrInvalid, len(s.User), MaxUserLength)
	case !utf8.ValidString(s.User):
		return fmt.Errorf("%w: its user is not UTF-8", ErrInvalid)
	case s.Issued.IsZero() || s.Expires.IsZero() || s.Expires.After(s.Ends):
		return fmt.Errorf("%w: its times contradict each other", ErrInvalid)
	}
	return nil
}

// stamp rounds t as records do: whole milliseconds, in UTC.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
