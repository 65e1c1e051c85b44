package envoytest

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
)

// Request is a request as it reached an upstream.
type Request struct {
	Method string
	// Path is the request target as it stood in the request line: path and query, escapes kept.
	Path   string
	Host   string
	Header http.Header
	Body   string
}

// Recorder is an upstream service that records what reaches it.
type Recorder struct {
	server *httptest.Server

	mu       sync.Mutex
	requests []Request
	raw      bytes.Buffer
	streams  map[int]*bytes.Buffer // connection's number → what came over it
	accepted int
	handler  http.Handler
}

// Upstream starts a recording upstream on loopback; it ends with the test. It answers 200 and a JSON object
// with what it got, until SetHandler says otherwise.
func Upstream(t testing.TB) *Recorder {
	t.Helper()
	r := &Recorder{streams: map[int]*bytes.Buffer{}, handler: http.HandlerFunc(echo)}
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.server.Listener = recordingListener{r.server.Listener, r}
	r.server.Start()
	t.Cleanup(func() {
		r.server.CloseClientConnections()
		r.server.Close()
	})
	return r
}

// Addr returns host:port.
func (r *Recorder) Addr() string { return r.server.Listener.Addr().String() }

// URL returns http://host:port.
func (r *Recorder) URL() string { return r.server.URL }

// Requests returns what has reached the upstream since the start or the last Reset.
func (r *Recorder) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Raw returns every byte that has reached the upstream since the start or the last Reset: also what its
// server did not take for a request.
func (r *Recorder) Raw() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.raw.String()
}

// Streams returns what Raw does, for each connection by itself: what one request leaves behind, the next one on
// that connection meets.
func (r *Recorder) Streams() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, stream := range r.streams {
		all = append(all, stream.String())
	}
	return all
}

// Reset forgets what has been recorded.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
	r.raw.Reset()
	clear(r.streams)
}

// SetHandler has h answer from now on, after the request was recorded; h can read the body as usual.
func (r *Recorder) SetHandler(h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handler = h
}

// Handler returns what answers now, for another to call.
func (r *Recorder) Handler() http.Handler {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handler
}

// record notes what came over a connection. The caller holds the lock.
func (r *Recorder) record(number int, data []byte) {
	if len(data) == 0 {
		return
	}
	r.raw.Write(data)
	if r.streams[number] == nil {
		r.streams[number] = new(bytes.Buffer)
	}
	r.streams[number].Write(data)
}

func (r *Recorder) serve(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the client went away in the middle: no request
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	r.mu.Lock()
	r.requests = append(r.requests, Request{
		Method: req.Method, Path: req.RequestURI, Host: req.Host, Header: req.Header.Clone(), Body: string(body),
	})
	handler := r.handler
	r.mu.Unlock()
	handler.ServeHTTP(w, req)
}

func echo(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body) // from memory: serve has read it
	w.Header().Set("content-type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // where the client is gone nobody reads it
		"method": req.Method, "path": req.RequestURI, "host": req.Host, "headers": req.Header, "body": string(body),
	})
}

// recordingListener notes the bytes of each connection that it accepts.
type recordingListener struct {
	net.Listener
	r *Recorder
}

func (l recordingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.r.accepted++
	return recordingConn{conn, l.r, l.r.accepted}, nil
}

type recordingConn struct {
	net.Conn
	r      *Recorder
	number int
}

func (c recordingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.record(c.number, p[:n])
	return n, err
}
