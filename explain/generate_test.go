package explain

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// The generators create definitions and requests with many edge cases. Few requests have more than
// a handful of deviations, so most are rejected for one reason only.

type dice struct{ *rand.Rand }

// chance returns true in one case of n.
func (d dice) chance(n int) bool { return d.IntN(n) == 0 }

func (d dice) one(of ...string) string { return of[d.IntN(len(of))] }

// some returns up to most of them, in a random order.
func (d dice) some(most int, of ...string) []string {
	all := slices.Clone(of)
	d.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:d.IntN(min(most, len(all))+1)]
}

var (
	somePaths = []string{
		"/", "/orders", "/orders/deep", "/Orders/Deep/Er", "/items", "/a", "/a/b", "/a/b/c", "/v1.0/x", "/it's(ok)", "/~u_-",
		"/k=v:p@h", "/tokens", "/.gatepostal", "/...", "/a.", "/.a", "/b!$&+,", "/tok", "/x/token",
	}
	someHosts   = []string{"gate.example", "a.gate.example", "*.gate.example", "*.a.gate.example", "*.example", "h"}
	someOrigins = []string{"https://shop.example", "http://localhost:3000", "https://a.example:8443", "https://xn--bcher-kva.example"}
	someMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "FOO"}
	someScopes  = []string{"read", "write:all", "x"}
)

// definitions generates a definitions file with the given upstreams.
func (d dice) definitions(listen string, upstreams []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "listen: %s\n", listen)
	origins := d.some(3, someOrigins...)
	if len(origins) > 0 && d.chance(3) {
		fmt.Fprintf(&b, "origins: [%s]\n", quoted(origins))
		fmt.Fprintf(&b, "cors: {allow_credentials: %t, max_age: %ds, expose_headers: [%s]}\n", d.chance(2), d.IntN(1000), quoted(d.some(2, "ETag", "x-total")))
	} else if d.chance(2) {
		fmt.Fprintf(&b, "cors: {allow_headers: [%s], expose_headers: [%s]}\n", quoted(append(d.some(2, "X-A", "Accept"), "Authorization")), quoted(d.some(2, "ETag", "x-total")))
	}
	cookie := "" // it goes with the origins: by those it is seen which listener is served
	if strings.HasPrefix(b.String()[strings.Index(b.String(), "\n")+1:], "origins") {
		cookie = "cookie: session, "
	}
	fmt.Fprintf(&b, "tokens: {path: %q, %ssubprotocol: gatepost.bearer, authenticator: {url: \"http://users.example/users/authenticate\", user_header: %s}}\n",
		d.one("/token", "/Token", "/auth/login", "/t"), cookie, d.one("userid", "x-uid"))
	if d.chance(3) {
		fmt.Fprintf(&b, "identity: {user_header: %s}\n", d.one("X-Caller", "x-who"))
	}
	if d.chance(4) {
		b.WriteString("rate_limits: [{requests: 1000000, by: address}]\n")
	}
	if d.chance(2) {
		fmt.Fprintf(&b, "access_log: {format: %s}\n", d.one("ecs", "text"))
	}
	if d.chance(3) {
		b.WriteString("client_addresses: {trusted_proxies: [10.0.0.0/8]}\n")
	}
	if d.chance(3) {
		b.WriteString("response_headers: {set: {X-All: all, X-Own: gateway, Server: shop}, remove: [Seen-By]}\n")
	}
	b.WriteString("services:\n")
	names := []string{"token", "unknown", "version", "orders", "a.b", "c_d", "e-f", "G"}
	taken := map[string]bool{}
	withHosts := d.chance(2)
	for _, name := range append(d.some(len(names), names...), "last") {
		path := d.one(somePaths...)
		var hosts []string
		if withHosts && !d.chance(3) {
			path, hosts = d.one(somePaths[:7]...), append(d.some(2, someHosts...), d.one(someHosts...))
			slices.Sort(hosts)
			hosts = slices.Compact(hosts)
		}
		places := []string{strings.ToLower(path)}
		for _, host := range hosts {
			places = append(places, host+strings.ToLower(path))
		}
		if len(hosts) > 0 {
			places = places[1:]
		}
		if slices.ContainsFunc(places, func(place string) bool { return taken[place] }) {
			continue
		}
		for _, place := range places {
			taken[place] = true
		}
		d.service(&b, name, path, hosts, upstreams)
	}
	return b.String()
}

