package authz

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

// The field numbers of an allow, from the top: CheckResponse, OkHttpResponse, HeaderValueOption, HeaderValue.
const (
	fieldStatus          = 1
	fieldOkResponse      = 3
	fieldHeaders         = 2
	fieldHeadersToRemove = 5
	fieldAnswerHeaders   = 6
	fieldHeader          = 1
	fieldAppendAction    = 3
	fieldKey             = 1
	fieldValue           = 2
)

// appendAllow appends the bytes of what [allow] makes of the verdict; a test holds the one to the other. The status
// is an empty message: its code 0, OK, is not written.
func (v *verdict) appendAllow(b []byte) []byte {
	b = protowire.AppendTag(b, fieldStatus, protowire.BytesType)
	b = protowire.AppendVarint(b, 0)

	c := v.changes()
	size := 0
	for _, h := range c.set[:c.sets] {
		size += sizeMessage(fieldHeaders, sizeOption(h, overwrite))
	}
	for _, name := range c.remove[:c.drops] {
		size += sizeString(fieldHeadersToRemove, name)
	}
	if c.answer.name != "" {
		size += sizeMessage(fieldAnswerHeaders, sizeOption(c.answer, addIfAbsent))
	}
	b = protowire.AppendTag(b, fieldOkResponse, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	for _, h := range c.set[:c.sets] {
		b = appendOption(b, fieldHeaders, h, overwrite)
	}
	for _, name := range c.remove[:c.drops] {
		b = appendString(b, fieldHeadersToRemove, name)
	}
	if c.answer.name != "" {
		b = appendOption(b, fieldAnswerHeaders, c.answer, addIfAbsent)
	}
	return b
}

const (
	overwrite   = uint64(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
	addIfAbsent = uint64(corev3.HeaderValueOption_ADD_IF_ABSENT)
)

func sizeOption(h field, action uint64) int {
	return sizeMessage(fieldHeader, sizeString(fieldKey, h.name)+sizeString(fieldValue, h.value)) +
		protowire.SizeTag(fieldAppendAction) + protowire.SizeVarint(action)
}

func appendOption(b []byte, number protowire.Number, h field, action uint64) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeOption(h, action)))
	b = protowire.AppendTag(b, fieldHeader, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeString(fieldKey, h.name)+sizeString(fieldValue, h.value)))
	b = appendString(b, fieldKey, h.name)
	b = appendString(b, fieldValue, h.value)
	b = protowire.AppendTag(b, fieldAppendAction, protowire.VarintType)
	return protowire.AppendVarint(b, action)
}

func sizeMessage(number protowire.Number, size int) int {
	return protowire.SizeTag(number) + protowire.SizeBytes(size)
}

func sizeString(number protowire.Number, s string) int {
	return protowire.SizeTag(number) + protowire.SizeBytes(len(s))
}

func appendString(b []byte, number protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendString(b, s)
}
