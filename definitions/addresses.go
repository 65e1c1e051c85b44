package definitions

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// parseListen parses an address that Envoy can listen on, as ip:port. Without an IP address it is every IPv4 address.
func parseListen(listen string) (netip.AddrPort, *fault) {
	none := netip.AddrPort{}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		remedy := "write an IP address and a port, such as " + defaultListen
		if isPort(listen) {
			remedy = "write :" + listen
		}
		return none, aboutAddresses.faultf(remedy, "%s is not an address with a port", shown(listen))
	}
	if !isPort(port) {
		return none, aboutAddresses.faultf("write a port from 1 to 65535", "%s has no such port", shown(listen))
	}
	number, _ := strconv.ParseUint(port, 10, 16) // a port, by isPort
	if host == "" {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(number)), nil
	}
	switch addr, err := netip.ParseAddr(host); {
	case err != nil && host == "localhost":
		return none, aboutAddresses.faultf("write 127.0.0.1:"+port, "%s has a name where an IP address must be", shown(listen))
	case err != nil:
		return none, aboutAddresses.faultf("write an IP address of this machine, or :"+port+" for all of them", "%s has no IP address", shown(listen))
	case addr.Zone() != "" || addr.Is4In6() || addr.IsMulticast():
		return none, aboutAddresses.faultf("write a plain IPv4 or IPv6 address", "%s is not an address to listen on", shown(listen))
	default:
		return netip.AddrPortFrom(addr, uint16(number)), nil
	}
}

// ParseListen parses an address to listen on, as the field listen. An empty text is the zero address.
func ParseListen(text string) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPort{}, nil
	}
	addr, fault := parseListen(text)
	if fault != nil {
		return addr, fmt.Errorf("%s (%s)", fault.what, fault.remedy)
	}
	return addr, nil
}

// isPort reports whether text is a port from 1 to 65535 without leading zeros or a sign.
func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0 && text[0] != '0' && text[0] != '+'
}

// parseRange parses a range of IP addresses in CIDR notation, or a single address.
func parseRange(text string) (netip.Prefix, *fault) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		text = netip.PrefixFrom(addr, addr.BitLen()).String()
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil || prefix.Addr().Is4In6():
		return netip.Prefix{}, aboutAddresses.faultf("write a range such as 10.0.0.0/8, or a single address", "%s is not a range of IP addresses", shown(text))
	case prefix.Bits() == 0:
		return netip.Prefix{}, aboutAddresses.faultf("list the addresses of your proxies alone", "%s would let every client choose its address", shown(text))
	case prefix != prefix.Masked():
		return netip.Prefix{}, aboutAddresses.faultf("write "+prefix.Masked().String()+", or "+prefix.Addr().String()+" for this address alone",
			"%s has more bits than its prefix", shown(text))
	}
	return prefix, nil
}

// parseUpstream parses an upstream: scheme://host[:port][/base], without any other part of a URL.
func parseUpstream(text string) (Upstream, *fault) {
	u, fault := parseAddress(text, SchemeHTTP, SchemeHTTPS, SchemeH2C)
	if fault != nil {
		return Upstream{}, fault
	}
	if strings.ContainsRune(text, '?') {
		return Upstream{}, aboutAddresses.faultf("remove it; a request keeps its own", "%s has a query", shown(text))
	}
	base := u.EscapedPath()
	if base == "/" {
		base = ""
	}
	if base != "" {
		if fault := pathFault(base); fault != nil {
			return Upstream{}, aboutAddresses.faultf(fault.remedy, "its path %s", fault.what)
		}
	}
	port := defaultPorts[u.Scheme]
	if number, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
		port = uint16(number)
	}
	_, err := netip.ParseAddr(u.Hostname())
	return Upstream{Host: strings.ToLower(u.Hostname()), Port: port, Scheme: u.Scheme, IsIP: err == nil, Base: base}, nil
}

// ownAddressFault is the problem of an upstream that is the address on which the gateway listens. Such a request
// would come back until a limit ends it. Names other than localhost are not resolved: they may mean another machine.
func ownAddressFault(u Upstream, text string, listen netip.AddrPort) *fault {
	if u.Port != listen.Port() || !reaches(u.Host, listen.Addr()) {
		return nil
	}
	return aboutAddresses.faultf("write where the service runs", "%s is the address on which this gateway listens", shown(text))
}

