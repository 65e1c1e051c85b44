package shield

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/runes"
	"golang.org/x/text/unicode/norm"
	"golang.org/x/text/unicode/rangetable"
)

// Key names an address or a user in a table. It is a hash, so what strangers send has neither length nor
// meaning there, and who reads the store of it does not read names.
type Key [16]byte

// Hex returns the key in hex.
func (k Key) Hex() string { return hex.EncodeToString(k[:]) }

// AddressKey is the key of a client address: of the /64 around it for IPv6, since a client has all of that.
func AddressKey(a netip.Addr) Key {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64) // 64 bits always fit
		a = p.Addr()
	}
	bytes := a.As16()
	return hash('a', bytes[:])
}

// UserKey is the key of a user name. Names that a user service may take for the same one have the same key.
func UserKey(name string) Key { return hash('u', []byte(Normalise(name))) }

// Normalise returns the form in which user names are counted. It is the only place that decides which spellings are one
// name. A user service may compare names by any of these rules, so all of them apply: compatibility forms (NFKD),
// upper and lower case, accents and other marks (MySQL's collations), invisible characters, runs of space (LDAP, RFC 4518
// §2.6.1). Two users whose names become the same share one limit, and nothing else.
func Normalise(name string) string {
	if isASCII(name) { // of the rules below, only those for case, space and numbers apply
		return number(strings.Join(strings.Fields(strings.ToLower(name)), " "))
	}
	name = bare(name)
	name = bare(cases.Fold().String(strings.ToUpper(name))) // upper case first: the dotless ı becomes I, and then i
	return number(strings.Join(strings.Fields(name), " "))
}

// number returns a name that is a decimal number without its plus sign, its leading zeros and underscores: a user
// service that compares numbers (an integer column, Python's int) takes 007 and 0_07 for 7. Other names stay.
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

// ignored are the characters that names are compared without.
var ignored = runes.In(rangetable.Merge(unicode.Cf, unicode.Mn, unicode.Me, unicode.Other_Default_Ignorable_Code_Point))

func bare(name string) string { return runes.Remove(ignored).String(norm.NFKD.String(name)) }

func hash(kind byte, data []byte) Key {
	sum := sha256.Sum256(append([]byte{kind, 0}, data...))
	return Key(sum[:len(Key{})])
}
