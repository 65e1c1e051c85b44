package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlymodulev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/dynamic_modules/v3"
	earlymutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"

	"gatepost/definitions"
	"gatepost/xds"
)

// ownHeaders are request headers that Envoy removes from every client request (use_remote_address),
// because only Envoy may set them.
var ownHeaders = []string{
	"x-envoy-internal", "x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
	"x-envoy-retry-on", "x-envoy-retry-grpc-on", "x-envoy-max-retries", "x-envoy-upstream-alt-stat-name",
	"x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response",
	"x-envoy-expected-rq-timeout-ms", "x-envoy-force-trace", "x-envoy-ip-tags", "x-envoy-original-path", "x-envoy-original-url",
	"x-envoy-external-address", "x-forwarded-client-cert", "keep-alive", "proxy-connection",
}

// usualHost matches the host of a URL, or an empty string.
var usualHost = regexp.MustCompile(`^([A-Za-z0-9.-]+(:[0-9]{1,5})?)?$`)

// check returns an error if the request cannot be sent or is not modelled.
func (r *Request) check() error {
	if r.Method == "" {
		r.Method = "GET"
	}
	if strings.ContainsAny(r.Method+r.Target, "\r\n\t ") {
		return fmt.Errorf("reading the request: a method and a URL have no space in them")
	}
	if r.Target == "" {
		return fmt.Errorf("reading the request: it has no URL")
	}
	for _, f := range r.Header {
		if strings.ContainsAny(f.Name+f.Value, "\r\n") {
			return fmt.Errorf("reading the request: the header %q has a line end", f.Name)
		}
		switch name := strings.ToLower(f.Name); {
		case slices.Contains([]string{"transfer-encoding", "expect", "te", "http2-settings"}, name),
			name == "upgrade" && !strings.EqualFold(f.Value, "websocket"),
			name == "connection" && !slices.Contains([]string{"close", "keep-alive", "upgrade"}, strings.ToLower(f.Value)):
			return fmt.Errorf("%w: the effect of the header %s on the connection", ErrNotModelled, f.Name)
		case name == "content-type" && strings.HasPrefix(strings.ToLower(f.Value), "application/grpc"):
			return fmt.Errorf("%w: the form in which gRPC calls are refused", ErrNotModelled)
		}
	}
	if _, host, _ := splitTarget(r.Method, r.Target); !usualHost.MatchString(host) {
		return fmt.Errorf("%w: the host %q in a request line", ErrNotModelled, host)
	}
	if r.Method == "CONNECT" {
		return fmt.Errorf("%w: the method CONNECT", ErrNotModelled)
	}
	return nil
}

// size returns the size of the request head in bytes.
func (r *Request) size() int {
	size := len(r.Method) + len(r.Target) + len("  HTTP/1.1\r\n\r\n")
	for _, f := range r.Header {
		size += len(f.Name) + len(f.Value) + len(": \r\n")
	}
	return size
}

// receive applies the codec and the connection manager up to route matching. A rejected request
// gets a local reply.
func (e *Explainer) receive(x *exchange, r Request) error {
	refuse := func(status int, why string) error {
		x.localReply(status, "")
		x.refused = why
		return nil
	}
	if status, why := e.readHead(x, r); status != 0 {
		return refuse(status, why)
	}
	path, host, ok := splitTarget(r.Method, r.Target)
	if !ok {
		return refuse(400, "the request target is malformed")
	}
	if host != "" && strings.EqualFold(r.Target[:len("https:")], "https:") {
		x.localReply(403, "Forbidden")
		x.refused = "an absolute https URL was sent over a connection without TLS"
		return nil
	}
	if host != "" { // RFC 9112 §3.2.2: the host of an absolute URL takes precedence
		x.header.set("host", host)
	}
	x.known, x.client = true, x.header
	if strings.EqualFold(x.header.value("connection"), "upgrade") {
		x.upgrade = x.header.value("upgrade")
	}
	for _, name := range ownHeaders {
		x.header.remove(name)
	}
	x.path, x.sent = path, path
	if status, why := e.readHost(x); status != 0 {
		return refuse(status, why)
	}
	if !strings.HasPrefix(x.path, "/") {
		return refuse(404, "the target * (the whole server) is not supported")
	}
	if status, why := e.normalize(x); status != 0 {
		return refuse(status, why)
	}
	return e.mutateEarly(x)
}

