package authz

import (
	"fmt"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// UnmarshalMessage reads a CheckRequest from its bytes, without the generated type: the result is the same as that of
// [NewRequest]. Together with the codec this saves half of a Check's CPU time (bench, G3). It copies b once, and the
// strings of the Request are parts of that copy.
func (q *Request) UnmarshalMessage(b []byte) error {
	*q = Request{}
	w := walk{bytes: b, text: string(b), out: q}
	if err := w.message(checkRequest, 0, len(b), protowire.DefaultRecursionLimit); err != nil {
		return fmt.Errorf("reading a check: %w", err)
	}
	return nil
}

// checkRequest is the shape of a CheckRequest. Only these fields are read:
//
//	attributes.context_extensions
//	attributes.request.http.{id, method, host, path, headers}
//	attributes.source.address.socket_address.address
var checkRequest = func() *shape {
	http := into(fields{
		"id":      takeString(func(q *Request, s string) { q.streamID = s }),
		"method":  takeString(func(q *Request, s string) { q.method = s }),
		"host":    takeString(func(q *Request, s string) { q.host = s }),
		"path":    takeString(func(q *Request, s string) { q.path = s }),
		"headers": takePairs((*Request).setHeader),
	})
	address := into(fields{
		"socket_address": into(fields{"address": takeString(func(q *Request, s string) { q.source = s })}),
		// The last member of a oneof wins.
		"pipe":                   onEntry(func(q *Request) { q.source = "" }),
		"envoy_internal_address": onEntry(func(q *Request) { q.source = "" }),
	})
	attributes := into(fields{
		"context_extensions": takePairs(func(q *Request, key, value string) { q.rawRule.set(key, value) }),
		"request":            into(fields{"http": http}),
		"source":             into(fields{"address": address}),
	})
	top := (&authv3.CheckRequest{}).ProtoReflect().Descriptor()
	root := shapeField{sub: shapes{}.of(top)}
	into(fields{"attributes": attributes})(top, &root)
	return root.sub
}()

// pick marks a field to be read; m is the type of the field if it is a message.
type pick func(m protoreflect.MessageDescriptor, f *shapeField)

// fields are fields of a message, each with its pick.
type fields map[protoreflect.Name]pick

// into picks from the fields of a message.
func into(inside fields) pick {
	return func(m protoreflect.MessageDescriptor, f *shapeField) {
		for name, change := range inside {
			d := m.Fields().ByName(name)
			f.sub = f.sub.with(d.Number(), func(sub *shapeField) { change(d.Message(), sub) })
		}
	}
}

func takeString(found func(*Request, string)) pick {
	return func(_ protoreflect.MessageDescriptor, f *shapeField) { f.found = found }
}

func takePairs(found func(q *Request, key, value string)) pick {
	return func(_ protoreflect.MessageDescriptor, f *shapeField) { f.foundPair = found }
}

func onEntry(entered func(*Request)) pick {
	return func(_ protoreflect.MessageDescriptor, f *shapeField) { f.entered = entered }
}
