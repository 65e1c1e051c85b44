package codec

import (
	"errors"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// own is a message with its own bytes.
type own struct {
	bytes string
	err   error
}

func (o *own) UnmarshalMessage(b []byte) error { o.bytes = string(b); return o.err }

func (o *own) MarshalMessage() (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(o.bytes)}, o.err
}

func TestAMessageWithItsOwnBytesIsWrittenAndReadByItself(t *testing.T) {
	c := New()
	written, err := c.Marshal(&own{bytes: "abc"})
	if err != nil {
		t.Fatal(err)
	}
	var read own
	if err := c.Unmarshal(written, &read); err != nil || read.bytes != "abc" {
		t.Errorf("read %q, %v", read.bytes, err)
	}
	failure := errors.New("bad bytes")
	if err := c.Unmarshal(written, &own{err: failure}); !errors.Is(err, failure) {
		t.Errorf("reading: %v, want %v", err, failure)
	}
	if _, err := c.Marshal(&own{err: failure}); !errors.Is(err, failure) {
		t.Errorf("writing: %v, want %v", err, failure)
	}
}

// The bytes must be those of proto.Marshal, with the tag vtprotobuf and without.
func TestAGeneratedMessageIsWrittenAsProtoWritesIt(t *testing.T) {
	c := New()
	want := &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers:         []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-user-id", Value: "Ann Müller"}}},
		HeadersToRemove: []string{"authorization", "cookie"},
	}}}
	written, err := c.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if reference, err := proto.Marshal(want); err != nil || string(written.Materialize()) != string(reference) {
		t.Errorf("%x, want %x (%v)", written.Materialize(), reference, err)
	}
	read := new(authv3.CheckResponse)
	if err := c.Unmarshal(written, read); err != nil || !proto.Equal(read, want) {
		t.Errorf("%v, want %v (%v)", read, want, err)
	}
}
