package convention

import (
	"strings"
	"unicode"
)

// Printable replaces the characters of a client's text that a terminal could interpret.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
