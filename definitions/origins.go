package definitions

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"golang.org/x/net/idna"
)

// originFault is the problem of an origin that no browser sends. Origins are compared byte by byte, so one that is
// not in the form of browsers (the HTML standard: "serialization of an origin"; RFC 6454 §6.2) would never match.
func originFault(origin string) *fault {
	switch {
	case origin == "*" || strings.Contains(origin, "*"):
		return aboutOrigins.faultf("write each origin out, or no origins to let every page call", "%s has a *, which stands for nothing here", shown(origin))
	case strings.EqualFold(origin, "null"):
		return aboutOrigins.faultf("remove it: any page can make itself null, in a sandboxed frame", "null is no origin")
	}
	form, ok := browserForm(origin)
	if ok && form == origin {
		return nil
	}
	remedy := "write scheme://host, such as https://shop.example, with :port where it is not the usual one"
	if ok {
		remedy = "write " + shown(form)
	}
	return aboutOrigins.faultf(remedy, "%s is not as a browser sends it%s", shown(origin), originDetail(origin, form))
}

// originDetail names the difference between origin and the form of browsers, if it is hard to see.
func originDetail(origin, form string) string {
	switch {
	case form == "":
		return ""
	case strings.EqualFold(origin, form):
		return ": lower case"
	case strings.HasPrefix(strings.ToLower(origin), form+"/"):
		return ": no slash or path at the end"
	case strings.HasPrefix(strings.ToLower(origin), form+":"):
		return ": no port where it is the usual one"
	}
	return ""
}

// browserScheme matches the scheme of an origin. Apps and extensions have schemes of their own.
var browserScheme = regexp.MustCompile(`^[a-z][a-z0-9+.-]*$`)

// opaqueSchemes are the schemes whose pages have the origin null, or that of another scheme.
var opaqueSchemes = map[string]string{
	"ws": "http", "wss": "https", // a WebSocket's Origin is that of its page
	"file": "", "data": "", "blob": "", "about": "", "javascript": "",
}

// browserForm returns the Origin that a browser sends for a page at the address. If there is none, ok is false.
func browserForm(address string) (string, bool) {
	address = strings.TrimSpace(address)
	if !strings.Contains(address, "://") && !strings.HasPrefix(address, "/") {
		address = "https://" + afterScheme.ReplaceAllString(address, "") // shop.example, https:/shop.example
	}
	u, err := url.Parse(address)
	if err != nil || u.User != nil || u.Opaque != "" || !browserScheme.MatchString(u.Scheme) {
		return "", false
	}
	scheme := originScheme(u.Scheme)
	host, ok := browserHost(u.Hostname())
	if scheme == "" || !ok {
		return "", false
	}
	port := u.Port()
	if port == "" || scheme == "http" && port == "80" || scheme == "https" && port == "443" {
		return scheme + "://" + host, true
	}
	if !isPort(port) {
		return "", false
	}
	return scheme + "://" + host + ":" + port, true
}

// originScheme returns the scheme of the origin of pages with a scheme, or with one that is meant to be http or https.
// If they have no origin, it is empty.
func originScheme(scheme string) string {
	if of, opaque := opaqueSchemes[scheme]; opaque {
		return of
	}
	return cmp.Or(nearest(scheme, []string{"http", "https"}), scheme)
}

// browserHost returns a host in the form of browsers: names in lower case and ASCII, addresses in their shortest form.
func browserHost(host string) (string, bool) {
	if addr, err := netip.ParseAddr(host); err == nil {
		switch {
		case addr.Zone() != "":
			return "", false
		case addr.Is4():
			return addr.String(), true
		case addr.Is4In6(): // the URL standard has no dotted form here, Go has no other
			b := addr.As16()
			return fmt.Sprintf("[::ffff:%x:%x]", uint16(b[12])<<8|uint16(b[13]), uint16(b[14])<<8|uint16(b[15])), true
		}
		return "[" + addr.String() + "]", true
	}
	if !isASCII(host) {
		ascii, err := idna.Lookup.ToASCII(host)
		if err != nil {
			return "", false
		}
		host = ascii
	}
	host = strings.ToLower(host)
	if nameFault(host, host) != nil {
		return "", false
	}
	return host, true
}
