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

// Principal is who holds a token: of a [Session] what a decision about a request needs, in as little memory as it can be
// kept in. That is one string, which the collector of garbage never looks into; to read from it allocates nothing.
// The zero Principal is nobody. What prints it prints its hash's fingerprint.
type Principal struct {
	// packed is the hash, the id, Expires and Ends in nanoseconds since 1970, then the user and each scope, with
	// their lengths before them. An id that is no UUID is all zero.
	packed string
}

// Where what is of one length stands in a packed Principal.
const (
	packedID      = len(Hash{})
	packedExpires = packedID + 16
	packedEnds    = packedExpires + 8
	packedUser    = packedEnds + 8
)

// Principal returns who holds the session's token.
func (s *Session) Principal() Principal {
	var most [256]byte // enough for most: what is allocated is the string alone
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

// IsZero says whether h is nobody.
func (h Principal) IsZero() bool { return h.packed == "" }

// Hash is that of the token.
func (h Principal) Hash() (hash Hash) {
	copy(hash[:], h.packed)
	return hash
}

// Has says whether the token is the one with this hash.
func (h Principal) Has(hash Hash) bool {
	return !h.IsZero() && h.packed[:len(hash)] == string(hash[:])
}

// ID is the session's public id; empty where it has none.
func (h Principal) ID() string {
	var id uuid.UUID
	if !h.IsZero() {
		copy(id[:], h.packed[packedID:])
	}
	if id == uuid.Nil {
		return ""
	}
	return id.String()
}

// Expires is when the token expires.
func (h Principal) Expires() time.Time { return h.moment(packedExpires) }

// Ends is when the session ends, whatever its tokens' expiry.
func (h Principal) Ends() time.Time { return h.moment(packedEnds) }

// Live says whether the token opens anything at the time now.
func (h Principal) Live(now time.Time) bool { return now.Before(h.Expires()) }

// User is the user's id.
func (h Principal) User() string {
	if h.IsZero() {
		return ""
	}
	user, _ := cutText(h.packed[packedUser:])
	return user
}

// HasScope says whether the session has a scope.
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

// Size is how many bytes a Principal keeps beside itself.
func (h Principal) Size() int { return len(h.packed) }

func (h Principal) moment(at int) time.Time {
	if h.IsZero() {
		return time.Time{}
	}
	var b [8]byte
	copy(b[:], h.packed[at:])
	return time.Unix(0, int64(binary.BigEndian.Uint64(b[:]))).UTC()
}

// nanoseconds are those since 1970, or the most or the least that can be told so: of the years 2262 and 1677.
func nanoseconds(t time.Time) uint64 {
	switch {
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	case t.Before(time.Unix(0, math.MinInt64)):
		return 1 << 63
	}
	return uint64(t.UnixNano())
}

// String is the fingerprint of the token's hash.
func (h Principal) String() string { return h.Hash().String() }

// Format prints what String returns, whatever the verb.
func (h Principal) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(h.String())) }

// MarshalText is what String returns, for JSON and whatever else asks for text.
func (h Principal) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// LogValue is what String returns.
func (h Principal) LogValue() slog.Value { return slog.StringValue(h.String()) }

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// cutText returns the text at the beginning of what appendText has written, and the rest. What is cut short is empty.
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

// LookupFunc is the Lookup of a store, from which a principal is asked for.
type LookupFunc func(ctx context.Context, h Hash) (*Session, error)

// Principal asks for the session, and returns the principal of its token or the error.
func (f LookupFunc) Principal(ctx context.Context, h Hash) (Principal, error) {
	s, err := f(ctx, h)
	if err != nil || s == nil {
		return Principal{}, err
	}
	return s.Principal(), nil
}
