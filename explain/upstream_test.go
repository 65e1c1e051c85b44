package explain

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// upstream is an HTTP server that accepts any request line, even those that net/http rejects. It
// echoes the request in response headers, so that HEAD works too. Its CORS headers must not reach
// the client.
type upstream struct {
	name string
	addr string
	seen atomic.Int64 // number of requests
}

// shownHeaders are the request headers that an upstream echoes.
var shownHeaders = []string{"authorization", "x-user-id", "x-caller", "x-who", "x-forwarded-host", "x-original-url", "x-envoy-original-path", "x-envoy-attempt-count", "cookie", "sec-websocket-protocol", "cache-control"}

func startUpstream(t *testing.T, name string) *upstream {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{name: name, addr: listener.Addr().String()}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			serving.Go(func() { u.serve(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for _, conn := range open {
			conn.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return u
}

func (u *upstream) serve(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewReader(conn)
	for {
		first, header, err := readHead(lines)
		if err != nil {
			return
		}
		u.seen.Add(1)
		answer := strings.TrimSuffix(first, " HTTP/1.1")
		method, _, _ := strings.Cut(answer, " ")
		upgrade := header.has("upgrade")
		text := "HTTP/1.1 200 OK\r\n"
		if upgrade {
			text = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
		}
		text += fmt.Sprintf("seen-by: %s\r\nseen: %s\r\n", u.name, answer)
		for _, name := range shownHeaders {
			if value, ok := header.get(name); ok {
				text += fmt.Sprintf("seen-%s: %s\r\n", name, value)
			}
		}
		body := "from " + u.name
		text += "access-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\n" +
			"content-type: text/x-upstream\r\nvary: accept-encoding\r\nserver: own\r\n"
		switch {
		case upgrade:
			text += "\r\n"
		case method == "HEAD":
			text += fmt.Sprintf("content-length: %d\r\n\r\n", len(body))
		default:
			text += fmt.Sprintf("content-length: %d\r\n\r\n%s", len(body), body)
		}
		if _, err := conn.Write([]byte(text)); err != nil || upgrade {
			return
		}
	}
}

// readHead reads a request without a body.
func readHead(r *bufio.Reader) (first string, header fields, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		switch name, value, ok := strings.Cut(line, ":"); {
		case line == "" && first != "":
			return first, header, nil
		case first == "":
			first = line
		case !ok:
			return "", nil, errors.New("no header")
		default:
			header.add(strings.ToLower(name), strings.TrimSpace(value))
		}
	}
}