// mutateEarly applies the connection manager's early header mutations, which run before routing.
func (e *Explainer) mutateEarly(x *exchange) error {
	for _, one := range e.manager.GetEarlyHeaderMutationExtensions() {
		config := new(earlymutationv3.HeaderMutation)
		if one.GetTypedConfig().MessageIs((*earlymodulev3.DynamicModuleEarlyHeaderMutation)(nil)) {
			x.mutate(&x.header, xds.EarlyMutations())
			continue
		}
		if err := one.GetTypedConfig().UnmarshalTo(config); err != nil {
			return fmt.Errorf("%w: the early header mutation %s", ErrNotModelled, one.GetName())
		}
		x.mutate(&x.header, config.GetMutations())
	}
	return nil
}

// readHead parses the request line and the headers. If Envoy rejects them, it returns a status and the reason.
func (e *Explainer) readHead(x *exchange, r Request) (status int, why string) {
	if limit := int(e.manager.GetMaxRequestHeadersKb().GetValue()) << 10; limit > 0 && r.size() > limit {
		return 431, fmt.Sprintf("its head has more than %d bytes", limit)
	}
	if !definitions.TakenOverHTTP1(r.Method) {
		return 400, fmt.Sprintf("Envoy's HTTP/1.1 parser does not accept the method %q", r.Method)
	}
	if !plainTarget(r.Target) {
		return 400, "the request target is malformed"
	}
	return e.readHeader(x, r)
}

// readHost reads the host in the form in which it is matched. If Envoy rejects it, it returns a status and the reason.
func (e *Explainer) readHost(x *exchange) (status int, why string) {
	if !x.header.has("host") {
		return 400, "the request has no Host"
	}
	x.host = x.header.value("host")
	if !plainHost(x.host) {
		x.known = false
		return 400, "the Host is malformed"
	}
	if e.manager.GetStripAnyHostPort() {
		x.host = withoutNumber(x.host)
		x.header.set("host", x.host)
	}
	if e.manager.GetStripTrailingHostDot() {
		x.host = withoutTrailingDot(x.host)
		x.header.set("host", x.host)
	}
	return 0, ""
}

// readHeader parses the headers. If Envoy rejects one, it returns a status and the reason.
func (e *Explainer) readHeader(x *exchange, r Request) (status int, why string) {
	options := e.manager.GetCommonHttpProtocolOptions()
	for _, f := range r.Header {
		if !isToken(f.Name) || strings.ContainsFunc(strings.Trim(f.Value, " \t"), isControl) {
			return 400, fmt.Sprintf("the header %q is malformed", f.Name)
		}
		if strings.Contains(f.Name, "_") && options.GetHeadersWithUnderscoresAction() == corev3.HttpProtocolOptions_REJECT_REQUEST {
			return 400, fmt.Sprintf("the header %q has an underscore", f.Name)
		}
		x.header.add(strings.ToLower(f.Name), strings.Trim(f.Value, " \t"))
	}
	if limit := options.GetMaxHeadersCount().GetValue(); limit > 0 && x.header.lines() > int(limit) {
		return 431, fmt.Sprintf("there are more than %d headers", limit)
	}
	return 0, ""
}

// normalize applies the connection manager's path normalization.
func (e *Explainer) normalize(x *exchange) (status int, why string) {
	if strings.Contains(x.path, "#") {
		return 400, "the path has a fragment, which a client keeps to itself"
	}
	path, query, hasQuery := strings.Cut(x.path, "?")
	if e.manager.GetPathWithEscapedSlashesAction() == hcmv3.HttpConnectionManager_REJECT_REQUEST && hasEscapedSlash(path) {
		return 400, "the path has an escaped slash or backslash (%2F, %5C), which servers read in different ways"
	}
	if e.manager.GetNormalizePath().GetValue() {
		ok := false
		if path, ok = canonicalPath(withoutDotParameters(path)); !ok {
			return 400, "the path has an escaped zero byte (%00)"
		}
	}
	if e.manager.GetMergeSlashes() {
		path = mergeSlashes(path)
	}
	x.path = path
	if hasQuery {
		x.path += "?" + query
	}
	return 0, ""
}

// isToken reports whether name is a valid header name (RFC 9110 §5.6.2).
func isToken(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(c rune) bool {
		return !isLetterOrDigit(c) && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
	})
}

// isControl reports whether the character is invalid in a header value (RFC 9110 §5.5).
func isControl(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }

func isLetterOrDigit(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// plainHost reports whether host has only characters that are valid in an authority (RFC 3986
// §3.2).
func plainHost(host string) bool {
	return !strings.ContainsFunc(host, func(c rune) bool {
		return !isLetterOrDigit(c) && !strings.ContainsRune("-._~%!$&'()*+,;=:@[]", c)
	})
}
