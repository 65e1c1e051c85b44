package tokens

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrUnknown says that no live session has this token or id: it was never issued, has expired, or was
	// revoked. A store that cannot tell returns [ErrUnavailable] and never this.
	ErrUnknown = errors.New("unknown token")

	// ErrUnavailable says that the store could not be asked or did not take what it was to keep. It says
	// nothing about the token.
	ErrUnavailable = errors.New("token store out of reach")

	// ErrReused says that a token which had been exchanged for a newer one was presented for a second
	// exchange after its grace. One of the two who hold it has no right to it, so its session has been ended (RFC 9700 §4.14.2).
	ErrReused = errors.New("token was refreshed before")
)

// Store keeps sessions. All its methods may be called at once from many goroutines; each keeps to the
// context's deadline. An error is [ErrUnavailable] (by errors.Is) wherever the store failed, whatever failed
// in it; the sentinels of a store's own driver never leave it.
//
// What a method has acknowledged outlives a crash of Gatepost: a revoked token does not come back.
type Store interface {
	// Create keeps a new session until its Expires, or returns [ErrInvalid] where it is none that can be kept.
	// Where the user has more than limit live sessions (limit > 0), those whose tokens expire first are ended,
	// never the new one. The token may be handed out once Create has returned nil, and not otherwise: after an
	// error its session may still come to be.
	Create(ctx context.Context, s *Session, limit int) error

	// Lookup returns the live session of a token, or ErrUnknown.
	Lookup(ctx context.Context, h Hash) (*Session, error)

	// Rotate exchanges the token old for next, the same session under a new token: next has its ID, its User and its
	// Ends, or Rotate returns [ErrInvalid]. It returns the successor whose token may be handed out; as with Create, only
	// if the error is nil.
	//
	// During the grace old still opens services, until it expires itself, and Rotate with it returns the same successor to
	// every caller, whatever next is. So a call that failed can be repeated, and of calls at once all get one token. The
	// grace ends with the successor at the latest.
	// After the grace, or once the successor was exchanged itself, old is reused: Rotate ends the session and returns
	// ErrReused, until the session's Ends. Once the session was ended, and if old is unknown or expired, the error is
	// ErrUnknown or ErrReused. If grace is 0, old ends at once.
	Rotate(ctx context.Context, old Hash, next Successor, grace time.Duration) (Successor, error)

	// Revoke ends the session of a token, with all its tokens, by a token that was rotated too. An unknown token is no error: it
	// opens nothing already.
	Revoke(ctx context.Context, h Hash) error

	// Sessions lists a user's live sessions, the newest first.
	Sessions(ctx context.Context, user string) ([]*Session, error)

	// RevokeSession ends the session with a public id, or returns ErrUnknown. Where user is not empty, only
	// a session of that user's is ended.
	RevokeSession(ctx context.Context, user, id string) error

	// RevokeUser ends all sessions of a user and returns how many there were. A Create or Rotate that runs at
	// the same time has its session ended, or fails, or comes after the call as a whole: a session that is
	// live when the call returns was opened by a Create that took effect after the call did, and is listed.
	RevokeUser(ctx context.Context, user string) (int, error)

	// Ping returns nil where the store can be asked now.
	Ping(ctx context.Context) error

	// Close gives up what the store holds. No other method may be called after it.
	Close() error
}

// Toucher is a [Store] that keeps when and from where a session was last used, for [Store.Sessions] to tell. It
// is for samples: once a minute and session at the most, and never on the path of a request. A touch that is
// lost is no harm, and one that comes late brings no ended session back.
type Toucher interface {
	Touch(ctx context.Context, of Principal, at time.Time, address string) error
}
