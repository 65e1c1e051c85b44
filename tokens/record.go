package tokens

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	gatewayv1 "gatepost/proto/gatepost/v1"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// ErrCorrupt means that the value under a token's key is not the record of that token. It always
// comes with [ErrUnavailable]: the token is neither accepted nor reported as unknown, because an
// operator has to inspect the store.
var ErrCorrupt = errors.New("corrupt token record")

// RedisPrefix precedes the hash of a token in the name of its key in Redis. tokens/redisstore writes these keys, and
// tokens/cache tracks their changes.
const RedisPrefix = "gatepost:tok:"

// maxClientText bounds the client-supplied texts in a record, in bytes.
const maxClientText = 256

// Record is the value that a store has under a token's hash.
type Record struct {
	Session *Session
	// Retired means that the token was exchanged for a new one.
	Retired bool
	// Next is the new token's hash and Successor the sealed new token. They are kept until
	// GraceEnds. Until then a repeated exchange returns the successor. The retired token stays
	// valid until the session's Expires, which is not later.
	Next      Hash
	Successor Sealed
	GraceEnds time.Time
}

// Live reports whether the token is valid at the time now.
func (r *Record) Live(now time.Time) bool {
	return r.Session.Live(now) && (!r.Retired || r.hasSuccessor())
}

// InGrace reports whether the token was exchanged and a repeated exchange still returns its
// successor.
func (r *Record) InGrace(now time.Time) bool {
	return r.Retired && r.hasSuccessor() && now.Before(r.GraceEnds)
}

func (r *Record) hasSuccessor() bool { return r.Next != Hash{} }

// EncodeRecord returns the bytes to store under s.Hash, or [ErrInvalid]. It cuts client-supplied
// texts to 256 bytes of UTF-8.
func EncodeRecord(s *Session) ([]byte, error) { return encode(s, &gatewayv1.Session{}) }

// EncodePredecessor returns the bytes that replace s's record until the grace ends, after its token
// was exchanged for next.
func EncodePredecessor(s *Session, next Successor, graceEnds time.Time) ([]byte, error) {
	before, hash := *s, next.Session.Hash
	before.Expires = earlier(s.Expires, graceEnds)
	return encode(&before, &gatewayv1.Session{
		Retired: true, SuccessorHash: hash[:], Successor: next.Token, GraceEnds: timestamppb.New(graceEnds),
	})
}

// EncodeRetired returns the bytes that replace s's record after the grace, until the session ends.
// They suffice to end the session if the token is used for another exchange.
func EncodeRetired(s *Session) ([]byte, error) {
	return encode(&Session{Hash: s.Hash, ID: s.ID, User: s.User, Issued: s.Issued, Expires: s.Expires, Ends: s.Ends},
		&gatewayv1.Session{Retired: true})
}

// encode adds s to a record and returns its bytes.
func encode(s *Session, record *gatewayv1.Session) ([]byte, error) {
	if err := s.valid(); err != nil {
		return nil, err
	}
	record.TokenHash = s.Hash[:]
	record.Id = s.ID
	record.User = s.User
	record.Issued = timestamppb.New(s.Issued)
	record.Expires = timestamppb.New(s.Expires)
	record.Ends = timestamppb.New(s.Ends)
	record.Scopes = s.Scopes
	record.ClientAddress = clip(s.ClientAddress)
	record.UserAgent = clip(s.UserAgent)
	record.LastSeen = optional(s.LastSeen)
	record.LastAddress = clip(s.LastAddress)
	data, err := proto.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return data, nil
}

// DecodeRecord decodes the value under h. If it is not h's record, the error is [ErrUnavailable]
// and [ErrCorrupt].
func DecodeRecord(h Hash, data []byte) (*Record, error) {
	var record gatewayv1.Session
	if err := proto.Unmarshal(data, &record); err != nil {
		return nil, corrupt(h, "the record cannot be decoded")
	}
	if subtle.ConstantTimeCompare(record.GetTokenHash(), h[:]) != 1 {
		return nil, corrupt(h, "the record belongs to another token")
	}
	s := &Session{
		Hash:          h,
		ID:            record.GetId(),
		User:          record.GetUser(),
		Scopes:        record.GetScopes(),
		Issued:        moment(record.GetIssued()),
		Expires:       moment(record.GetExpires()),
		Ends:          moment(record.GetEnds()),
		ClientAddress: record.GetClientAddress(),
		UserAgent:     record.GetUserAgent(),
		LastSeen:      moment(record.GetLastSeen()),
		LastAddress:   record.GetLastAddress(),
	}
	if err := s.valid(); err != nil {
		return nil, corrupt(h, err.Error())
	}
	r := &Record{
		Session: s, Retired: record.GetRetired(), Successor: record.GetSuccessor(), GraceEnds: moment(record.GetGraceEnds()),
	}
	if n := copy(r.Next[:], record.GetSuccessorHash()); n != len(record.GetSuccessorHash()) || n != 0 && n != len(r.Next) {
		return nil, corrupt(h, "its successor has no hash")
	}
	return r, nil
}

func corrupt(h Hash, why string) error {
	return fmt.Errorf("%w: %w: token %v: %s", ErrUnavailable, ErrCorrupt, h, why)
}

// clip returns valid UTF-8 of at most maxClientText bytes, cut between characters.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= maxClientText {
		return text
	}
	end := maxClientText
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

func optional(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func moment(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
