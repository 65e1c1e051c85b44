package endpoint

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"golang.org/x/net/http/httpguts"

	"gatepost/definitions"
	"gatepost/tracing"
)

const (
	// maxAnswer and maxAnswerHeader bound the user service's answer.
	maxAnswer       = 1 << 20
	maxAnswerHeader = 64 << 10

	// maxKept is the capacity up to which a buffer is reused.
	maxKept = 64 << 10

	// idleTimeout is the lifetime of an idle connection to the user service. It is shorter than the
	// idle timeouts of common servers (gunicorn 2s, Node.js 5s): a login on a connection that the
	// server closes fails, and it is not sent again, because the server may have counted it.
	idleTimeout = 1500 * time.Millisecond
)

var (
	errUnreachable = errors.New("user service unreachable")
	errSlow        = errors.New("user service timed out")
	errAnswer      = errors.New("invalid answer from the user service")
)

// newTransport returns a transport that connects directly to the user service: no proxy from the
// environment, no compression, HTTP/1.1. A RoundTripper does not follow redirects.
func newTransport() *http.Transport {
	t := &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    512,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswerHeader,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// answer is the complete answer of the user service.
type answer struct {
	status int
	header http.Header
	body   *bytes.Buffer
}

// buffers holds the buffers of answers. Large buffers are dropped, and all are cleared because they
// may hold a token.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (a *answer) release() {
	if a.body.Cap() <= maxKept {
		clear(a.body.Bytes())
		a.body.Reset()
		buffers.Put(a.body)
	}
}

// forward sends a login to the user service and returns the whole answer. On failure it returns
// errUnreachable, errSlow, errAnswer, or the error of the client's body. It reads the answer to its
// end first, so no token is minted for half an answer. It consumes the request's header.
func (h *Handler) forward(r *http.Request, a *definitions.Authenticator, b *body) (*answer, error) {
	// A disconnect must not end the login: it would hide a wrong password from the shield.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), a.Timeout)
	defer cancel()
	start := time.Now()
	defer func() { h.metrics.userService.Observe(time.Since(start).Seconds()) }()

	ctx, span := tracing.Start(ctx, "user service")
	defer span.End()
	request := outbound(r, a, b)
	tracing.Inject(ctx, request.Header)
	response, err := h.transport.RoundTrip(request.WithContext(ctx))
	if err != nil {
		span.SetStatus(codes.Error, errUnreachable.Error())
		return nil, forwardError(ctx, b, errUnreachable, err)
	}
	defer response.Body.Close()
	span.SetAttributes(attribute.Int("http.response.status_code", response.StatusCode))
	// 101 was not requested, others are invalid
	if response.StatusCode < 200 || response.StatusCode > 599 {
		return nil, fmt.Errorf("%w: status %d", errAnswer, response.StatusCode)
	}
	if response.ContentLength > maxAnswer {
		return nil, fmt.Errorf("%w: longer than %d bytes", errAnswer, maxAnswer)
	}
	answer := &answer{status: response.StatusCode, header: response.Header, body: buffers.Get().(*bytes.Buffer)}
	var whole io.Reader = response.Body
	if response.ContentLength < 0 { // otherwise the transport enforces the length
		whole = io.LimitReader(whole, maxAnswer+1)
	}
	if _, err := answer.body.ReadFrom(whole); err != nil {
		answer.release()
		return nil, forwardError(ctx, b, errAnswer, err)
	}
	if answer.body.Len() > maxAnswer {
		answer.release()
		return nil, fmt.Errorf("%w: longer than %d bytes", errAnswer, maxAnswer)
	}
	return answer, nil
}

// forwardError returns the cause of a failed login in text that is safe to log. The transport's own
// errors quote the user service's bytes.
func forwardError(ctx context.Context, b *body, kind, err error) error {
	if theirs := b.err(); theirs != nil && theirs != io.EOF {
		return theirs
	}
	if ctx.Err() != nil {
		return errSlow
	}
	var (
		network     *net.OpError
		certificate *tls.CertificateVerificationError
		alert       tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &network):
		return fmt.Errorf("%w: %w", kind, network)
	case errors.As(err, &certificate):
		return fmt.Errorf("%w: %w", kind, certificate)
	case errors.As(err, &alert):
		return fmt.Errorf("%w: it does not use TLS", kind)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it closed the connection early", kind)
	}
	return fmt.Errorf("%w: not a valid HTTP response", errAnswer)
}

// outbound returns the request for the user service: the client's method, header and body without
// hop-by-hop fields, sent to the configured URL. The client's query is dropped, because it could
// override a parameter of that URL.
func outbound(r *http.Request, a *definitions.Authenticator, b *body) *http.Request {
	dropHopByHop(r.Header)
	// net/http sets the length from the body and Host from the URL.
	delete(r.Header, "Content-Length")
	delete(r.Header, "Expect")
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // otherwise net/http adds its own
	}
	forbidReplay(r.Header)
	out := &http.Request{
		Method:        r.Method,
		URL:           a.URL,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        r.Header,
		ContentLength: b.length,
	}
	if b.length != 0 {
		out.Body = b.reader()
	}
	// If a stale connection took no byte of the login, net/http may send it on a new one.
	if b.length != 0 && b.rest == nil {
		out.GetBody = func() (io.ReadCloser, error) { return b.reader(), nil }
	}
	return out
}

// forbidReplay prevents net/http from sending a login twice. Its Transport repeats a POST on a new
// connection if the header map has an entry Idempotency-Key or X-Idempotency-Key (package net/http,
// type Transport). It checks the canonical spelling only. Field names are case-insensitive on the
// wire, so the user service still receives the fields.
func forbidReplay(header http.Header) {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := header[name]; ok {
			delete(header, name)
			header[strings.ToLower(name)] = values
		}
	}
}

// hopByHop lists the fields of a single connection (RFC 9110 §7.6.1 and its predecessors).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

func dropHopByHop(header http.Header) {
	for _, line := range header["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.TrimString(name); name != "" {
				header.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(header, name)
	}
}

// copyTo copies the answer's header to the client's response. It drops hop-by-hop fields and CORS
// permissions, which the gateway decides. It also drops invalid fields: Envoy would reject the
// whole response because of them, after a token was minted.
func (a *answer) copyTo(header http.Header) {
	dropHopByHop(a.header)
	delete(a.header, "Content-Length")
	for name, values := range a.header {
		if strings.HasPrefix(name, "Access-Control-Allow-") || !httpguts.ValidHeaderFieldName(name) {
			continue
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				values = nil
				break
			}
		}
		if len(values) > 0 {
			header[name] = values
		}
	}
	if _, ok := header["Content-Type"]; !ok {
		header["Content-Type"] = nil // otherwise net/http guesses one
	}
}

// deliver sends the answer unchanged to the client.
func (a *answer) deliver(w http.ResponseWriter) {
	a.copyTo(w.Header())
	a.write(w)
}

func (a *answer) write(w http.ResponseWriter) {
	if a.status == http.StatusNoContent || a.status == http.StatusNotModified { // no body allowed
		w.WriteHeader(a.status)
		return
	}
	w.Header()["Content-Length"] = []string{strconv.Itoa(a.body.Len())}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes()) // the client may have disconnected
}
