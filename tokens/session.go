package tokens

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// MaxUserLength is the longest user id that a store keeps, in bytes.
const MaxUserLength = 4096

// ErrInvalid says that a session is not one that can be kept: its user is empty, too long or no UTF-8, it has
// no hash or no UUID for an id, or its times contradict each other or are past.
var ErrInvalid = errors.New("invalid session")

// Session is what a login opened and its token stands for. A *Session that a store or the cache returned is
// shared by whoever asks for it: it is never changed.
type Session struct {
	// Hash is the hash of the token that opens it.
	Hash Hash
	// ID is the public id, a UUID, by which its owner or an operator can end it. It opens nothing.
	ID string
	// User is the user's id as the user service gave it.
	User string
	// Scopes is what it may do beside being known, sorted.
	Scopes []string
	// Issued is when the user logged in.
	Issued time.Time
	// Expires is when its token ends; never later than Ends.
	Expires time.Time
	// Ends is when it ends, however often its token is refreshed.
	Ends time.Time
	// ClientAddress and UserAgent are where the user logged in from, as far as known.
	ClientAddress, UserAgent string
	// LastSeen and LastAddress are when and from where it was last used, as sampled: at most once a minute.
	LastSeen    time.Time
	LastAddress string
}

// Live says whether the session's token opens anything at the time now.
func (s *Session) Live(now time.Time) bool { return now.Before(s.Expires) }

// NewSession returns the session that a login opens at the time now for user: its token, whose hash is h, opens
// services for lifetime, and the session itself ends after sessionLifetime. It has a new public id, and its
// times are whole milliseconds in UTC. scopes is copied.
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

// Renewed returns the same session under a new token, whose hash is h: it opens services for lifetime from
// now, and never longer than the session lasts.
func (s *Session) Renewed(h Hash, now time.Time, lifetime time.Duration) *Session {
	next := *s
	next.Hash = h
	next.Expires = earlier(stamp(now).Add(lifetime), s.Ends)
	return &next
}

// valid returns nil, or [ErrInvalid] with what is wrong with s.
func (s *Session) valid() error {
	switch {
	case s.Hash == Hash{}:
		return fmt.Errorf("%w: it has no token", ErrInvalid)
	case !canonicalUUID(s.ID):
		return fmt.Errorf("%w: its id is no UUID", ErrInvalid)
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

// stamp is t as records keep it: whole milliseconds, in UTC.
func stamp(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
