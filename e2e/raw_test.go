package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"gatepost/envoy/envoytest"
)

// http1 is the name of HTTP/1.1 in ALPN.
const http1 = "http/1.1"

// dial opens a connection for a protocol, with TLS if the clients of the gateway use it.
func (g *gateway) dial(protocol string) (net.Conn, error) {
	if g.tls == nil {
		return net.Dial("tcp", g.Addr)
	}
	config := g.tls.Clone()
	config.NextProtos = []string{protocol}
	return tls.Dial("tcp", g.Addr, config)
}

// clientH2 returns a client that uses HTTP/2.
func (g *gateway) clientH2(t *testing.T) *http.Client {
	if g.tls == nil {
		return envoytest.H2Client(t)
	}
	return g.client
}

// exchange is envoytest.Exchange over such a connection.
func (g *gateway) exchange(request string) ([]byte, error) {
	conn, err := g.dial(http1)
	if err != nil {
		return nil, err
	}
	return envoytest.ExchangeOver(conn, []byte(request))
}

// Raw sends an HTTP/1 request byte for byte over a new connection and returns the first complete
// response. The status is 0 if the gateway closes the connection without one.
func (g *gateway) Raw(t *testing.T, request string) answer {
	t.Helper()
	got, err := g.TryRaw(request)
	if err != nil {
		t.Fatalf("%.200q: %v", request, err)
	}
	return got
}

// TryRaw is Raw with an error if there is no valid response.
func (g *gateway) TryRaw(request string) (answer, error) {
	conn, err := g.dial(http1)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(envoytest.Deadline)); err != nil {
		return answer{}, err
	}
	_, _ = io.WriteString(conn, request) // the gateway may respond before it has read everything
	return readAnswer(conn, request)
}

// readAnswer reads the response to a request and skips interim responses.
func readAnswer(conn io.Reader, request string) (answer, error) {
	method, _, _ := strings.Cut(request, " ")
	var got bytes.Buffer
	r := bufio.NewReader(io.TeeReader(conn, &got))
	for {
		response, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			if got.Len() > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				return answer{}, fmt.Errorf("reading the answer %.500q: %w", got.Bytes(), err)
			}
			return answer{}, nil
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			return answer{}, fmt.Errorf("reading the answer %.500q: %w", got.Bytes(), err)
		}
		if response.StatusCode >= 200 {
			return answer{Status: response.StatusCode, Header: response.Header, Body: string(body)}, nil
		}
	}
}

// H2 sends an HTTP/2 request with these fields over a new connection. Pseudo-fields in
// more replace the usual one; an empty one removes it. The status is 0 if the gateway ends the stream
// or the connection without a response.
func (g *gateway) H2(t *testing.T, method, path, body string, more ...[2]string) answer {
	t.Helper()
	got, err := g.TryH2(method, path, body, more...)
	if err != nil {
		t.Fatalf("%s %.200q: %v", method, path, err)
	}
	return got
}

// TryH2 is H2 with an error if the response is incomplete.
func (g *gateway) TryH2(method, path, body string, more ...[2]string) (answer, error) {
	scheme, _, _ := strings.Cut(g.URL, ":")
	head := [][2]string{{":method", method}, {":scheme", scheme}, {":authority", "h"}, {":path", path}}
	var fields [][2]string
	for _, usual := range head {
		given := slices.DeleteFunc(slices.Clone(more), func(one [2]string) bool { return one[0] != usual[0] })
		if len(given) == 0 {
			given = [][2]string{usual}
		}
		fields = append(fields, slices.DeleteFunc(given, func(one [2]string) bool { return one[1] == "" })...)
	}
	for _, one := range more {
		if !slices.ContainsFunc(head, func(usual [2]string) bool { return usual[0] == one[0] }) {
			fields = append(fields, one)
		}
	}
	return g.tryFields(fields, body)
}

// tryFields sends an HTTP/2 request with exactly these fields.
func (g *gateway) tryFields(fields [][2]string, body string) (answer, error) {
	conn, err := g.dial(http2.NextProtoTLS)
	if err != nil {
		return answer{}, err
	}
	got, err := envoytest.H2Over(conn, fields, body)
	if err != nil {
		return answer{}, err
	}
	out := answer{Header: http.Header{}, Body: got.Body}
	for _, field := range got.Fields {
		out.Header.Add(field.Name, field.Value)
	}
	if got.Status != "" {
		out.Status, err = strconv.Atoi(got.Status)
	}
	return out, err
}

// rawGet returns an HTTP/1 request for a path with more header lines.
func rawGet(path string, lines ...string) string { return rawRequest("GET", path, lines...) }

// rawRequest returns an HTTP/1 request with this method, target and header lines.
func rawRequest(method, target string, lines ...string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nhost: h\r\n%s\r\n", method, target, headerLines(lines))
}

