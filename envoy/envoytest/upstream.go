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

// Request is a request as an upstream received it.
type Request struct {
	Method string
	// Path is the request target as received: path and query, with escapes.
	Path   string
	Host   string
	Header http.Header
	Body   string
}

// Recorder is an upstream service that records requests.
type Recorder struct {
	server *httptest.Server

	mu       sync.Mutex
	requests []Request
	raw      bytes.Buffer
	streams  map[int]*bytes.Buffer // :: connection number → received bytes
	accepted int
	handler  http.Handler
}

// Upstream starts a recording upstream on loopback that stops with the test. It responds with 200
// and a JSON object that describes the request. SetHandler replaces that response.
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

// Requests returns the requests since the start or the last Reset.
func (r *Recorder) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Raw returns all bytes received since the start or the last Reset, including those that were not
// parsed as a request.
func (r *Recorder) Raw() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.raw.String()
}

// Streams returns the bytes of Raw per connection, because leftovers of one request affect the next
// on the same connection.
func (r *Recorder) Streams() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, stream := range r.streams {
		all = append(all, stream.String())
	}
	return all
}

// Reset discards the recorded requests and bytes.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = nil
	r.raw.Reset()
	clear(r.streams)
}

// SetHandler makes h respond to requests after they are recorded. h can still read the body.
func (r *Recorder) SetHandler(h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handler = h
}

// Handler returns the current handler.
func (r *Recorder) Handler() http.Handler {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handler
}

// record appends bytes received on a connection. The caller holds the lock.
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
		return // the client disconnected before the end of the request
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
	body, _ := io.ReadAll(req.Body) // serve has already read it into memory
	w.Header().Set("content-type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{ // fails only if the client is gone
		"method": req.Method, "path": req.RequestURI, "host": req.Host, "headers": req.Header, "body": string(body),
	})
}

// recordingListener records the bytes of each connection that it accepts.
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
