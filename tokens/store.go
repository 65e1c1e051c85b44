package tokens

import (
	"context"
	"errors"
)

var (
	// ErrUnknown says that no live session has this token or id: it was never issued, has expired, or was
	// revoked. A store that cannot tell returns [ErrUnavailable] and never this.
	ErrUnknown = errors.New("unknown token")

	// ErrUnavailable says that the store could not be asked or did not take what it was to keep. It says
	// nothing about the token.
	ErrUnavailable = errors.New("token store out of reach")

	// ErrReused says that a token which had been exchanged for a newer one was presented for a second
	// exchange. One of the two who hold it has no right to it, so its session has been ended (RFC 9700 §4.14.2).
	ErrReused = errors.New("token was refreshed before")
)

// Store keeps sessions. All its methods may be called at once from many goroutines; each keeps to the
// context's deadline. An error is [ErrUnavailable] (by errors.Is) wherever the store failed, whatever failed
// in it; the sentinels of a store's own driver never leave it.
//
// What a method has acknowledged outlives a crash of Gatepost: a revoked token does not come back.
type Store interface {
	// Create keeps a new session until its Expires. Where the user has more than limit live sessions
	// (limit > 0), the oldest are ended.
	Create(ctx context.Context, s *Session, limit int) error

	// Lookup returns the live session of a token, or ErrUnknown.
	Lookup(ctx context.Context, h Hash) (*Session, error)

	// Rotate ends the token old and keeps next, the same session under a new token, in its place. Where old was rotated
	// before it ends the session and returns ErrReused; where it is unknown, ErrUnknown. Of two
	// calls at once for one token at most one succeeds.
	Rotate(ctx context.Context, old Hash, next *Session) error

	// Revoke ends the session of a token. An unknown token is no error: it opens nothing already.
	Revoke(ctx context.Context, h Hash) error

	// Sessions lists a user's live sessions, the newest first.
	Sessions(ctx context.Context, user string) ([]*Session, error)

	// RevokeSession ends the session with a public id, or returns ErrUnknown. Where user is not empty, only
	// a session of that user's is ended.
	RevokeSession(ctx context.Context, user, id string) error

	// RevokeUser ends all sessions of a user and returns how many there were. A session whose Create began
	// before the call and has not returned is ended too, or its Create fails.
	RevokeUser(ctx context.Context, user string) (int, error)

	// Ping returns nil where the store can be asked now.
	Ping(ctx context.Context) error

	// Close gives up what the store holds. No other method may be called after it.
	Close() error
}
