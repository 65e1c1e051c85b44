// Package codec decides how the messages of the gRPC server become bytes, and bytes messages.
//
// It does what gRPC's own codec for protobuf does, faster for three kinds of messages: a type that reads itself
// ([Unmarshaler]), a type that has its bytes already ([Marshaler]), and a type for which generated code exists that
// needs no reflection (build tag vtprotobuf). It knows no message type.
package codec

import (
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Unmarshaler is a message that reads itself from its bytes, without the generated type.
type Unmarshaler interface {
	// UnmarshalMessage must not keep b.
	UnmarshalMessage(b []byte) error
}

// Marshaler is a message that returns its own bytes.
type Marshaler interface {
	// MarshalMessage returns bytes that do not change any more.
	MarshalMessage() (mem.BufferSlice, error)
}

// generatedMarshaler is what go-control-plane's messages have if they are built with the tag vtprotobuf. The bytes are
// the same as proto.Marshal's up to the order of map entries, but it does not refuse strings that are not UTF-8: a
// message must be made of valid strings.
type generatedMarshaler interface {
	MarshalVTStrict() ([]byte, error)
}

type codec struct{ proto encoding.CodecV2 }

// New returns the codec, for [google.golang.org/grpc.ForceServerCodecV2].
func New() encoding.CodecV2 { return codec{encoding.GetCodecV2(protocodec.Name)} }

func (c codec) Name() string { return c.proto.Name() }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	own, ok := v.(Unmarshaler)
	if !ok {
		return c.proto.Unmarshal(data, v)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	return own.UnmarshalMessage(b.ReadOnlyData())
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case Marshaler:
		return m.MarshalMessage()
	case generatedMarshaler:
		b, err := m.MarshalVTStrict()
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return c.proto.Marshal(v)
}
