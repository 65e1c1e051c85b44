package acme

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"

	"gatepost/regularfile"
)

// SecretsKey encrypts what is stored in Redis, with AES-256-GCM. It cannot be printed.
type SecretsKey struct{ keys []cipher.AEAD }

// String returns "[redacted]".
func (SecretsKey) String() string { return "[redacted]" }

// GoString returns "[redacted]".
func (SecretsKey) GoString() string { return "[redacted]" }

// ReadSecretsKey reads a key file: one line of 32 random bytes in Base64. Further lines are former keys, which decrypt
// only.
func ReadSecretsKey(path string) (SecretsKey, error) {
	text, err := regularfile.Read(path)
	if err != nil {
		return SecretsKey{}, fmt.Errorf("reading the key of the secrets: %w", err)
	}
	var k SecretsKey
	for i, line := range bytes.Fields(text) {
		key, err := base64.StdEncoding.DecodeString(string(line))
		if err != nil || len(key) != 32 {
			return SecretsKey{}, fmt.Errorf("reading the key of the secrets: line %d of %s is not 32 bytes in Base64 (make one: openssl rand -base64 32)", i+1, path)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return SecretsKey{}, fmt.Errorf("using the key of the secrets: %w", err)
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return SecretsKey{}, fmt.Errorf("using the key of the secrets: %w", err)
		}
		k.keys = append(k.keys, aead)
	}
	if len(k.keys) == 0 {
		return SecretsKey{}, fmt.Errorf("reading the key of the secrets: %s is empty (make a key: openssl rand -base64 32)", path)
	}
	return k, nil
}

// errOtherKey reports a value that none of the keys decrypts.
var errOtherKey = errors.New("it was encrypted with another key, or changed: give each gateway the same --secrets-key-file")

// seal encrypts a value for the place where it is stored: it cannot be read elsewhere.
func (k SecretsKey) seal(place string, value []byte) []byte {
	return k.keys[0].Seal(nil, nil, value, []byte(place))
}

func (k SecretsKey) open(place string, sealed []byte) ([]byte, error) {
	for _, key := range k.keys {
		if value, err := key.Open(nil, nil, sealed, []byte(place)); err == nil {
			return value, nil
		}
	}
	return nil, fmt.Errorf("decrypting %s: %w", place, errOtherKey)
}