func (d dice) service(b *strings.Builder, name, path string, hosts, upstreams []string) {
	fmt.Fprintf(b, "  - name: %s\n    path: %q\n", name, path)
	redirects := d.chance(6)
	if redirects {
		fmt.Fprintf(b, "    redirect: {to: %q, status: %s}\n", d.one("https://new.example", "http://new.example:8080/", "https://[2001:db8::7]/new/shop"), d.one("301", "302", "307", "308"))
	} else {
		fmt.Fprintf(b, "    upstreams: [%q]\n", d.one(upstreams...)+d.one("", "", "/base", "/Base/two"))
	}
	if d.chance(8) {
		fmt.Fprintf(b, "    maintenance: %s\n", d.one("{}", "{message: \"Back at 100 % \\\"noon\\\"\", retry_after: 1800s}"))
	}
	if d.chance(4) {
		fmt.Fprintf(b, "    response_headers: {set: {X-Own: %s}, remove: [%s]}\n", d.one("one", "\"100% %REQ(host)%\""), d.one("Seen", "X-None", "X-All"))
	}
	if len(hosts) > 0 {
		fmt.Fprintf(b, "    hosts: [%s]\n", quoted(hosts))
	}
	public := d.chance(2)
	if public || d.chance(2) {
		fmt.Fprintf(b, "    authenticate: %t\n", !public)
	}
	methods := d.some(4, someMethods...)
	if d.chance(2) {
		methods = nil
	}
	if len(methods) > 0 {
		fmt.Fprintf(b, "    allowed_methods: [%s]\n", strings.Join(methods, ", "))
	}
	if scopes := d.some(2, someScopes...); !public && len(scopes) > 0 && d.chance(2) {
		fmt.Fprintf(b, "    scopes: [%s]\n", quoted(scopes))
	}
	if redirects {
		return
	}
	if d.chance(4) {
		b.WriteString("    compression: true\n")
	}
	if d.chance(4) {
		fmt.Fprintf(b, "    rate_limits: [{requests: 1000000, by: service}, {requests: 1000000, by: %s}]\n", d.one("address", "service"))
	}
	if d.chance(4) {
		fmt.Fprintf(b, "    request_headers: {set: {Cache-Control: %s}, remove: [%s]}\n", d.one("no-cache", "\"%REQ(host)%\""), d.one("X-A", "X-Forwarded"))
	}
	if d.chance(3) {
		b.WriteString("    keep_prefix: true\n")
	}
	if d.chance(4) {
		b.WriteString("    forward_token: true\n")
	}
	if d.chance(3) && (len(methods) == 0 || slices.Contains(methods, "GET")) {
		b.WriteString("    websocket: true\n")
	}
	if d.chance(3) {
		fmt.Fprintf(b, "    %s\n", d.one("outlier_detection: true", "limits: {requests: 99}", "affinity: address"))
	}
	if len(methods) == 0 && d.chance(3) { // routes of their own for idempotent methods
		b.WriteString("    retries: {on: [gateway-error, reset]}\n")
	}
}

