package shield

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/runes"
	"golang.org/x/text/unicode/norm"
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

// UserKey is the key of a user name. Names that a user service may well take for the same one have the same key.
func UserKey(name string) Key { return hash('u', []byte(Normalise(name))) }

// Normalise returns the form in which user names are compared: compatibility forms and letters' case folded
// away (NFKC, as NFKC_Casefold in Unicode 3.13 does), invisible format characters and outer space dropped.
func Normalise(name string) string {
	name = runes.Remove(runes.In(unicode.Cf)).String(norm.NFKC.String(name))
	return strings.TrimSpace(norm.NFKC.String(cases.Fold().String(name)))
}

func hash(kind byte, data []byte) Key {
	sum := sha256.Sum256(append([]byte{kind, 0}, data...))
	return Key(sum[:len(Key{})])
}
