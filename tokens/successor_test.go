package tokens

import (
	"bytes"
	"errors"
	"testing"
)

func TestSealedSuccessorNeedsPredecessor(t *testing.T) {
	for _, format := range []Format{FormatUUID, FormatSecret} {
		old, next, other := mustMint(t, format), mustMint(t, format), mustMint(t, format)
		sealed, err := old.Seal(next)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(sealed, []byte(next.Reveal()[8:24])) {
			t.Error("the sealed token is not encrypted")
		}
		got, err := old.Unseal(sealed, next.Hash())
		if err != nil || got.Reveal() != next.Reveal() {
			t.Fatalf("unsealed with the right token: %v, %v", got, err)
		}
		again, err := old.Seal(next)
		if err != nil || bytes.Equal(sealed, again) {
			t.Error("two seals of one token are equal, so the nonce is not random")
		}
		altered := bytes.Clone(sealed)
		altered[len(altered)-1] ^= 1
		for name, unseal := range map[string]func() (Token, error){
			"another token":       func() (Token, error) { return other.Unseal(sealed, next.Hash()) },
			"the successor":       func() (Token, error) { return next.Unseal(sealed, next.Hash()) },
			"no token":            func() (Token, error) { return Token{}.Unseal(sealed, next.Hash()) },
			"another hash":        func() (Token, error) { return old.Unseal(sealed, other.Hash()) },
			"an altered seal":     func() (Token, error) { return old.Unseal(altered, next.Hash()) },
			"a seal cut short":    func() (Token, error) { return old.Unseal(sealed[:10], next.Hash()) },
			"no seal":             func() (Token, error) { return old.Unseal(nil, next.Hash()) },
			"the hash as the key": func() (Token, error) { return newToken(old.Hash().Hex()).Unseal(sealed, next.Hash()) },
		} {
			if got, err := unseal(); got.text != nil || !errors.Is(err, ErrUnavailable) || !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		}
	}
}
