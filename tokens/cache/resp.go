package cache

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Limits of one message of Redis. A larger message ends the connection and the lease, because it
// could contain an invalidation.
const (
	maxElements = 1 << 20
	maxBulk     = 16 << 20
	maxDepth    = 8
	maxLine     = 64 << 10
)

var errProtocol = errors.New("unexpected bytes from Redis")

// message is one reply or push of Redis. kind is the type byte of RESP3
// ('+', '-', ':', '$', '*', '%', '~', '>', '_', ',', '#', '(', '=').
type message struct {
	kind  byte
	null  bool
	text  string
	items []message // of a map: key, value, key, value, …
}

// err returns the message's error if it is an error reply, else nil.
func (m message) err() error {
	if m.kind == '-' || m.kind == '!' {
		return errors.New(m.text)
	}
	return nil
}

// is reports whether m is a push with the name and at least n items, the name included.
func (m message) is(name string, n int) bool {
	return m.kind == '>' && len(m.items) >= n && m.items[0].text == name
}

// field returns the text of a map's field.
func (m message) field(name string) string {
	for i := 0; i+1 < len(m.items); i += 2 {
		if m.items[i].text == name {
			return m.items[i+1].text
		}
	}
	return ""
}

// reader reads RESP3 (github.com/redis/redis-specifications, protocol/RESP3.md) without streamed
// types, which no command used here returns. It must not be used after an error.
type reader struct{ in *bufio.Reader }

func newReader(in io.Reader) *reader { return &reader{bufio.NewReaderSize(in, maxLine)} }

// read returns the next message.
func (r *reader) read() (message, error) {
	budget := maxElements
	return r.readValue(0, &budget)
}

func (r *reader) readValue(depth int, budget *int) (message, error) {
	if *budget--; *budget < 0 || depth > maxDepth {
		return message{}, fmt.Errorf("%w: the message is too large", errProtocol)
	}
	line, err := r.readLine()
	if err != nil {
		return message{}, err
	}
	m := message{kind: line[0]}
	switch m.kind {
	case '+', '-', ':', ',', '#', '(':
		m.text = string(line[1:])
		return m, nil
	case '_':
		m.null = true
		return m, nil
	case '$', '=', '!':
		return r.readBulk(m, line[1:])
	case '*', '~', '>':
		return r.readItems(m, line[1:], 1, depth, budget)
	case '%':
		return r.readItems(m, line[1:], 2, depth, budget)
	case '|': // attributes precede the value that they describe
		if _, err := r.readItems(m, line[1:], 2, depth, budget); err != nil {
			return message{}, err
		}
		return r.readValue(depth+1, budget)
	}
	return message{}, fmt.Errorf("%w: type %q", errProtocol, m.kind)
}

// readLine returns the next line without its CRLF. It has at least the type byte, and is valid
// until the next read.
func (r *reader) readLine() ([]byte, error) {
	line, err := r.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("%w: the line is too long", errProtocol)
	}
	if err != nil {
		return nil, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return nil, fmt.Errorf("%w: the line does not end in CRLF", errProtocol)
	}
	return line[:len(line)-2], nil
}

func (r *reader) readBulk(m message, length []byte) (message, error) {
	n, err := readLength(length, maxBulk)
	if err != nil {
		return message{}, err
	}
	if n < 0 {
		m.null = true
		return m, nil
	}
	text, err := r.readBytes(n)
	if err != nil {
		return message{}, err
	}
	var end [2]byte
	if _, err := io.ReadFull(r.in, end[:]); err != nil {
		return message{}, err
	}
	if end != [2]byte{'\r', '\n'} {
		return message{}, fmt.Errorf("%w: the string does not end in CRLF", errProtocol)
	}
	if m.kind == '=' { // three letters give the format of the text
		if len(text) < 4 || text[3] != ':' {
			return message{}, fmt.Errorf("%w: the text has no format", errProtocol)
		}
		text = text[4:]
	}
	m.text = string(text)
	return m, nil
}

// readBytes reads n bytes. It allocates in steps, so memory follows what has arrived.
func (r *reader) readBytes(n int) ([]byte, error) {
	const step = 64 << 10
	text := make([]byte, 0, min(n, step))
	for len(text) < n {
		from := len(text)
		text = append(text, make([]byte, min(n-from, step))...)
		if _, err := io.ReadFull(r.in, text[from:]); err != nil {
			return nil, err
		}
	}
	return text, nil
}

func (r *reader) readItems(m message, length []byte, each, depth int, budget *int) (message, error) {
	n, err := readLength(length, maxElements)
	if err != nil {
		return message{}, err
	}
	if n < 0 {
		m.null = true
		return m, nil
	}
	n *= each
	m.items = make([]message, 0, min(n, 64))
	for range n {
		item, err := r.readValue(depth+1, budget)
		if err != nil {
			return message{}, err
		}
		m.items = append(m.items, item)
	}
	return m, nil
}

// readLength returns a length of at most limit, or -1 for RESP2's null.
func readLength(text []byte, limit int) (int, error) {
	n, err := strconv.Atoi(string(text))
	if err != nil || n < -1 || n > limit {
		return 0, fmt.Errorf("%w: invalid length %.20q", errProtocol, text)
	}
	return n, nil
}

// appendCommand appends a command in the format that Redis reads: an array of strings.
func appendCommand(to []byte, args ...string) []byte {
	to = append(to, '*')
	to = strconv.AppendInt(to, int64(len(args)), 10)
	to = append(to, '\r', '\n')
	for _, arg := range args {
		to = append(to, '$')
		to = strconv.AppendInt(to, int64(len(arg)), 10)
		to = append(to, '\r', '\n')
		to = append(to, arg...)
		to = append(to, '\r', '\n')
	}
	return to
}
