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

// ErrCorrupt says that what a store holds under a token's key is no record of that token: garbage, or the
// record of another. It comes with [ErrUnavailable], because whoever holds the token is neither let in nor told
// that the token is unknown: somebody has to look at the store.
var ErrCorrupt = errors.New("corrupt token record")

// maxClientText bounds what a record keeps of a client's own words, in bytes.
const maxClientText = 256

// Record is what a store keeps under a token's hash.
type Record struct {
	Session *Session
	// Retired says that the token was exchanged for a new one.
	Retired bool
	// Next is the new token's hash and Successor the token itself. They are kept for the refresh grace only, which is over
	// at GraceEnds. Until then a repeated exchange gets the successor, and until the session's Expires, which is no
	// later, the retired token opens services.
	Next      Hash
	Successor Sealed
	GraceEnds time.Time
}

// Live says whether the token opens services at the time now.
func (r *Record) Live(now time.Time) bool {
	return r.Session.Live(now) && (!r.Retired || r.hasSuccessor())
}

// InGrace says whether the token was exchanged and a repeated exchange at the time now gets its successor.
func (r *Record) InGrace(now time.Time) bool {
	return r.Retired && r.hasSuccessor() && now.Before(r.GraceEnds)
}

func (r *Record) hasSuccessor() bool { return r.Next != Hash{} }

// EncodeRecord returns the bytes that a store keeps under s.Hash, or [ErrInvalid]. What the client said of
// itself is cut to 256 bytes of UTF-8.
func EncodeRecord(s *Session) ([]byte, error) { return encode(s, &gatewayv1.Session{}) }

// EncodePredecessor returns the bytes that replace s's record until the grace ends, when its token was exchanged for next.
func EncodePredecessor(s *Session, next Successor, graceEnds time.Time) ([]byte, error) {
	before, hash := *s, next.Session.Hash
	before.Expires = earlier(s.Expires, graceEnds)
	return encode(&before, &gatewayv1.Session{
		Retired: true, SuccessorHash: hash[:], Successor: next.Token, GraceEnds: timestamppb.New(graceEnds),
	})
}

// EncodeRetired returns the bytes that replace s's record, until the session ends, after its token was exchanged for a
// new one and the grace is over. They are enough to end the session if the token is presented for another exchange.
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

// DecodeRecord reads what a store holds under h. What is no record of h is [ErrUnavailable] and [ErrCorrupt].
func DecodeRecord(h Hash, data []byte) (*Record, error) {
	var record gatewayv1.Session
	if err := proto.Unmarshal(data, &record); err != nil {
		return nil, corrupt(h, "it cannot be read")
	}
	if subtle.ConstantTimeCompare(record.GetTokenHash(), h[:]) != 1 {
		return nil, corrupt(h, "it is another token's")
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

// clip returns what of text a record keeps: UTF-8, and not cut within a character.
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
