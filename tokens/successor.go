package tokens

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"time"
)

// Successor is a session under its next token, and that token, readable only with the token before it.
type Successor struct {
	Session *Session
	Token   Sealed
}

// Sealed is a token encrypted by [Token.Seal]. A store may keep it: without the token that sealed it, it opens nothing.
type Sealed []byte

// sealInfo separates the derived key from every other use of a token (RFC 5869 §3.2).
const sealInfo = "gatepost refresh successor 1"

// Seal encrypts next with AES-256-GCM and a random nonce. The key is derived from t by HKDF-SHA256 and is never kept.
// The derivation needs t itself: its [Hash], which stores keep, is of no use.
func (t Token) Seal(next Token) (Sealed, error) {
	aead, err := t.aead()
	if err != nil {
		return nil, fmt.Errorf("sealing a token: %w", err)
	}
	return aead.Seal(nil, nil, []byte(next.Reveal()), nil), nil
}

// Unseal decrypts the token whose hash is h. If t did not seal it, or it is another token, the error is
// [ErrUnavailable] and [ErrCorrupt].
func (t Token) Unseal(sealed Sealed, h Hash) (Token, error) {
	aead, err := t.aead()
	if err != nil {
		return Token{}, fmt.Errorf("unsealing a token: %w", err)
	}
	text, err := aead.Open(nil, nil, sealed, nil)
	if err != nil {
		return Token{}, corrupt(h, "its successor cannot be decrypted")
	}
	next, err := Parse(string(text))
	if err != nil || next.Hash() != h {
		return Token{}, corrupt(h, "its successor is another token")
	}
	return next, nil
}

func (t Token) aead() (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(t.Reveal()), nil, sealInfo, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// GraceEnds is when a grace ends that begins now: no later than the new token.
func (next Successor) GraceEnds(now time.Time, grace time.Duration) time.Time {
	return earlier(stamp(now).Add(grace), next.Session.Expires)
}

// Continues says whether s is the same session as before, under another token.
func (s *Session) Continues(before *Session) bool {
	return s.ID == before.ID && s.User == before.User && s.Ends.Equal(before.Ends) && s.Hash != before.Hash
}