// rawWithBody returns an HTTP/1 request with a body and its length.
func rawWithBody(method, target, body string, lines ...string) string {
	return rawRequest(method, target, append(lines, fmt.Sprintf("content-length: %d", len(body)))...) + body
}

func headerLines(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\r\n") + "\r\n"
}

// The syntax of requests to an upstream, stricter than that of any server: what it accepts is
// unambiguous for all servers (RFC 9112 §2 to §7).
var (
	strictRequestLine = regexp.MustCompile(`^[A-Z]+ (/[!-~]*(?:\?[^\x00-\x20\x7f]*)?) HTTP/1\.1$`) // HTTP/2 lets any letter into a query
	strictField       = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([^\\x00-\\x08\\x0a-\\x1f\\x7f]*)$")
	strictLength      = regexp.MustCompile(`^[0-9]{1,20}$`)
)

// targets parses the bytes of one upstream connection and returns the target of each request.
// Ambiguous framing is an error; an incomplete request at the end is not.
func targets(stream string) ([]string, error) {
	var all []string
	for stream != "" {
		head, rest, whole := strings.Cut(stream, "\r\n\r\n")
		if !whole {
			return all, nil
		}
		lines := strings.Split(head, "\r\n")
		line := strictRequestLine.FindStringSubmatch(lines[0])
		if line == nil {
			return all, fmt.Errorf("request line %q", lines[0])
		}
		all = append(all, line[1])
		framing := ""
		for _, l := range lines[1:] {
			field := strictField.FindStringSubmatch(l)
			if field == nil {
				return all, fmt.Errorf("header line %q", l)
			}
			if name := strings.ToLower(field[1]); name == "content-length" || name == "transfer-encoding" {
				if framing != "" {
					return all, fmt.Errorf("%s beside %s", l, framing)
				}
				framing = name + ": " + field[2]
			}
		}
		var err error
		if stream, err = pastBody(framing, rest); err != nil {
			return all, err
		}
	}
	return all, nil
}

// pastBody returns what follows the body at the start of rest, or "" if the body is incomplete.
func pastBody(framing, rest string) (string, error) {
	length, counted := strings.CutPrefix(framing, "content-length: ")
	switch {
	case framing == "":
		return rest, nil
	case counted && strictLength.MatchString(length):
		n, err := strconv.ParseUint(length, 10, 64)
		return rest[min(n, uint64(len(rest))):], err
	case framing != "transfer-encoding: chunked":
		return "", fmt.Errorf("framing by %q", framing)
	}
	for {
		size, after, whole := strings.Cut(rest, "\r\n")
		if !whole {
			return "", nil
		}
		n, err := strconv.ParseUint(size, 16, 31)
		if err != nil {
			return "", fmt.Errorf("chunk of size %q", size)
		}
		if uint64(len(after)) < n+2 {
			return "", nil
		}
		if after[n:n+2] != "\r\n" {
			return "", fmt.Errorf("chunk of %d bytes that ends in %q", n, after[n:n+2])
		}
		rest = after[n+2:]
		if n == 0 {
			return rest, nil
		}
	}
}

func TestTargetsRejectsAmbiguousStreams(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		"GET /a HTTP/1.1\r\nhost: h\r\n\r\nPOST /b HTTP/1.1\r\ncontent-length: 2\r\n\r\nxyGET /c HTTP/1.1\r\n\r\n",
		"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n",
	} {
		if got, err := targets(good); err != nil || strings.Join(got, " ") != "/a /b /c" {
			t.Errorf("%q: %v %v", good, got, err)
		}
	}
	for _, half := range []string{"", "GET /a HT", "POST /a HTTP/1.1\r\ncontent-length: 9\r\n\r\nx", "POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"} {
		if _, err := targets(half); err != nil {
			t.Errorf("%q: %v, want no error so far", half, err)
		}
	}
	for _, bad := range []string{
		"GET  /a HTTP/1.1\r\n\r\n", "get /a HTTP/1.1\r\n\r\n", "GET http://h/a HTTP/1.1\r\n\r\n", "GET /a HTTP/1.0\r\n\r\n", "GET /a\nb HTTP/1.1\r\n\r\n",
		"GET /a HTTP/1.1\r\nb : c\r\n\r\n", "GET /a HTTP/1.1\r\nb: c\nd: e\r\n\r\n", "GET /a HTTP/1.1\r\nb: c\r\n d\r\n\r\n",
		"POST /a HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx", "POST /a HTTP/1.1\r\ncontent-length: +1\r\n\r\nx",
		"POST /a HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "POST /a HTTP/1.1\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
		"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", "POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
		"POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;ext\r\na\r\n0\r\n\r\n",
	} {
		if got, err := targets(bad); err == nil {
			t.Errorf("%q: taken for %v, want an error", bad, got)
		}
	}
}
