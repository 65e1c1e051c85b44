package tokens

import (
	"time"
)

// Session is what a login opened and its token stands for. A *Session that a store or the cache returned is
// shared by whoever asks for it: it is never changed.
type Session struct {
	// Hash is the hash of the token that opens it.
	Hash Hash
	// ID is the public id, by which its owner or an operator can end it. It opens nothing.
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
