package authz

import (
	"fmt"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// readBytes takes the facts out of a CheckRequest as it came over the wire: the same that [request.read]
// takes out of the generated type, without building it. One copy of the bytes is made, and every fact is a part of it,
// so the buffer may be used again at once.
func (q *request) readBytes(b []byte) error {
	*q = request{}
	w := walk{bytes: b, text: string(b), out: q}
	if err := w.message(checkRequest, 0, len(b), protowire.DefaultRecursionLimit); err != nil {
		return fmt.Errorf("reading a check: %w", err)
	}
	if err := q.readMetadata(); err != nil {
		return fmt.Errorf("reading a check's metadata: %w", err)
	}
	return nil
}

// checkRequest is the shape of a CheckRequest. Only what is named here is looked at, by its path from the top:
//
//	attributes.context_extensions
//	attributes.request.http.{id, method, path, headers}
//	attributes.source.address.socket_address.address
//	attributes.metadata_context, which is there if the module in Envoy reports hits
var checkRequest = func() *shape {
	http := into(fields{
		"id":      takeString(func(q *request, s string) { q.streamID = s }),
		"method":  takeString(func(q *request, s string) { q.method = s }),
		"path":    takeString(func(q *request, s string) { q.path = s }),
		"headers": takePairs((*request).setHeader),
	})
	address := into(fields{
		"socket_address": into(fields{"address": takeString(func(q *request, s string) { q.client = s })}),
		// Of the members of a oneof the last one counts.
		"pipe":                   onEntry(func(q *request) { q.client = "" }),
		"envoy_internal_address": onEntry(func(q *request) { q.client = "" }),
	})
	attributes := into(fields{
		"context_extensions": takePairs(func(q *request, key, value string) { q.set(key, value) }),
		"request":            into(fields{"http": http}),
		"source":             into(fields{"address": address}),
		"metadata_context":   takeMessage(func(q *request, raw string) { q.rawMetadata += raw }),
	})
	top := (&authv3.CheckRequest{}).ProtoReflect().Descriptor()
	root := shapeField{sub: shapes{}.of(top)}
	into(fields{"attributes": attributes})(top, &root)
	return root.sub
}()

// pick changes a field so that what is in it is taken; m is the field's message type, where it has one.
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

func takeString(found func(*request, string)) pick {
	return func(_ protoreflect.MessageDescriptor, f *shapeField) { f.found = found }
}

func takePairs(found func(q *request, key, value string)) pick {
	return func(_ protoreflect.MessageDescriptor, f *shapeField) { f.foundPair = found }
}

// takeMessage takes a message as it is. One that comes in several parts is whole when they are put together.
func takeMessage(found func(*request, string)) pick {
	return func(_ protoreflect.MessageDescriptor, f *shapeField) { f.whole = found }
}

func onEntry(entered func(*request)) pick {
	return func(_ protoreflect.MessageDescriptor, f *shapeField) { f.entered = entered }
}
