package definitions

import "strings"

// pathFault is the problem of a path that the gateway cannot match. Only paths that all programs read alike are
// valid: Envoy resolves dot segments, merges slashes and decodes escapes before it matches, so a path with any of
// these would match nothing, or not what its author expects.
func pathFault(path string) *fault {
	if !strings.HasPrefix(path, "/") {
		return aboutPaths.faultf("write "+shown("/"+strings.TrimLeft(path, " ./")), "%s does not begin with a slash", shown(path))
	}
	for _, c := range path {
		if fault := characterFault(path, c); fault != nil {
			return fault
		}
	}
	if strings.Contains(path, "//") {
		return aboutPaths.faultf("write one", "%s has two slashes in a row", shown(path))
	}
	if path != "/" && strings.HasSuffix(path, "/") {
		return aboutPaths.faultf("write "+shown(strings.TrimRight(path, "/")), "%s ends in a slash", shown(path))
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return aboutPaths.faultf("write the path that it leads to", "%s has the segment %q, which is not a segment of its own", shown(path), segment)
		}
	}
	return nil
}

// characterFault is the problem of the character c in a path. The valid ones are pchar (RFC 3986 §3.3) without
// escapes, '*', and ';', at which some servers truncate a segment.
func characterFault(path string, c rune) *fault {
	const plain = "-._~!$&'()+,=:@/"
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune(plain, c):
		return nil
	case c == '?' || c == '#':
		return aboutPaths.faultf("write what stands before it; a request is matched by its path alone", "%s has a query or a fragment", shown(path))
	case c == '%':
		return aboutPaths.faultf("write plain ASCII characters", "%s has an escape", shown(path))
	case c == '*' || c == '{':
		remedy := "write whole segments without it; a path takes all that is below it"
		if literal := literalPart(path); literal != "/" {
			remedy = "write " + shown(literal) + ", which takes all that is below it"
		}
		return aboutPaths.faultf(remedy, "%s has a placeholder", shown(path))
	}
	return aboutPaths.faultf("write letters, digits and "+plain, "%s has the character %q", shown(path), c)
}

// literalPart returns the whole segments of a path before its first placeholder.
func literalPart(path string) string {
	before := path[:strings.IndexAny(path, "*{")]
	before = before[:strings.LastIndexByte(before, '/')]
	if before == "" {
		return "/"
	}
	return before
}

func tokensPathFault(path string) *fault {
	if fault := pathFault(path); fault != nil {
		return fault
	}
	switch {
	case path == "/":
		return aboutPaths.faultf("choose one, such as /token", "leaves no path to the services")
	case within(path, OwnPath):
		return aboutPaths.faultf("choose another", "%s is a path that the gateway keeps for itself", shown(path))
	}
	return nil
}

// within reports whether path is parent or below it. Case is ignored.
func within(path, parent string) bool {
	if len(path) < len(parent) || !strings.EqualFold(path[:len(parent)], parent) {
		return false
	}
	return len(path) == len(parent) || path[len(parent)] == '/' || parent == "/"
}
