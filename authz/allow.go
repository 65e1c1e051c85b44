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

	remove := v.rule.userHeader
	option := 0
	if v.reason == tokenKnown {
		option = sizeOption(v.rule.userHeader, v.user)
		remove = headerAuthorization
		if v.rule.forwardToken {
			remove = ""
		}
	}
	size := 0
	if option > 0 {
		size += protowire.SizeTag(fieldHeaders) + protowire.SizeBytes(option)
	}
	if remove != "" {
		size += sizeString(fieldHeadersToRemove, remove)
	}
	b = protowire.AppendTag(b, fieldOkResponse, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	if option > 0 {
		b = protowire.AppendTag(b, fieldHeaders, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(option))
		b = appendOption(b, v.rule.userHeader, v.user)
	}
	if remove != "" {
		b = appendString(b, fieldHeadersToRemove, remove)
	}
	return b
}

const overwrite = uint64(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)

func sizeOption(key, value string) int {
	header := sizeString(fieldKey, key) + sizeString(fieldValue, value)
	return protowire.SizeTag(fieldHeader) + protowire.SizeBytes(header) +
		protowire.SizeTag(fieldAppendAction) + protowire.SizeVarint(overwrite)
}

func appendOption(b []byte, key, value string) []byte {
	b = protowire.AppendTag(b, fieldHeader, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeString(fieldKey, key)+sizeString(fieldValue, value)))
	b = appendString(b, fieldKey, key)
	b = appendString(b, fieldValue, value)
	b = protowire.AppendTag(b, fieldAppendAction, protowire.VarintType)
	return protowire.AppendVarint(b, overwrite)
}

func sizeString(number protowire.Number, s string) int {
	return protowire.SizeTag(number) + protowire.SizeBytes(len(s))
}

func appendString(b []byte, number protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendString(b, s)
}
