// Package tokens decides which session a token belongs to. It mints tokens and defines how stores
// look up, revoke and list their sessions.
//
// A token is opaque. A store has a [Session] under the token's SHA-256 and never the token itself,
// so read access to a store gives no access to services.
package tokens

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"strings"

	"github.com/google/uuid"
)

// MaxTokenLength is the maximum length of a credential, in bytes.
const MaxTokenLength = 512

// ErrMalformed means that a credential cannot be a token of this gateway, so no store needs to be
// read.
var ErrMalformed = errors.New("malformed token")

// Format is the format of minted tokens. Tokens of both formats are always accepted.
type Format string

const (
	// FormatUUID is a random GUID (RFC 9562, version 4): 122 random bits.
	FormatUUID Format = "uuid"
	// FormatSecret is 256 random bits with a prefix for secret scanners and a checksum, which
	// allows to refuse junk without reading a store.
	FormatSecret Format = "secret"
)

// A secret is its prefix, 43 characters of base64url for 32 random bytes, and 8 hex digits of their
// CRC-32.
const (
	secretPrefix = "gp1_"
	secretBody   = 43
	secretLength = len(secretPrefix) + secretBody + 8
)

// Pattern is a regular expression (RE2) that matches the format of this gateway's tokens. [Parse]
// also checks the checksum of a secret.
const Pattern = `(?:[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}|gp1_[0-9A-Za-z_-]{43}[0-9a-f]{8})`

// Token is a bearer token. It always prints as "[redacted]"; only [Token.Reveal] returns its text.
// The zero Token is no token. Compare tokens by their [Hash].
type Token struct {
	_ [0]func() // forbids ==, which would compare pointers

	// A pointer, because fmt does not call methods on unexported fields; it prints an address.
	text *string
}

// Mint returns a new token of the format from the system's random source.
func Mint(f Format) (Token, error) {
	if f == FormatSecret {
		var random [32]byte
		if _, err := rand.Read(random[:]); err != nil {
			return Token{}, fmt.Errorf("reading random bytes: %w", err)
		}
		body := base64.RawURLEncoding.EncodeToString(random[:])
		sum := checksum(body)
		return newToken(secretPrefix + body + string(sum[:])), nil
	}
	id, err := uuid.NewRandom()
	if err != nil {
		return Token{}, fmt.Errorf("reading random bytes: %w", err)
	}
	return newToken(id.String()), nil
}

func newToken(text string) Token { return Token{text: &text} }

// Parse returns the token with the given text, or [ErrMalformed] if it has neither format.
func Parse(text string) (Token, error) {
	if isUUID(text) || isSecret(text) {
		return newToken(text), nil
	}
	return Token{}, ErrMalformed
}

// FromAuthorization returns the token in an Authorization value: the bare token, as clients of the
// old gateway send it, or after the case-insensitive scheme Bearer (RFC 6750 §2.1, RFC 9110 §11.1).
// Everything else is [ErrMalformed], including several credentials joined by a comma.
func FromAuthorization(value string) (Token, error) {
	if len(value) > MaxTokenLength {
		return Token{}, ErrMalformed
	}
	const scheme = "bearer "
	if len(value) > len(scheme) && strings.EqualFold(value[:len(scheme)], scheme) {
		value = strings.TrimLeft(value[len(scheme):], " ")
	}
	return Parse(value)
}

// Reveal returns the token's text. It must be sent to the token's owner only.
func (t Token) Reveal() string {
	if t.text == nil {
		return ""
	}
	return *t.text
}

// Hash returns the key of the token's session in stores.
func (t Token) Hash() Hash {
	var text [secretLength]byte // fits both formats, so the copy stays on the stack
	n := copy(text[:], t.Reveal())
	return sha256.Sum256(text[:n])
}

const redacted = "[redacted]"

// String returns "[redacted]".
func (Token) String() string { return redacted }

// GoString returns "[redacted]".
func (Token) GoString() string { return redacted }

// Format prints "[redacted]" for every verb.
func (Token) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(redacted)) }

// MarshalText returns "[redacted]".
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "[redacted]" as a JSON string.
func (Token) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// LogValue returns "[redacted]".
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// Hash is the SHA-256 of a token. It gives no access, but it identifies a live session, so it
// prints as a fingerprint.
type Hash [sha256.Size]byte

// Hex returns the whole hash in hex, for keys of stores.
func (h Hash) Hex() string { return hex.EncodeToString(h[:]) }

// String returns a fingerprint for logs: the first 8 hex digits of the SHA-256 of the hash.
func (h Hash) String() string {
	again := sha256.Sum256(h[:])
	return hex.EncodeToString(again[:4])
}

// MarshalText returns the fingerprint, for JSON and other encodings.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// LogValue returns the fingerprint.
func (h Hash) LogValue() slog.Value { return slog.StringValue(h.String()) }

// isUUID reports whether s has the form that Mint writes: lower case, hyphens, version 4, variant
// 10.
func isUUID(s string) bool {
	return canonicalUUID(s) && s[14] == '4' && strings.IndexByte("89ab", s[19]) >= 0
}

// canonicalUUID reports whether s is a UUID in lower case with hyphens (RFC 9562 §4).
func canonicalUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'f':
		default:
			return false
		}
	}
	return true
}

// isSecret reports whether s has the form that Mint writes: the prefix, base64url, a valid
// checksum.
func isSecret(s string) bool {
	if len(s) != secretLength || s[:len(secretPrefix)] != secretPrefix {
		return false
	}
	body := s[len(secretPrefix) : len(secretPrefix)+secretBody]
	for i := range len(body) {
		switch c := body[i]; {
		case c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_':
		default:
			return false
		}
	}
	sum := checksum(body)
	return string(sum[:]) == s[len(secretPrefix)+secretBody:]
}

// checksum returns the CRC-32 of a secret's body as 8 hex digits.
func checksum(body string) (sum [8]byte) {
	var raw [4]byte
	binary.BigEndian.PutUint32(raw[:], crc32.ChecksumIEEE([]byte(body)))
	hex.Encode(sum[:], raw[:])
	return sum
}
