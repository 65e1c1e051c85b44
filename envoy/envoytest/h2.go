package envoytest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// H2Answer is the response of a server to an HTTP/2 request.
type H2Answer struct {
	// Status is the status code, or "" if there was no response.
	Status string
	// Fields are the other header fields of the response, in order.
	Fields []hpack.HeaderField
	// Body is the body.
	Body string
	// Reset is the error code with which the server reset the stream, if it did: "PROTOCOL_ERROR".
	Reset string
	// Closed reports whether the server closed the connection without a response.
	Closed bool
}

// H2Request sends one HTTP/2 request over plain TCP with exactly these fields in this order,
// including pseudo-fields (":method"). They can be fields that client libraries reject. body is
// sent if it is not empty.
func H2Request(t testing.TB, addr string, fields [][2]string, body string) H2Answer {
	t.Helper()
	a, err := H2Exchange(addr, fields, body)
	if err != nil {
		t.Fatalf("sending an HTTP/2 request: %v; got %+v", err, a)
	}
	return a
}

// H2Exchange is H2Request with an error result, for concurrent requests.
func H2Exchange(addr string, fields [][2]string, body string) (H2Answer, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return H2Answer{}, err
	}
	return H2Over(conn, fields, body)
}

// H2Over is H2Exchange over a connection, such as one with TLS. It closes the connection.
func H2Over(conn net.Conn, fields [][2]string, body string) (H2Answer, error) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(Deadline)); err != nil {
		return H2Answer{}, err
	}
	framer := http2.NewFramer(conn, conn)
	if err := sendH2(conn, framer, fields, body); err != nil {
		return H2Answer{}, err
	}
	return readH2(framer)
}

func sendH2(conn io.Writer, framer *http2.Framer, fields [][2]string, body string) error {
	var head bytes.Buffer
	encoder := hpack.NewEncoder(&head)
	for _, f := range fields {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return err
	}
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	err := framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: body == "",
	})
	if err != nil || body == "" {
		return err
	}
	return framer.WriteData(1, true, []byte(body))
}

// readH2 reads frames until the stream or the connection ends.
func readH2(framer *http2.Framer) (a H2Answer, err error) {
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := framer.ReadFrame()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return a, fmt.Errorf("no end of the answer within %v", Deadline)
		case err != nil: // closed or reset
			a.Closed = true
			return a, nil
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = framer.WriteSettingsAck() // if the connection is closed, the next read returns the error
			}
		case *http2.MetaHeadersFrame:
			if status := frame.PseudoValue("status"); status != "" { // trailers have no status
				a.Status, a.Fields = status, frame.RegularFields()
			}
			ended = frame.StreamEnded()
		case *http2.DataFrame:
			a.Body += string(frame.Data())
			ended = frame.StreamEnded()
		case *http2.RSTStreamFrame:
			a.Reset = frame.ErrCode.String()
			ended = true
		}
		if ended {
			return a, nil
		}
	}
}
