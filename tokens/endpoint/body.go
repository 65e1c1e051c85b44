package endpoint

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
)

const (
	// maxRequest bounds a login, and headSize the part of it that is read before it is sent on. A login is
	// a few hundred bytes: then a client that sends slowly costs the user service nothing.
	maxRequest = 1 << 20
	headSize   = 64 << 10
)

var (
	errTooLarge    = errors.New("request too large")
	errClient      = errors.New("reading the request")
	errBodyWasDone = errors.New("body read after its request was done")
)

// buffers holds the memory of requests and answers. What grew large is not kept, and no password or token is.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

func release(b *bytes.Buffer) {
	if b != nil && b.Cap() <= headSize+bytes.MinRead {
		clear(b.Bytes())
		b.Reset()
		buffers.Put(b)
	}
}

// body is a request's body: its head in memory, and the rest, if any, still to be read from the client.
type body struct {
	rest   io.Reader // nil: the head is all
	length int64     // -1: not known

	mu      sync.Mutex
	head    *bytes.Buffer // nil: the request is done
	restErr error         // what ended the reading of the rest
}

// readBody reads the head of a request's body, or returns errTooLarge or errClient.
func readBody(r *http.Request) (*body, error) {
	if r.ContentLength > maxRequest {
		return nil, errTooLarge
	}
	b := &body{head: buffers.Get().(*bytes.Buffer)}
	if r.ContentLength == 0 {
		return b, nil
	}
	var head io.Reader = r.Body
	if r.ContentLength < 0 || r.ContentLength > headSize { // else the server keeps to it
		head = io.LimitReader(head, headSize)
	}
	if _, err := b.head.ReadFrom(head); err != nil {
		b.close()
		return nil, errClient
	}
	b.length = int64(b.head.Len())
	if b.length == headSize && r.ContentLength != headSize {
		b.rest, b.length = r.Body, r.ContentLength
	}
	return b, nil
}

// reader returns the body from its beginning. It may be called again as long as there is no rest.
func (b *body) reader() io.ReadCloser { return &bodyReader{body: b} }

// close gives the memory back. A transport may go on reading for a while after it has the answer: what it
// reads from now on is an error.
func (b *body) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	release(b.head)
	b.head = nil
}

// err returns what kept the client's body from being read to its end.
func (b *body) err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.restErr
}

// unread says whether the client still had something to send when its request ended.
func (b *body) unread() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rest != nil && b.restErr != io.EOF
}

type bodyReader struct {
	body   *body
	offset int // how much of the body has been read
}

func (r *bodyReader) Read(p []byte) (int, error) {
	b := r.body
	b.mu.Lock()
	if b.head == nil {
		b.mu.Unlock()
		return 0, errBodyWasDone
	}
	n := copy(p, b.head.Bytes()[min(r.offset, b.head.Len()):])
	b.mu.Unlock()
	r.offset += n
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	if b.rest == nil {
		return 0, io.EOF
	}
	n, err := b.rest.Read(p) // not under the lock: it waits for the client
	switch r.offset += n; {
	case r.offset > maxRequest:
		n, err = 0, errTooLarge
	case err != nil && err != io.EOF:
		err = errClient
	}
	if err != nil {
		b.mu.Lock()
		b.restErr = err
		b.mu.Unlock()
	}
	return n, err
}

// Close leaves the client's body alone: the server closes it.
func (r *bodyReader) Close() error { return nil }
