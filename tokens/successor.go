package tokens

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"time"
)

// Successor is a session with its next token, sealed with the previous one.
type Successor struct {
	Session *Session
	Token   Sealed
}

// Sealed is a token encrypted by [Token.Seal]. A store may keep it: it is useless without the
// sealing token.
type Sealed []byte

// sealInfo separates the derived key from other uses of a token (RFC 5869 §3.2).
const sealInfo = "gatepost refresh successor 1"

// Seal encrypts next with AES-256-GCM and a random nonce. The key is derived from t by HKDF-SHA256
// and not stored. It cannot be derived from the [Hash] that stores have.
func (t Token) Seal(next Token) (Sealed, error) {
	aead, err := t.aead()
	if err != nil {
		return nil, fmt.Errorf("sealing a token: %w", err)
	}
	return aead.Seal(nil, nil, []byte(next.Reveal()), nil), nil
}

// Unseal decrypts the token with the hash h. If t did not seal it, or it has another hash, the
// error is [ErrUnavailable] and [ErrCorrupt].
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

// GraceEnds returns the end of a grace that begins now, at most the new token's expiry.
func (next Successor) GraceEnds(now time.Time, grace time.Duration) time.Time {
	return earlier(stamp(now).Add(grace), next.Session.Expires)
}

// Continues reports whether s is the session before with another token.
func (s *Session) Continues(before *Session) bool {
	return s.ID == before.ID && s.User == before.User && s.Ends.Equal(before.Ends) && s.Hash != before.Hash
}
