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
	errTooLarge = errors.New("request too large")
	errClient   = errors.New("reading the request")
)

// body is a request's body: its head in memory, and the rest, if any, still to be read from the client. Its memory is
// its own and never used again: a transport may go on reading for a while after it has the answer.
type body struct {
	head   []byte
	rest   io.Reader // nil: the head is all
	length int64     // -1: not known

	mu      sync.Mutex
	restErr error // what ended the reading of the rest
}

// readBody reads the head of a request's body, or returns errTooLarge or errClient.
func readBody(r *http.Request) (*body, error) {
	if r.ContentLength > maxRequest {
		return nil, errTooLarge
	}
	b := new(body)
	if r.ContentLength == 0 {
		return b, nil
	}
	var whole io.Reader = r.Body
	if r.ContentLength < 0 || r.ContentLength > headSize { // else the server keeps to it
		whole = io.LimitReader(whole, headSize)
	}
	head := bytes.NewBuffer(make([]byte, 0, bytes.MinRead))
	if _, err := head.ReadFrom(whole); err != nil {
		return nil, errClient
	}
	b.head, b.length = head.Bytes(), int64(head.Len())
	if b.length == headSize && r.ContentLength != headSize {
		b.rest, b.length = r.Body, r.ContentLength
	}
	return b, nil
}

// reader returns the body from its beginning. It may be called again as long as there is no rest. Closing it leaves the
// client's body alone: the server closes that.
func (b *body) reader() io.ReadCloser {
	if b.rest == nil { // in the form that net/http sends in one piece with the header, instead of after it
		return io.NopCloser(bytes.NewReader(b.head))
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b.head), &restReader{body: b, room: maxRequest - len(b.head)}))
}

// err returns what kept the client's body from being read to its end.
func (b *body) err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.restErr
}

// unread says whether the client still had something to send when its request ended.
func (b *body) unread() bool { return b.rest != nil && b.err() != io.EOF }

// restReader reads the rest of a body, and takes down what ends it.
type restReader struct {
	body *body
	room int // how much it may be yet
}

func (r *restReader) Read(p []byte) (int, error) {
	n, err := r.body.rest.Read(p)
	switch r.room -= n; {
	case r.room < 0:
		n, err = 0, errTooLarge
	case err != nil && err != io.EOF:
		err = errClient
	}
	if err != nil {
		r.body.mu.Lock()
		r.body.restErr = err
		r.body.mu.Unlock()
	}
	return n, err
}
