package endpoint

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
)

const (
	// maxRequest bounds a login. headSize is the part that is read before it is sent on. A login
	// has a few hundred bytes, so a slow client does not occupy the user service.
	maxRequest = 1 << 20
	headSize   = 64 << 10
)

var (
	errTooLarge = errors.New("request too large")
	errClient   = errors.New("reading the request")
)

// body is a request's body: its head in memory, and the rest, if any, unread at the client. Its
// memory is not reused, because a transport may still read it after the answer has arrived.
type body struct {
	head   []byte
	rest   io.Reader // nil: head is the whole body
	length int64     // -1: unknown

	mu      sync.Mutex
	restErr error // the error that ended reading rest
}

// readBody reads the head of a request's body. It returns errTooLarge or errClient on failure.
func readBody(r *http.Request) (*body, error) {
	if r.ContentLength > maxRequest {
		return nil, errTooLarge
	}
	b := new(body)
	if r.ContentLength == 0 {
		return b, nil
	}
	var whole io.Reader = r.Body
	// otherwise the server enforces the length
	if r.ContentLength < 0 || r.ContentLength > headSize {
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

// reader returns the whole body. It may be called again if rest is nil. Its Close does not close
// the client's body; the server does that.
func (b *body) reader() io.ReadCloser {
	if b.rest == nil { // net/http sends this type in one write with the header
		return io.NopCloser(bytes.NewReader(b.head))
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b.head), &restReader{body: b, room: maxRequest - len(b.head)}))
}

// err returns the error that ended reading the client's body.
func (b *body) err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.restErr
}

// unread reports whether the client had not sent everything when its request ended.
func (b *body) unread() bool { return b.rest != nil && b.err() != io.EOF }

// restReader reads the rest of a body and records the error that ends it.
type restReader struct {
	body *body
	room int // the bytes that are still allowed
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
