package envoytest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatepost/testport"
)

// Port returns a free TCP port of loopback, reserved until the test ends.
func Port(t testing.TB) int { return testport.New(t) }

// Addr returns a free loopback address, allocated as by Port: 127.0.0.1:20123.
func Addr(t testing.TB) string { return testport.Addr(t) }

// Accepts reports whether a TCP connection to the address succeeds.
func Accepts(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// quiet is how long an open connection must be idle after a complete response.
const quiet = 250 * time.Millisecond

// RawRequest sends bytes over TCP and returns the bytes that come back. If the server closes the
// connection, these are all bytes. Otherwise RawRequest returns when a complete response was
// received and the connection was idle for a moment; send "connection: close" to avoid that guess.
// If the connection is reset without a response, the result is empty.
func RawRequest(t testing.TB, addr string, request []byte) []byte {
	t.Helper()
	got, err := Exchange(addr, request)
	if err != nil {
		t.Fatalf("sending a raw request: %v; got %q", err, got)
	}
	return got
}

// Exchange is RawRequest with an error result, for concurrent requests.
func Exchange(addr string, request []byte) ([]byte, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return ExchangeOver(conn, request)
}

// ExchangeOver is Exchange over a connection, such as one with TLS. It closes the connection.
func ExchangeOver(conn net.Conn, request []byte) ([]byte, error) {
	defer conn.Close()
	end := time.Now().Add(Deadline)
	if err := conn.SetDeadline(end); err != nil {
		return nil, err
	}
	// A server can respond and close the connection before it has read everything, so a failed
	// write is ignored.
	_, _ = conn.Write(request)
	method, _, _ := strings.Cut(string(request[:min(len(request), 32)]), " ")
	var got bytes.Buffer
	chunk := make([]byte, 32<<10)
	for {
		n, err := conn.Read(chunk)
		got.Write(chunk[:n])
		switch {
		case err == nil && slices.ContainsFunc(parse(got.Bytes(), method), isFinal):
			if slices.ContainsFunc(parse(got.Bytes(), method), closes) {
				// Envoy waits for the client's end, up to a second, before it closes. An error is that it has closed.
				_ = conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			if err := conn.SetReadDeadline(time.Now().Add(quiet)); err != nil {
				return got.Bytes(), err
			}
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(end):
			return got.Bytes(), fmt.Errorf("no whole answer within %v", Deadline)
		default: // closed, reset or quiet
			return got.Bytes(), nil
		}
	}
}

// Response is one HTTP response, such as one in the result of RawRequest.
type Response struct {
	Status int
	Header http.Header
	Body   string

	closes bool
}

// isFinal reports whether the response is final, not interim (100 Continue).
func isFinal(r Response) bool { return r.Status >= 200 }

// closes reports whether the server closes the connection after the response.
func closes(r Response) bool { return isFinal(r) && r.closes }

// Responses parses the result of RawRequest into complete responses. It cannot parse the response
// to a HEAD request.
func Responses(raw []byte) []Response { return parse(raw, http.MethodGet) }

// parse parses consecutive responses. method is the method of the first request, because a response
// to HEAD has no body.
func parse(raw []byte, method string) []Response {
	var all []Response
	r := bufio.NewReader(bytes.NewReader(raw))
	for ; ; method = http.MethodGet {
		res, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return all
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return all
		}
		all = append(all, Response{Status: res.StatusCode, Header: res.Header, Body: string(body), closes: res.Close})
	}
}

// H2Client returns a client that uses HTTP/2 over plain TCP (prior knowledge) and follows no
// redirects.
func H2Client(t testing.TB) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: Deadline, CheckRedirect: noRedirect}
}

// Client returns a client that uses HTTP/1.1 and follows no redirects.
func Client(t testing.TB) *http.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: Deadline, CheckRedirect: noRedirect}
}

// Send sends a request and returns the response. Headers have the form "Name: value".
func Send(ctx context.Context, client *http.Client, method, url, body string, headers ...string) (Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return Response{}, err
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		request.Header.Add(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return Response{}, err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	return Response{Status: response.StatusCode, Header: response.Header, Body: string(read)}, err
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func join(host string, port uint32) string {
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}
