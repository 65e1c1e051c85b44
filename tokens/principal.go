package tokens

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/google/uuid"
)

// Principal is the part of a [Session] needed to authorize a request, packed into one pointer-free
// string. Reading it does not allocate. The zero Principal is no principal. It prints as the
// fingerprint of its token's hash.
type Principal struct {
	// packed is the hash, the id, Expires and Ends in nanoseconds since 1970, then the user and
	// each scope, prefixed by their lengths. An invalid id is stored as zeros.
	packed string
}

// The offsets of the fields in a packed Principal.
const (
	packedID      = len(Hash{})
	packedExpires = packedID + 16
	packedEnds    = packedExpires + 8
	packedUser    = packedEnds + 8
)

// Principal returns the principal of the session's token.
func (s *Session) Principal() Principal {
	var most [256]byte // enough for most sessions, so only the string is allocated
	b := append(most[:0], s.Hash[:]...)
	id := uuid.Nil
	if canonicalUUID(s.ID) {
		id = uuid.MustParse(s.ID)
	}
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, nanoseconds(s.Expires))
	b = binary.BigEndian.AppendUint64(b, nanoseconds(s.Ends))
	b = appendText(b, s.User)
	for _, scope := range s.Scopes {
		b = appendText(b, scope)
	}
	return Principal{string(b)}
}

// IsZero reports whether h is the zero Principal.
func (h Principal) IsZero() bool { return h.packed == "" }

// Hash returns the token's hash.
func (h Principal) Hash() (hash Hash) {
	copy(hash[:], h.packed)
	return hash
}

// Has reports whether the token has this hash.
func (h Principal) Has(hash Hash) bool {
	return !h.IsZero() && h.packed[:len(hash)] == string(hash[:])
}

// UUID returns the session's public id, or uuid.Nil.
func (h Principal) UUID() (id uuid.UUID) {
	if !h.IsZero() {
		copy(id[:], h.packed[packedID:])
	}
	return id
}

// ID returns the session's public id as text, or "".
func (h Principal) ID() string {
	if id := h.UUID(); id != uuid.Nil {
		return id.String()
	}
	return ""
}

// Expires returns the token's expiry.
func (h Principal) Expires() time.Time { return h.moment(packedExpires) }

// Ends returns the end of the session, at which refreshes end too.
func (h Principal) Ends() time.Time { return h.moment(packedEnds) }

// Live reports whether the token is valid at the time now.
func (h Principal) Live(now time.Time) bool { return now.Before(h.Expires()) }

// User returns the user's id.
func (h Principal) User() string {
	if h.IsZero() {
		return ""
	}
	user, _ := cutText(h.packed[packedUser:])
	return user
}

// HasScope reports whether the session has a scope.
func (h Principal) HasScope(scope string) bool {
	if h.IsZero() {
		return false
	}
	_, rest := cutText(h.packed[packedUser:])
	for rest != "" {
		var one string
		if one, rest = cutText(rest); one == scope {
			return true
		}
	}
	return false
}

// Size returns the length of the packed string in bytes.
func (h Principal) Size() int { return len(h.packed) }

func (h Principal) moment(at int) time.Time {
	if h.IsZero() {
		return time.Time{}
	}
	var b [8]byte
	copy(b[:], h.packed[at:])
	return time.Unix(0, int64(binary.BigEndian.Uint64(b[:]))).UTC()
}

// nanoseconds returns the nanoseconds since 1970, clamped to the range of int64 (1677 to 2262).
func nanoseconds(t time.Time) uint64 {
	switch {
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	case t.Before(time.Unix(0, math.MinInt64)):
		return 1 << 63
	}
	return uint64(t.UnixNano())
}

// String returns the fingerprint of the token's hash.
func (h Principal) String() string { return h.Hash().String() }

// Format prints the result of String for every verb.
func (h Principal) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(h.String())) }

// MarshalText returns the result of String, for JSON and other encodings.
func (h Principal) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// LogValue returns the result of String.
func (h Principal) LogValue() slog.Value { return slog.StringValue(h.String()) }

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// cutText returns the first text that appendText has written, and the rest. A truncated text is "".
func cutText(packed string) (text, rest string) {
	n, shift := 0, 0
	for i := range len(packed) {
		n |= int(packed[i]&0x7f) << shift
		shift += 7
		if packed[i] >= 0x80 {
			continue
		}
		if n > len(packed)-i-1 {
			break
		}
		return packed[i+1 : i+1+n], packed[i+1+n:]
	}
	return "", ""
}

// LookupFunc is the Lookup method of a store, for callers that need principals.
type LookupFunc func(ctx context.Context, h Hash) (*Session, error)

// Principal looks the session up and returns its principal or the error.
func (f LookupFunc) Principal(ctx context.Context, h Hash) (Principal, error) {
	s, err := f(ctx, h)
	if err != nil || s == nil {
		return Principal{}, err
	}
	return s.Principal(), nil
}
