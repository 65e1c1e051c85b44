package definitions

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"golang.org/x/net/idna"
)

// originFault says why no browser would ever send origin. Origins are compared as they are, byte by byte, so one
// that is written in another way than browsers write it (the HTML standard: "serialization of an origin";
// RFC 6454 §6.2) would keep out the page that it was to let in.
func originFault(origin string) *fault {
	switch {
	case origin == "*" || strings.Contains(origin, "*"):
		return faultf("write each origin out, or no origins to let every page call", "%s has a *, which stands for nothing here", shown(origin))
	case strings.EqualFold(origin, "null"):
		return faultf("remove it: any page can make itself null, in a sandboxed frame", "null is no origin")
	}
	form, ok := browserForm(origin)
	if ok && form == origin {
		return nil
	}
	remedy := "write scheme://host, such as https://shop.example, with :port where it is not the usual one"
	if ok {
		remedy = "write " + shown(form)
	}
	return faultf(remedy, "%s is not as a browser sends it%s", shown(origin), originDetail(origin, form))
}

// originDetail says in which way origin differs from its proper form, where that is not plain to see.
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

// browserScheme is the form of a scheme in an origin; pages of apps and extensions have schemes of their own.
var browserScheme = regexp.MustCompile(`^[a-z][a-z0-9+.-]*$`)

// opaqueSchemes are those whose pages have no origin but null, or whose pages have another's.
var opaqueSchemes = map[string]string{
	"ws": "http", "wss": "https", // a WebSocket's Origin is that of its page
	"file": "", "data": "", "blob": "", "about": "", "javascript": "",
}

// browserForm returns what a browser sends as the Origin of a page at the address, and false where it could not
// be one.
func browserForm(address string) (string, bool) {
	address = strings.TrimSpace(address)
	if !strings.Contains(address, "://") && !strings.HasPrefix(address, "/") {
		address = "https://" + afterScheme.ReplaceAllString(address, "") // shop.example, https:/shop.example
	}
	u, err := url.Parse(address)
	if err != nil || u.User != nil || u.Opaque != "" || !browserScheme.MatchString(u.Scheme) {
		return "", false
	}
	scheme := u.Scheme
	if transport, opaque := opaqueSchemes[scheme]; opaque {
		scheme = transport
	} else if meant := nearest(scheme, []string{"http", "https"}); meant != "" {
		scheme = meant
	}
	host, ok := browserHost(u.Hostname())
	if scheme == "" || !ok {
		return "", false
	}
	switch port := u.Port(); {
	case port == "" || scheme == "http" && port == "80" || scheme == "https" && port == "443":
	case isPort(port):
		host += ":" + port
	default:
		return "", false
	}
	return scheme + "://" + host, true
}

// browserHost returns a host as browsers write it: names in lower case and ASCII, addresses in their shortest form.
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
