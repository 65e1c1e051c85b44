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

// EncodeRecord returns the bytes that a store keeps under s.Hash, or [ErrInvalid]. What the client said of
// itself is cut to 256 bytes of UTF-8.
func EncodeRecord(s *Session) ([]byte, error) {
	if err := s.valid(); err != nil {
		return nil, err
	}
	return marshal(&gatewayv1.Session{
		TokenHash:     s.Hash[:],
		Id:            s.ID,
		User:          s.User,
		Issued:        timestamppb.New(s.Issued),
		Expires:       timestamppb.New(s.Expires),
		Ends:          timestamppb.New(s.Ends),
		Scopes:        s.Scopes,
		ClientAddress: clip(s.ClientAddress),
		UserAgent:     clip(s.UserAgent),
		LastSeen:      optional(s.LastSeen),
		LastAddress:   clip(s.LastAddress),
	})
}

// EncodeRetired returns the bytes that take the place of s's record once its token has been exchanged for a new
// one: enough to end the session when the token is presented again.
func EncodeRetired(s *Session) ([]byte, error) {
	if err := s.valid(); err != nil {
		return nil, err
	}
	return marshal(&gatewayv1.Session{
		TokenHash: s.Hash[:],
		Id:        s.ID,
		User:      s.User,
		Issued:    timestamppb.New(s.Issued),
		Expires:   timestamppb.New(s.Expires),
		Ends:      timestamppb.New(s.Ends),
		Retired:   true,
	})
}

// DecodeRecord reads what a store holds under h. A retired record opens nothing: it names the session that its
// token belonged to. What is no record of h is [ErrUnavailable] and [ErrCorrupt].
func DecodeRecord(h Hash, data []byte) (s *Session, retired bool, err error) {
	var record gatewayv1.Session
	if err := proto.Unmarshal(data, &record); err != nil {
		return nil, false, corrupt(h, "it cannot be read")
	}
	if subtle.ConstantTimeCompare(record.GetTokenHash(), h[:]) != 1 {
		return nil, false, corrupt(h, "it is another token's")
	}
	s = &Session{
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
		return nil, false, corrupt(h, err.Error())
	}
	return s, record.GetRetired(), nil
}

func corrupt(h Hash, why string) error {
	return fmt.Errorf("%w: %w: token %v: %s", ErrUnavailable, ErrCorrupt, h, why)
}

func marshal(record *gatewayv1.Session) ([]byte, error) {
	data, err := proto.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return data, nil
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
