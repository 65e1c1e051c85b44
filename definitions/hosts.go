package definitions

import (
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// A host pattern is an exact name, *. and a suffix, or EveryHost. Of the patterns that match a host, an exact name is
// the most specific, then the longest suffix.

// EveryHost is the pattern that matches every host.
const EveryHost = ""

// Place is a path under a host pattern. Each has at most one service.
type Place struct {
	// Host is a host pattern, Path a path in lower case.
	Host, Path string
}

// places returns the places of a service.
func (s *Service) places() iter.Seq[Place] {
	path := strings.ToLower(s.Path)
	return func(yield func(Place) bool) {
		for _, host := range s.Patterns() {
			if !yield(Place{host, path}) {
				return
			}
		}
	}
}

var everyHost = []string{EveryHost}

// Patterns returns the host patterns of the service: its hosts, or EveryHost if it has none.
func (s *Service) Patterns() []string { return patternsOf(s.Hosts) }

// Patterns returns the host patterns under which the token calls respond.
func (t *Tokens) Patterns() []string { return patternsOf(t.Hosts) }

func patternsOf(hosts []string) []string {
	if len(hosts) == 0 {
		return everyHost
	}
	return hosts
}

// Wider returns the patterns that match every host that the pattern matches, without itself: the most specific one
// first, EveryHost last.
func Wider(pattern string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if pattern == EveryHost {
			return
		}
		name := strings.TrimPrefix(pattern, "*.")
		for {
			_, suffix, more := strings.Cut(name, ".")
			if !more {
				yield(EveryHost)
				return
			}
			if !yield("*." + suffix) {
				return
			}
			name = suffix
		}
	}
}

// coversHost reports whether one of the patterns matches every host that the pattern inner matches.
func coversHost(patterns []string, inner string) bool {
	if slices.Contains(patterns, inner) {
		return true
	}
	for wider := range Wider(inner) {
		if slices.Contains(patterns, wider) {
			return true
		}
	}
	return false
}

// Covers reports whether the service responds under every host that the pattern matches.
func (s *Service) Covers(pattern string) bool { return coversHost(s.Patterns(), pattern) }

// Covers reports whether the token calls respond under every host that the pattern matches.
func (t *Tokens) Covers(pattern string) bool { return coversHost(t.Patterns(), pattern) }

// parseHosts parses a list of hosts, and sorts it, so that the order in the file has no meaning.
func parseHosts(f *findings, texts []string, list string) []string {
	var out []string
	first := map[string]string{} // :: host → field
	for i, text := range texts {
		field := list + "[" + strconv.Itoa(i) + "]"
		host, fault := parseHost(text)
		if earlier, twice := first[host]; twice && fault == nil {
			fault = twinFault(f, text, earlier)
		}
		f.add(field, fault)
		first[host] = field
		out = append(out, host)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// parseHost parses a host of a service: a name, or *. and a name. It returns it in lower case.
func parseHost(text string) (string, *fault) {
	host := strings.ToLower(text)
	if fault := hostFormFault(text, host); fault != nil {
		return "", fault
	}
	labels := strings.Split(strings.TrimPrefix(host, "*."), ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || len(host) > 253 || strings.ContainsFunc(label, isNoHostCharacter) {
			return "", aboutHosts.faultf("write a name such as api.shop.example, or *.shop.example", "%s is not a host name", shown(text))
		}
		if _, err := idna.Lookup.ToUnicode(label); err != nil && strings.HasPrefix(label, "xn--") {
			return "", aboutHosts.faultf("write the name as browsers send it", "%s has a part with xn-- that stands for no international name", shown(text))
		}
	}
	if isNumber(labels[len(labels)-1]) {
		return "", noAddress(text)
	}
	return host, nil
}

// noAddress is the problem of an IP address as a host. An address can be written in many ways, so it is no key.
func noAddress(text string) *fault {
	return aboutHosts.faultf("write a name; only services without hosts respond to requests by address", "%s is an IP address", shown(text))
}

// hostFormFault is the problem of a host in another form than a name.
func hostFormFault(text, host string) *fault {
	if host == "*" || host == "*." {
		return aboutHosts.faultf("remove hosts: a service without hosts responds under every host", "%s is every host", shown(text))
	}
	if scheme, rest, ok := strings.Cut(host, "://"); ok && scheme != "" {
		rest, _, _ = strings.Cut(rest, "/")
		return aboutHosts.faultf("write "+shown(rest), "%s is an address, not a host", shown(text))
	}
	address, port := host, ""
	if at := strings.LastIndexByte(host, ':'); at > 0 && !strings.Contains(host[:at], ":") {
		address, port = host[:at], host[at+1:]
	}
	if _, err := netip.ParseAddr(strings.Trim(address, "[]")); err == nil {
		return noAddress(text)
	}
	switch {
	case port != "" && isPort(port):
		return aboutHosts.faultf("write "+shown(address)+"; ports are ignored", "%s has a port", shown(text))
	case strings.Contains(host, "/"):
		return aboutHosts.faultf("write the path in path", "%s has a path", shown(text))
	case len(host) > 1 && strings.HasSuffix(host, "."):
		return aboutHosts.faultf("write "+shown(strings.TrimRight(host, "."))+"; requests with the dot match too", "%s ends in a dot", shown(text))
	case strings.Contains(strings.TrimPrefix(host, "*."), "*"):
		return aboutHosts.faultf("write each name out, or *. before a name, such as *.shop.example", "%s has a * that is not its first label", shown(text))
	}
	return internationalFault(text, host)
}

// internationalFault is the problem of a name that is not in the form in which browsers send it.
func internationalFault(text, host string) *fault {
	if isASCII(host) {
		return nil
	}
	name, wildcard := strings.CutPrefix(host, "*.")
	ascii, err := idna.Lookup.ToASCII(name)
	if err != nil {
		return aboutHosts.faultf("write a name such as api.shop.example", "%s is not a host name", shown(text))
	}
	if wildcard {
		ascii = "*." + ascii
	}
	return aboutHosts.faultf("write "+shown(ascii), "%s is not as browsers send it", shown(text))
}
