package shield

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/runes"
	"golang.org/x/text/unicode/norm"
	"golang.org/x/text/unicode/rangetable"
)

// Key identifies an address or a user in a table. It is a hash, so client input has neither length
// nor meaning in the table, and the shared store contains no names.
type Key [16]byte

// Hex returns the key in hex.
func (k Key) Hex() string { return hex.EncodeToString(k[:]) }

// AddressKey returns the key of a client address. For IPv6 it is the key of the /64, which one
// client owns.
func AddressKey(a netip.Addr) Key {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64) // 64 bits always fit
		a = p.Addr()
	}
	bytes := a.As16()
	return hash('a', bytes[:])
}

// UserKey returns the key of a user name. All spellings of one name have the same key.
func UserKey(name string) Key { return hash('u', []byte(Normalise(name))) }

// Normalise returns the form in which user names are counted. It alone decides which spellings are
// one name. A user service may compare names by any of these rules, so all apply: compatibility
// forms (NFKD), case, accents and other marks (MySQL's collations), invisible characters, runs of
// space (LDAP, RFC 4518 §2.6.1). Users with the same normalised name only share a limit.
func Normalise(name string) string {
	if isASCII(name) { // of the rules below, only those for case, space and numbers apply
		return number(strings.Join(strings.Fields(strings.ToLower(name)), " "))
	}
	name = stripMarks(name)
	// upper case first, so the dotless ı becomes I and then i
	name = stripMarks(cases.Fold().String(strings.ToUpper(name)))
	return number(strings.Join(strings.Fields(name), " "))
}

// number returns a decimal number without its plus sign, leading zeros and underscores. A user
// service that compares numbers (an integer column, Python's int) reads 007 and 0_07 as 7. Other
// names do not change.
func number(name string) string {
	digits := strings.ReplaceAll(strings.TrimPrefix(name, "+"), "_", "")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return name
	}
	return cmp.Or(strings.TrimLeft(digits, "0"), "0")
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// ignored are the characters that a comparison ignores.
var ignored = runes.In(rangetable.Merge(unicode.Cf, unicode.Mn, unicode.Me, unicode.Other_Default_Ignorable_Code_Point))

func stripMarks(name string) string { return runes.Remove(ignored).String(norm.NFKD.String(name)) }

func hash(kind byte, data []byte) Key {
	sum := sha256.Sum256(append([]byte{kind, 0}, data...))
	return Key(sum[:len(Key{})])
}

// ParseKey reads a key in hex.
func ParseKey(text string) (k Key, err error) {
	decoded, err := hex.DecodeString(text)
	if err == nil && len(decoded) != len(k) {
		err = errors.New("not the length of a key")
	}
	if err != nil {
		return k, fmt.Errorf("reading a key: %w", err)
	}
	return Key(decoded), nil
}