// reaches reports whether a connection to host reaches a socket that listens on addr.
func reaches(host string, addr netip.Addr) bool {
	name := strings.TrimSuffix(host, ".")
	if name == "localhost" || strings.HasSuffix(name, ".localhost") { // RFC 6761 §6.3
		return addr.IsLoopback() || addr.IsUnspecified()
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	ip = ip.Unmap()
	return ip == addr || ip.IsLoopback() && addr.IsUnspecified() && (ip.Is4() || addr.Is6()) // [::] takes IPv4 too
}

// afterScheme matches what people write in front of a host instead of "http://".
var afterScheme = regexp.MustCompile(`^(?i:https?)?[:/]+`)

// parseAddress parses the address of something that the gateway calls: a URL of one of the schemes without user info
// and fragment, with a host that the gateway may call.
func parseAddress(text string, schemes ...string) (*url.URL, *fault) {
	if i := strings.IndexFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }); i >= 0 {
		return nil, addressCharacterFault(text, i)
	}
	if !strings.Contains(text, "://") {
		return nil, aboutAddresses.faultf("write "+shownAddress("http://"+afterScheme.ReplaceAllString(text, "")), "%s has no http:// or https:// before it", shownAddress(text))
	}
	u, err := url.Parse(text)
	if err != nil {
		// Without the error of url.Parse: it shows parts of the address, which can be those of a password.
		return nil, aboutAddresses.faultf("write an address such as http://orders:8080", "%s is not an address", shownAddress(text))
	}
	switch {
	case !slices.Contains(schemes, u.Scheme):
		return nil, aboutAddresses.faultf("write "+strings.Join(schemes, " or "), "%s has the scheme %q", shownAddress(text), u.Scheme)
	case u.User != nil:
		return nil, aboutAddresses.faultf("remove it: definitions are no place for a password", "%s has user info", shownAddress(text))
	case strings.ContainsRune(text, '#'):
		return nil, aboutAddresses.faultf("remove it", "%s has a fragment", shownAddress(text))
	case u.Hostname() == "":
		return nil, aboutAddresses.faultf("write an address such as http://orders:8080", "%s has no host", shownAddress(text))
	case strings.HasSuffix(u.Host, ":") || u.Port() != "" && !isPort(u.Port()):
		return nil, aboutAddresses.faultf("write a port from 1 to 65535", "%s has no such port", shownAddress(text))
	}
	return u, hostFault(text, u.Hostname())
}

func addressCharacterFault(text string, i int) *fault {
	remedy := "write plain ASCII characters"
	scheme, host, _ := strings.Cut(text, "://")
	host, rest, hasRest := strings.Cut(host, "/")
	if ascii, err := idna.Lookup.ToASCII(host); err == nil && ascii != host && isASCII(scheme+rest) {
		if hasRest {
			ascii += "/" + rest
		}
		remedy = "write " + shownAddress(scheme+"://"+ascii)
	}
	c := []rune(text[i:])[0]
	return aboutAddresses.faultf(remedy, "%s has the character %q", shownAddress(text), c)
}

func isASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// hostFault is the problem of a host that the gateway may not call: it is invalid, or its responses are only for the
// machine itself (a link-local address, the metadata service of a cloud).
func hostFault(text, host string) *fault {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nameFault(text, host)
	}
	if addr.Zone() != "" {
		return aboutAddresses.faultf("write the address without it", "%s has an IPv6 zone", shownAddress(text))
	}
	addr = unwrap(addr)
	switch {
	case addr.IsLinkLocalUnicast() || slices.Contains(metadataAddresses, addr):
		return aboutAddresses.faultf("a link-local address or a cloud's metadata service can be no upstream", "%s is only for the machine itself", shownAddress(text))
	case addr.IsUnspecified() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return aboutAddresses.faultf("write the address of one machine", "%s is no address to call", shownAddress(text))
	}
	return nil
}

// nat64 is the prefix under which an IPv6 network reaches IPv4 addresses (RFC 6052 §2.1).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// unwrap returns the IPv4 address that is embedded in an IPv6 address, or the address itself.
func unwrap(addr netip.Addr) netip.Addr {
	if nat64.Contains(addr) {
		b := addr.As16()
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr.Unmap()
}

// The metadata services of clouds, from which a machine gets its own keys, beside 169.254.169.254.
var (
	metadataAddresses = []netip.Addr{
		netip.MustParseAddr("fd00:ec2::254"),   // AWS
		netip.MustParseAddr("fd20:ce::254"),    // Google
		netip.MustParseAddr("100.100.100.200"), // Alibaba
		netip.MustParseAddr("192.0.0.192"),     // Oracle
		netip.MustParseAddr("168.63.129.16"),   // Azure
	}
	metadataNames = []string{
		"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal",
		"metadata.azure.internal", "metadata.azure.com", "metadata.tencentyun.com",
	}
)

// nameFault is the problem of a host name that cannot be looked up. Underscores are allowed, because container
// networks use them.
func nameFault(text, host string) *fault {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if slices.Contains(metadataNames, name) {
		return aboutAddresses.faultf("a cloud's metadata service can be no upstream", "%s is only for the machine itself", shownAddress(text))
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || len(name) > 253 || strings.ContainsFunc(label, isNoHostCharacter) {
			return aboutAddresses.faultf("write a host name or an IP address", "%s has no such host", shownAddress(text))
		}
	}
	if isNumber(labels[len(labels)-1]) {
		return aboutAddresses.faultf("write four numbers from 0 to 255, such as 10.0.0.7", "%s has an IPv4 address in another form", shownAddress(text))
	}
	return nil
}

// isNumber reports whether a host whose last label this is would be an IPv4 address to a resolver: 2852039166 and
// 0xa9fea9fe are 169.254.169.254 (the URL standard: "ends in a number").
func isNumber(label string) bool {
	_, err := strconv.ParseUint(label, 0, 64)
	return err == nil || strings.Trim(label, "0123456789") == ""
}

func isNoHostCharacter(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}

// shownAddress is shown for an address.
func shownAddress(text string) string { return shown(WithoutQuery(text)) }

// WithoutQuery returns an address, or the path of one, with its query redacted: that can be a password.
func WithoutQuery(address string) string {
	if before, query, _ := strings.Cut(address, "?"); query != "" {
		return before + "?[redacted]"
	}
	return address
}
