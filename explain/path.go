package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// plainTarget reports whether Envoy's parser accepts a request target: it has only URL characters
// and starts like one of the forms.
func plainTarget(target string) bool {
	if target == "" || strings.ContainsFunc(target, func(c rune) bool { return c < '!' || c > '~' }) {
		return false
	}
	if target[0] == '/' || target[0] == '*' {
		return true
	}
	scheme, rest, whole := strings.Cut(target, "://")
	host, _, _ := strings.Cut(rest, "/")
	host, _, _ = strings.Cut(host, "?")
	return whole && scheme != "" && !strings.ContainsFunc(scheme, func(c rune) bool { return !isLetterOrDigit(c) }) && plainHost(host)
}

// splitTarget parses a request target in origin form (/path?query), absolute form
// (http://host/path) or, for OPTIONS, asterisk form. ok is false for any other form. host is set
// only for the absolute form.
func splitTarget(method, target string) (path, host string, ok bool) {
	if target == "" {
		return "", "", false
	}
	if target[0] == '/' || target[0] == '*' && method == "OPTIONS" {
		return target, "", true
	}
	scheme, rest, whole := strings.Cut(target, "://")
	if !whole || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", "", false
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	host, path = rest[:end], rest[end:]
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return path, host, host != ""
}

func hasEscapedSlash(path string) bool {
	lower := strings.ToLower(path)
	return strings.Contains(lower, "%2f") || strings.Contains(lower, "%5c")
}

// mergeSlashes merges adjacent slashes. Envoy keeps two if the path consists only of slashes.
func mergeSlashes(path string) string {
	if len(path) > 1 && strings.Trim(path, "/") == "" {
		return "//"
	}
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// dotParameters matches the parameters of an unescaped dot segment. Some servers resolve /..;x/ as
// /../.
var dotParameters = regexp.MustCompile(`(/\.\.?);[^/]*`)

// withoutDotParameters removes the parameters of dot segments, as Envoy does before it resolves
// them. Segments that are escaped or follow a backslash keep their parameters.
func withoutDotParameters(path string) string { return dotParameters.ReplaceAllString(path, "$1") }

// canonicalPath normalizes a path as Envoy does with normalize_path (RFC 3986 §6, plus what
// browsers do). It resolves dot segments, decodes escaped unreserved characters, keeps other
// escapes, escapes invalid characters, and turns backslashes into slashes. It returns false if the
// path contains a zero byte.
func canonicalPath(path string) (string, bool) {
	out := make([]byte, 0, len(path))
	var stray []int // :: indexes in out of each % that starts no escape
	ok := true
	for i := 0; i < len(path); {
		if n := dotAt(path, i); n > 0 && len(out) > 0 && out[len(out)-1] == '/' {
			if up, consumed, isSegment := dotSegment(path, i+n); isSegment {
				if up {
					out = parent(out)
					stray = slices.DeleteFunc(stray, func(at int) bool { return at >= len(out) })
				}
				i += n + consumed
				continue
			}
		}
		c, n, escaped := charAt(path, i)
		if c == '%' && !escaped {
			stray = append(stray, len(out))
		}
		ok = ok && c != 0
		out = appendCanonical(out, c, path[i:i+n])
		i += n
	}
	return string(escapeStray(out, stray)), ok
}

// appendCanonical appends the canonical form of the character c, which is spelled as raw in the path.
func appendCanonical(out []byte, c byte, raw string) []byte {
	escaped := len(raw) > 1
	switch {
	case c == '.':
		return append(out, c)
	case escaped && !isUnreserved(c):
		return append(out, raw...)
	case c == '\\':
		return append(out, '/')
	case isUnreserved(c) || strings.IndexByte("%!$&'()*+,:;=@[]/", c) >= 0:
		return append(out, c)
	}
	return fmt.Appendf(out, "%%%02X", c)
}

// charAt returns the character at i, its length in bytes, and whether it is escaped.
func charAt(path string, i int) (c byte, n int, escaped bool) {
	if path[i] == '%' && i+2 < len(path) && isHex(path[i+1]) && isHex(path[i+2]) {
		return unhex(path[i+1])<<4 | unhex(path[i+2]), 3, true
	}
	return path[i], 1, false
}

// dotAt returns the length of the dot at i, plain or escaped, or 0 if there is no dot.
func dotAt(path string, i int) int {
	if i >= len(path) {
		return 0
	}
	if c, n, _ := charAt(path, i); c == '.' {
		return n
	}
	return 0
}

// dotSegment reports whether the segment is a dot segment, given that its first dot ends at i, and
// whether it goes up. consumed is the number of remaining bytes, including the slash.
func dotSegment(path string, i int) (up bool, consumed int, ok bool) {
	if at, n := endOfSegment(path, i); at {
		return false, n, true
	}
	second := dotAt(path, i)
	if second == 0 {
		return false, 0, false
	}
	if at, n := endOfSegment(path, i+second); at {
		return true, second + n, true
	}
	return false, 0, false
}

// endOfSegment reports whether a segment ends at i, and the length of the slash there.
func endOfSegment(path string, i int) (bool, int) {
	if i >= len(path) {
		return true, 0
	}
	return path[i] == '/' || path[i] == '\\', 1
}

// parent removes the last segment from a path that ends in a slash. It keeps the leading slash.
func parent(path []byte) []byte {
	i := len(path) - 1
	for i > 0 {
		if i--; path[i] == '/' {
			break
		}
	}
	return path[:i+1]
}

// escapeStray escapes each stray % that looks like an escape now, because escapes after it were
// decoded.
func escapeStray(path []byte, stray []int) []byte {
	for _, at := range slices.Backward(stray) {
		if at+2 < len(path) && isHex(path[at+1]) && isHex(path[at+2]) {
			path = slices.Insert(path, at+1, '2', '5')
		}
	}
	return path
}

func isUnreserved(c byte) bool {
	return isLetterOrDigit(rune(c)) || c == '-' || c == '_' || c == '~'
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}