func quoted(all []string) string {
	out := make([]string, len(all))
	for i, s := range all {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}

// request generates a request, usually for one of the paths.
func (d dice) request(paths, credentials []string, userHeader string) Request {
	r := Request{Method: d.one("GET", "GET", "GET", "POST", "DELETE", "OPTIONS", d.one(someMethods...)), Target: d.target(paths)}
	if d.chance(40) {
		r.Method = d.one("get", "TRACE", "BREW", "G@T", "UNLOCK")
	}
	host := "gate.example"
	if d.chance(3) {
		host = d.one("a.gate.example", "b.A.gate.example:80", "x.gate.example", "GATE.example", "gate.example.", "other.example", "h", "10.0.0.7", "a.gate.example.:8")
	}
	if d.chance(12) {
		host = d.one("user@gate.example", "a.gate.example:x@h", "gate.example:", ".gate.example", "a..gate.example", "[gate.example]",
			"x.gate.example,h", "gate.example:1:2", "gate.example:5500", "GATE.example", "", "a,b", "a b", "[::1]:5500", "user@h", "h.", "h/x", "h?x")
	}
	if !d.chance(60) {
		r.Header = append(r.Header, Field{d.one("Host", "host"), host})
	}
	add := func(name, value string) { r.Header = append(r.Header, Field{name, value}) }
	if d.chance(2) {
		add("Origin", d.origin())
	}
	if d.chance(40) {
		add("oRIGIN", d.origin())
	}
	if r.Method == "OPTIONS" && !d.chance(4) || d.chance(20) {
		add("Access-Control-Request-Method", d.one("GET", "POST", "FOO", "", " "))
	}
	if d.chance(8) {
		add("Access-Control-Request-Headers", "authorization,x-a")
	}
	if !d.chance(3) {
		add("Authorization", d.one(credentials...))
	}
	if d.chance(40) {
		add("authorization", d.one(credentials...))
	}
	if d.chance(6) {
		token := strings.TrimPrefix(d.one(credentials...), "Bearer ")
		add("Cookie", d.one("a=1; session="+token, "session="+token+"; b=2", "session=", "a=1", "a=1,session="+token, "session=x; session="+token))
	}
	if d.chance(6) {
		token := strings.TrimPrefix(d.one(credentials...), "Bearer ")
		add("Sec-WebSocket-Protocol", d.one("gatepost.bearer."+token, "chat, gatepost.bearer."+token, "gatepost.bearer, gatepost.bearer."+token, "chat", "gatepost.bearer"))
	}
	if d.chance(12) {
		add("Upgrade", d.one("websocket", "WebSocket"))
		if !d.chance(4) {
			add("Connection", d.one("Upgrade", "upgrade", "close"))
		}
		add("Sec-WebSocket-Version", "13")
		add("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	}
	if d.chance(6) {
		add(d.one(userHeader, strings.ToUpper(userHeader)), "mallory")
	}
	d.oddHeader(add)
	d.Shuffle(len(r.Header), func(i, j int) { r.Header[i], r.Header[j] = r.Header[j], r.Header[i] })
	return r
}

func (d dice) oddHeader(add func(name, value string)) {
	switch d.IntN(90) {
	case 0:
		add("x_under", "1")
	case 1:
		add(d.one("bad name", "bad\x7f", "", "b\xc3\xa4d", "b(d)"), "1")
	case 2:
		add("x-bytes", d.one("\xff\xfe", "a\x01b", "\x00", "b\xc3\xa4d", "a\tb", "a\x7f"))
	case 3:
		for range d.one(strings.Repeat("x", 57), strings.Repeat("x", 70), strings.Repeat("x", 62)) {
			add("x-many", "1")
		}
	case 4:
		add("x-big", strings.Repeat("b", 15_000+d.IntN(4_000)))
	case 5:
		add("X-Forwarded-Host", "evil.example")
		add("X-Original-URL", "/orders")
		add("X-Envoy-Original-Path", "/orders")
		add("x-envoy-attempt-count", "9")
	case 6:
		add("Content-Length", "0")
		add("Content-Type", "text/plain")
	}
}

func (d dice) origin() string {
	if d.chance(3) {
		return d.one("https://evil.example", "null", "", " ", "*", "HTTPS://SHOP.EXAMPLE", "https://shop.example/", "https://shop.example.evil.example",
			"https://shop.example,https://shop.example", "https://shop.example https://evil.example", "%REQ(host)%", "a\"b", "\xff", "https://sh\xc3\xb6p.example")
	}
	return d.one(someOrigins...)
}

// target derives a request target from a path with a handful of changes.
func (d dice) target(paths []string) string {
	path := d.one(paths...)
	if d.chance(6) {
		path = d.one("/nothing", "/orderss", "/token/x", "/.gatepost/version", "/.gatepost", "/.GATEPOST/version", "/a/../a", "")
	}
	for range d.IntN(3) {
		path += d.one("/", "/5", "/Deep", "/a", "/b", "foo", "/5/6", "/sessions", "/revoke", "/sessions/ab-C", "/token")
	}
	for range []int{0, 0, 0, 0, 1, 1, 2, 3}[d.IntN(8)] {
		path = d.twist(path)
	}
	switch d.IntN(8) {
	case 0, 1:
		path += d.one("?", "?x=1", "?/../orders", "?%2f", "?a#b", "??", "?\xc3\xa4", "?%00", "?a b", "?//")
	case 2:
		if d.chance(3) {
			path += d.one("#", "#x", "%23x")
		}
	case 3:
		if d.chance(3) {
			path = d.one("http://other.example", "https://other.example", "HTTP://x.example:80", "http://", "ftp://x", "http://u@x", "http:/", "//x.example", "x", "*", "http://a b") + path
		}
	}
	return path
}

// pieces are path fragments that normalization treats specially.
var pieces = []string{
	"/", "//", "/.", "/..", "/./", "/../", "/.../", "/%2e", "/%2E%2e/", "/.%2e/", "/..;/", "/..;x=1/", "/.;", "/%2e%2e;/", "\\..;\\", "\\", "/..\\", "%2f", "%2F", "%5c", "%5C", "%252f", "%25",
	"%", "%%", "%zz", "%4", "%41", "%61", "%7e", "%20", "%00", "%%300", "%%30%30", "%0%30", "%1%41", "%7f", "%80", "%c3%a4", "%3f", "%23", "%3B", ";", ";x=1",
	".", "..", "~", "!", "'", "(", ")", "*", "[", "]", "^", "`", "{", "|", "}", "\"", "<", ">", "\f", "\x01", "\x7f", "\xc3\xa4", "\xff", "+", ":", "@", "=", ",", "$", "&",
}

func (d dice) twist(path string) string {
	at := d.IntN(len(path) + 1)
	switch d.IntN(7) {
	case 0: // another case
		return strings.ToUpper(path[:at]) + path[at:]
	case 1: // an escape for a character
		if at < len(path) {
			return path[:at] + fmt.Sprintf(d.one("%%%02x", "%%%02X"), path[at]) + path[at+1:]
		}
		return path
	case 2: // a way around
		return path[:at] + d.one("/x/..", "/x/../", "/./", "/y/%2e%2E") + path[at:]
	case 3: // one more segment
		return path + d.one(pieces...)
	default:
		return path[:at] + d.one(pieces...) + path[at:]
	}
}
