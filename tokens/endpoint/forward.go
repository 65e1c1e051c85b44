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

	"golang.org/x/net/http/httpguts"

	"gatepost/definitions"
)

const (
	// maxAnswer and maxAnswerHeader bound what the user service may answer.
	maxAnswer       = 1 << 20
	maxAnswerHeader = 64 << 10

	// maxKept is the largest buffer that is kept for the next answer.
	maxKept = 64 << 10

	// idleTimeout is how long an idle connection to the user service is kept: less than the servers do that
	// close them soonest (gunicorn after 2s, Node.js after 5s), for a login that meets one being closed is
	// lost. It is not sent again: nobody knows whether it was counted.
	idleTimeout = 1500 * time.Millisecond
)

var (
	errUnreachable = errors.New("user service out of reach")
	errSlow        = errors.New("user service too slow")
	errAnswer      = errors.New("user service's answer is broken")
)

// newTransport returns connections to the user service and to nothing in between: no proxy from the
// environment, no compression of our own, HTTP/1.1. A RoundTripper follows no redirects.
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

// answer is what the user service answered, all of it.
type answer struct {
	status int
	header http.Header
	body   *bytes.Buffer
}

// buffers holds the memory of answers. What grew large is not kept, and no token is.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func (a *answer) release() {
	if a.body.Cap() <= maxKept {
		clear(a.body.Bytes())
		a.body.Reset()
		buffers.Put(a.body)
	}
}

// forward sends a login to the user service as it came and returns the whole answer, or errUnreachable,
// errSlow, errAnswer, or the error of the client's body. The answer is read to its end before anything is
// made of it, so a token is never minted for half an answer. The request's own header is used up.
func (h *Handler) forward(r *http.Request, a *definitions.Authenticator, b *body) (*answer, error) {
	// Who hangs up does not end the login: it would hide a wrong password from the shield.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), a.Timeout)
	defer cancel()
	start := time.Now()
	defer func() { h.metrics.userService.Observe(time.Since(start).Seconds()) }()

	response, err := h.transport.RoundTrip(outbound(r, a, b).WithContext(ctx))
	if err != nil {
		return nil, forwardError(ctx, b, errUnreachable, err)
	}
	defer response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode > 599 { // 101 was not asked for, the rest is no status
		return nil, fmt.Errorf("%w: status %d", errAnswer, response.StatusCode)
	}
	if response.ContentLength > maxAnswer {
		return nil, fmt.Errorf("%w: longer than %d bytes", errAnswer, maxAnswer)
	}
	answer := &answer{status: response.StatusCode, header: response.Header, body: buffers.Get().(*bytes.Buffer)}
	var whole io.Reader = response.Body
	if response.ContentLength < 0 { // else the transport keeps to it
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

// forwardError says what kept a login from its answer, in words that may be logged: the transport's own errors
// quote what the user service sent.
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
		return fmt.Errorf("%w: it does not speak TLS", kind)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it closed the connection early", kind)
	}
	return fmt.Errorf("%w: it is not the HTTP that was expected", errAnswer)
}

// outbound returns the request for the user service: method, header and body as the client sent them, without hop-by-hop
// fields. The URL is the configured one. The client's query is dropped: it could override a parameter of that URL.
func outbound(r *http.Request, a *definitions.Authenticator, b *body) *http.Request {
	dropHopByHop(r.Header)
	// net/http writes the length of the body that was read, and Host from the URL.
	delete(r.Header, "Content-Length")
	delete(r.Header, "Expect")
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // net/http would name itself
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
	if b.length != 0 && b.rest == nil { // a login of which no byte was written to a stale connection is sent on a new one
		out.GetBody = func() (io.ReadCloser, error) { return b.reader(), nil }
	}
	return out
}

// forbidReplay keeps net/http from sending a login twice. Its Transport repeats a POST on a new connection if the header
// map has an entry Idempotency-Key or X-Idempotency-Key (package net/http, type Transport). It looks for the canonical
// spelling only, and field names are case-insensitive on the wire, so the user service still gets the fields.
func forbidReplay(header http.Header) {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := header[name]; ok {
			delete(header, name)
			header[strings.ToLower(name)] = values
		}
	}
}

// hopByHop are the fields that are about one connection (RFC 9110 §7.6.1 and its predecessors).
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

// copyTo puts the answer's header into the one that goes to the client. Fields about one connection stay
// behind, and those that say which page may read the answer: that is the gateway's to say. What is no field by
// HTTP's rules is dropped too: Envoy would drop the whole answer for it, after a token was minted.
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
		header["Content-Type"] = nil // net/http would guess one
	}
}

// deliver answers with the answer as it is.
func (a *answer) deliver(w http.ResponseWriter) {
	a.copyTo(w.Header())
	a.write(w)
}

func (a *answer) write(w http.ResponseWriter) {
	if a.status == http.StatusNoContent || a.status == http.StatusNotModified { // which have no body
		w.WriteHeader(a.status)
		return
	}
	w.Header()["Content-Length"] = []string{strconv.Itoa(a.body.Len())}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes()) // the client may be gone
}
