package authz

import (
	"errors"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// shape is the wire form of one message type, with functions for the fields that are read. A message is read by it
// without building the generated type, and is refused if that type would refuse it: skipped fields are checked too.
// Shapes are made once, from the generated descriptors.
type shape struct {
	fields []shapeField // by field number; the zero shapeField is an unknown field
}

type shapeField struct {
	kind fieldKind
	wire protowire.Type // a field of another wire type is an unknown field
	sub  *shape         // of a message, or of the value of a map
	// entered, if set, is called when a message begins.
	entered func(*Request)
	// found, if set, is called with a string.
	found func(*Request, string)
	// foundPair, if set, is called with the key and the value of each entry of a map of strings.
	foundPair func(q *Request, key, value string)
}

type fieldKind uint8

const (
	unknownField fieldKind = iota
	plainField             // numbers, and octets
	stringField
	messageField
	mapField // of string to string, or to messages if sub is set
)

var (
	errWire  = errors.New("malformed protobuf")
	errUTF8  = errors.New("string that is no UTF-8")
	errDepth = errors.New("nested too deeply")
)

// walk is one pass over the bytes of one message.
type walk struct {
	bytes []byte
	text  string // the same bytes; the strings that are found are parts of it
	out   *Request
}

// message walks the message of the shape s that lies in [at, end).
func (w *walk) message(s *shape, at, end, depth int) error {
	if depth--; depth < 0 {
		return errDepth
	}
	for at < end {
		number, wire, n := w.tag(at, end)
		if n < 0 {
			return errWire
		}
		at += n
		var f *shapeField
		if int(number) < len(s.fields) {
			f = &s.fields[number]
		}
		if f == nil || f.kind == unknownField || f.wire != wire { // what the type does not know is kept unread
			if n = protowire.ConsumeFieldValue(number, wire, w.bytes[at:end]); n < 0 {
				return errWire
			}
			at += n
			continue
		}
		next, err := w.field(f, number, wire, at, end, depth)
		if err != nil {
			return err
		}
		at = next
	}
	return nil
}

// tag reads a tag, and refuses the numbers that the generated types refuse, and an end of a group that did not begin.
// Nearly all tags are one byte.
func (w *walk) tag(at, end int) (number protowire.Number, wire protowire.Type, n int) {
	if c := w.bytes[at]; c < 0x80 {
		number, wire, n = protowire.Number(c>>3), protowire.Type(c&7), 1
	} else {
		number, wire, n = protowire.ConsumeTag(w.bytes[at:end])
	}
	if n < 0 || number < protowire.MinValidNumber || number > protowire.MaxValidNumber || wire == protowire.EndGroupType {
		return 0, 0, -1
	}
	return number, wire, n
}

// field walks the value at at and returns where it ends.
func (w *walk) field(f *shapeField, number protowire.Number, wire protowire.Type, at, end, depth int) (int, error) {
	if wire != protowire.BytesType {
		n := protowire.ConsumeFieldValue(number, wire, w.bytes[at:end])
		if n < 0 {
			return 0, errWire
		}
		return at + n, nil
	}
	at, end, ok := w.content(at, end)
	if !ok {
		return 0, errWire
	}
	switch f.kind {
	case stringField:
		if !utf8.Valid(w.bytes[at:end]) {
			return 0, errUTF8
		}
		if f.found != nil {
			f.found(w.out, w.text[at:end])
		}
	case messageField:
		if f.entered != nil {
			f.entered(w.out)
		}
		return end, w.message(f.sub, at, end, depth)
	case mapField:
		return end, w.entry(f, at, end, depth)
	}
	return end, nil
}

// content returns where the content of a length-delimited value begins and ends.
func (w *walk) content(at, end int) (from, to int, ok bool) {
	if at < end && w.bytes[at] < 0x80 {
		from, to = at+1, at+1+int(w.bytes[at])
		return from, to, to <= end
	}
	length, n := protowire.ConsumeVarint(w.bytes[at:end])
	if n < 0 || length > uint64(end-at-n) {
		return 0, 0, false
	}
	return at + n, at + n + int(length), true
}

// entry walks one entry of a map: a message of a key (1) and a value (2), each of which may be missing, or there more
// than once; the last one counts.
func (w *walk) entry(f *shapeField, at, end, depth int) error {
	if depth--; depth < 0 {
		return errDepth
	}
	var key, value string
	for at < end {
		number, wire, n := w.tag(at, end)
		if n < 0 {
			return errWire
		}
		at += n
		if wire != protowire.BytesType || number > 2 {
			if n = protowire.ConsumeFieldValue(number, wire, w.bytes[at:end]); n < 0 {
				return errWire
			}
			at += n
			continue
		}
		from, to, ok := w.content(at, end)
		if !ok {
			return errWire
		}
		at = to
		switch {
		case number == 2 && f.sub != nil:
			if err := w.message(f.sub, from, to, depth); err != nil {
				return err
			}
		case !utf8.Valid(w.bytes[from:to]):
			return errUTF8
		case number == 1:
			key = w.text[from:to]
		default:
			value = w.text[from:to]
		}
	}
	if f.foundPair != nil {
		f.foundPair(w.out, key, value)
	}
	return nil
}

// shapes makes the shapes of message types; a type that holds itself is made once.
type shapes map[protoreflect.FullName]*shape

func (made shapes) of(m protoreflect.MessageDescriptor) *shape {
	if s := made[m.FullName()]; s != nil {
		return s
	}
	s := new(shape)
	made[m.FullName()] = s
	for i := range m.Fields().Len() {
		d := m.Fields().Get(i)
		if grow := int(d.Number()) + 1 - len(s.fields); grow > 0 {
			s.fields = append(s.fields, make([]shapeField, grow)...)
		}
		s.fields[d.Number()] = made.field(d)
	}
	return s
}

func (made shapes) field(d protoreflect.FieldDescriptor) shapeField {
	if d.IsMap() {
		f := shapeField{kind: mapField, wire: protowire.BytesType}
		if value := d.MapValue(); value.Message() != nil {
			f.sub = made.of(value.Message())
		}
		return f
	}
	switch d.Kind() {
	case protoreflect.StringKind:
		return shapeField{kind: stringField, wire: protowire.BytesType}
	case protoreflect.BytesKind:
		return shapeField{kind: plainField, wire: protowire.BytesType}
	case protoreflect.MessageKind:
		return shapeField{kind: messageField, wire: protowire.BytesType, sub: made.of(d.Message())}
	case protoreflect.DoubleKind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
		return shapeField{kind: plainField, wire: protowire.Fixed64Type}
	case protoreflect.FloatKind, protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind:
		return shapeField{kind: plainField, wire: protowire.Fixed32Type}
	default:
		return shapeField{kind: plainField, wire: protowire.VarintType}
	}
}

// with returns a copy of the shape whose field of that number is changed by change.
func (s *shape) with(number protoreflect.FieldNumber, change func(*shapeField)) *shape {
	c := &shape{fields: append([]shapeField(nil), s.fields...)}
	change(&c.fields[number])
	return c
}
