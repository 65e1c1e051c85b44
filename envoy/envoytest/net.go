package envoytest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Ports are given out from below the range from which Linux takes ports for outgoing connections (32768 and up), so
// that no connection of another test can sit on one that is free for a moment.
const firstPort, lastPort = 20_000, 32_000

// Port returns a free TCP port of loopback, which no other test that asks here is given until this one has
// ended, in other test processes neither: for servers that can only be told a number, or that come back to it.
func Port(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		// The UDP port of the same number, which nobody uses, is the mark that it is taken.
		mark, err := net.ListenPacket("udp4", join("127.0.0.1", uint32(port)))
		if err != nil {
			continue
		}
		tcp, err := net.Listen("tcp4", join("0.0.0.0", uint32(port)))
		if err != nil {
			mark.Close()
			continue
		}
		tcp.Close()
		t.Cleanup(func() { mark.Close() })
		return port
	}
	t.Fatal("no free port on loopback")
	return 0
}

// Addr returns a free address of loopback, as Port does: 127.0.0.1:20123.
func Addr(t testing.TB) string {
	t.Helper()
	return join("127.0.0.1", uint32(Port(t)))
}

// Accepts says whether something accepts TCP connections at an address.
func Accepts(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// quiet is for how long nothing must come after a whole answer on a connection that stays open.
const quiet = 250 * time.Millisecond

// RawRequest sends bytes as they are over TCP and returns the bytes that come back: all of them, where the
// connection is then closed (say "connection: close", and nothing is guessed); else what came until a whole
// answer was there and nothing more followed for a moment. A connection that is reset without a word gives none.
func RawRequest(t testing.TB, addr string, request []byte) []byte {
	t.Helper()
	got, err := Exchange(addr, request)
	if err != nil {
		t.Fatalf("sending a raw request: %v; got %q", err, got)
	}
	return got
}

// Exchange is RawRequest with an error, for many requests at once.
func Exchange(addr string, request []byte) ([]byte, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	end := time.Now().Add(Deadline)
	if err := conn.SetDeadline(end); err != nil {
		return nil, err
	}
	// A server may answer and close before it has read all: what it said counts, not that writing failed.
	_, _ = conn.Write(request)
	method, _, _ := strings.Cut(string(request[:min(len(request), 32)]), " ")
	var got bytes.Buffer
	chunk := make([]byte, 32<<10)
	for {
		n, err := conn.Read(chunk)
		got.Write(chunk[:n])
		switch {
		case err == nil && slices.ContainsFunc(parse(got.Bytes(), method), isFinal):
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

// Response is one HTTP/1 answer in what RawRequest returned.
type Response struct {
	Status int
	Header http.Header
	Body   string
}

// isFinal says whether it is an answer, and not one that only announces it (100 Continue).
func isFinal(r Response) bool { return r.Status >= 200 }

// Responses takes apart what RawRequest returned: each whole answer in it. The answer to a HEAD is not for it.
func Responses(raw []byte) []Response { return parse(raw, http.MethodGet) }

// parse reads one answer after the other; method is that of the first request, because HEAD's has no body.
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
		all = append(all, Response{Status: res.StatusCode, Header: res.Header, Body: string(body)})
	}
}

// H2Client returns a client that speaks HTTP/2 over plain TCP from the first byte (prior knowledge), and
// follows no redirects.
func H2Client(t testing.TB) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: Deadline, CheckRedirect: noRedirect}
}

// Client returns a client that speaks HTTP/1.1, and follows no redirects.
func Client(t testing.TB) *http.Client {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: Deadline, CheckRedirect: noRedirect}
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func join(host string, port uint32) string {
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}
