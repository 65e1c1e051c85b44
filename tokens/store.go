package tokens

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrUnknown means that no live session has this token or id: it was never issued, has expired,
	// or was revoked. If a store cannot determine that, it returns [ErrUnavailable] instead.
	ErrUnknown = errors.New("unknown token")

	// ErrUnavailable means that the store could not be read or written. It implies nothing about
	// the token.
	ErrUnavailable = errors.New("token store out of reach")

	// ErrReused means that an exchanged token was used for a second exchange after its grace. One
	// of its two holders is an attacker, so its session has been ended (RFC 9700 §4.14.2).
	ErrReused = errors.New("token was refreshed before")
)

// Store stores sessions. Its methods are safe for concurrent use and respect the context's
// deadline. If the store fails in any way, the error is [ErrUnavailable] (by errors.Is). Errors of
// the store's driver are not returned.
//
// Acknowledged changes survive a crash of the gateway: a revoked token stays revoked.
type Store interface {
	// Create stores a new session until its Expires, or returns [ErrInvalid]. If the user then has
	// more than limit live sessions (limit > 0), those that expire first are ended, never the new
	// one. The token may be returned to the client only if the error is nil. After an error, the
	// session may still be stored.
	Create(ctx context.Context, s *Session, limit int) error

	// Lookup returns the live session of a token, or ErrUnknown.
	Lookup(ctx context.Context, h Hash) (*Session, error)

	// Rotate exchanges the token old for next, the same session with a new token. If next has
	// another ID, User or Ends, Rotate returns [ErrInvalid]. It returns the successor. Its token
	// may be returned to the client only if the error is nil.
	//
	// During the grace, old stays valid until it expires, and Rotate returns the same successor to
	// every caller, whatever next is. So a failed call can be repeated, and concurrent calls get
	// one token. The grace ends with the successor at the latest. After the grace, or after the
	// successor was exchanged, old is reused: until the session's Ends, Rotate ends the session and
	// returns ErrReused. If the session was ended, or old is unknown or expired, the error is
	// ErrUnknown or ErrReused. If grace is 0, old ends at once.
	Rotate(ctx context.Context, old Hash, next Successor, grace time.Duration) (Successor, error)

	// Revoke ends the session of a token with all its tokens. A rotated token works too. An unknown
	// token is not an error.
	Revoke(ctx context.Context, h Hash) error

	// Sessions lists a user's live sessions, the newest first.
	Sessions(ctx context.Context, user string) ([]*Session, error)

	// RevokeSession ends the session with a public id, or returns ErrUnknown. If user is not empty,
	// the session must belong to that user.
	RevokeSession(ctx context.Context, user, id string) error

	// RevokeUser ends all sessions of a user and returns their number. A concurrent Create or
	// Rotate is ended, fails, or takes effect after the call. So a session that is live after the
	// call was created after it, and is listed.
	RevokeUser(ctx context.Context, user string) (int, error)

	// Ping returns nil if the store is available.
	Ping(ctx context.Context) error

	// Close releases the store's resources. No other method may be called after it.
	Close() error
}

// Toucher is a [Store] that records the last use of sessions for [Store.Sessions]. Calls are
// samples, at most one per minute and session, and never on the path of a request. A lost call is
// harmless, and a late one does not restore an ended session.
type Toucher interface {
	Touch(ctx context.Context, of Principal, at time.Time, address string) error
}

// Ender is a [Store] that can end the session of a known principal in one step.
type Ender interface {
	// End ends the session of a token as [Store.Revoke] does, and reports whether it has. False means that Revoke must
	// do it: the session has another token by now, or the store cannot end it in one step.
	End(ctx context.Context, of Principal) (bool, error)
}
