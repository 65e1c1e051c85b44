package authz

import (
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"gatepost/tokens"
)

// LeaseNamespace is that of the metadata by which the lease filter in Envoy (xds/lease.lua) asks for a lease, and
// marks the requests that it lets pass. No client can set any.
const LeaseNamespace = "gatepost.lease"

// The fields of the metadata: what the filter says, and what it is answered.
const (
	fieldAsk   = "ask"   // the question, a structure
	fieldHits  = "hits"  // in it, the requests that it let pass since it last asked, by service
	fieldRenew = "renew" // and the decisions of the same rule that it wants to go on with (see renew.go)
	fieldLease = "lease" // the answer: for how many milliseconds
	fieldUser  = "user"  // whose requests they are
	fieldLeft  = "left"  // and in how many milliseconds the token ends, where a request could outlast it
)

// reasonLease labels the requests that Envoy let pass by a decision that it remembered.
const reasonLease = "lease"

// LeaseInputs are the request headers that decisions depend on, beside Authorization. Whoever has a decision depend on
// one more names it here: a decision is used again for a request that has the same of each.
func (s Shared) LeaseInputs() []string {
	var inputs []string
	if len(s.Origins) > 0 {
		inputs = append(inputs, headerOrigin)
	}
	if s.Cookie != "" {
		inputs = append(inputs, headerCookie)
	}
	if s.Subprotocol != "" {
		inputs = append(inputs, headerSubprotocols)
	}
	return inputs
}

// leaseQuestion is what the filter says with a Check.
type leaseQuestion struct {
	asked bool
	hits  string // as writeHits gives them; a request is compared with ==
	renew string // as writeRenewals gives them
	raw   string // the metadata before it was read
}

// read takes the question out of a Check's metadata.
func (l *leaseQuestion) read(m *corev3.Metadata) {
	ask := m.GetFilterMetadata()[LeaseNamespace].GetFields()[fieldAsk].GetStructValue()
	l.asked = ask != nil
	l.hits = writeHits(ask.GetFields()[fieldHits].GetStructValue())
	l.renew = writeRenewals(ask.GetFields()[fieldRenew].GetListValue())
}

// readBytes reads the metadata that is in raw. There is any for a request that was no hit alone.
func (l *leaseQuestion) readBytes() error {
	if l.raw == "" {
		return nil
	}
	m := new(corev3.Metadata)
	if err := proto.Unmarshal([]byte(l.raw), m); err != nil {
		return err
	}
	l.raw = ""
	l.read(m)
	return nil
}

// mostHits is more requests than one worker lets pass between two questions.
const mostHits = 1 << 30

// writeHits writes hits in one line for each service. What cannot be a count is passed over.
func writeHits(hits *structpb.Struct) string {
	if len(hits.GetFields()) == 0 {
		return ""
	}
	var b strings.Builder
	for _, service := range slices.Sorted(maps.Keys(hits.GetFields())) {
		n := hits.GetFields()[service].GetNumberValue()
		if n >= 1 && n <= mostHits && !strings.Contains(service, "\n") {
			fmt.Fprintf(&b, "%d %s\n", int64(n), service)
		}
	}
	return b.String()
}

// eachHits reads what writeHits has written: service and number.
func eachHits(hits string) iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		for line := range strings.Lines(hits) {
			number, service, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if n, err := strconv.ParseInt(number, 10, 64); err == nil && !yield(service, n) {
				return
			}
		}
	}
}

// mayLease is for how long a decision may be remembered whose look-up is yet to begin.
func (s *Server) mayLease(q *request) time.Duration {
	if !q.lease.asked || s.lease == nil {
		return 0
	}
	return s.lease()
}

// remember lets Envoy remember the verdict for as long as the lease, where the same request would be answered alike until
// it ends: an allow for a token in Authorization, with nothing of another header changed.
func (v *verdict) remember(lease time.Duration, h tokens.Holder, now time.Time) {
	if lease <= 0 || v.reason != tokenKnown || v.shown != (shown{}) {
		return
	}
	left := h.Expires().Sub(now)
	lease = min(lease, left)
	if v.left == 0 { // and the request is not told when the token ends: nor need be the last one that is let pass
		lease = min(lease, left-v.rule.longest)
	}
	v.lease = max(lease.Truncate(time.Millisecond), 0)
}

// leaseMetadata is what tells Envoy to remember the verdict; nil: nothing does.
func (v *verdict) leaseMetadata() *structpb.Struct {
	if v.lease <= 0 {
		return nil
	}
	fields := map[string]*structpb.Value{
		fieldLease: structpb.NewNumberValue(float64(v.lease.Milliseconds())),
		fieldUser:  structpb.NewStringValue(v.user),
	}
	if v.left > 0 {
		fields[fieldLeft] = structpb.NewNumberValue(float64(milliseconds(v.left)))
	}
	if v.renewed != nil {
		fields[fieldRenewed] = structpb.NewListValue(v.renewed)
	}
	return &structpb.Struct{Fields: fields}
}

// The field numbers of the metadata: CheckResponse, Struct, the entry of a map, Value.
const (
	fieldDynamicMetadata = 4
	fieldFields          = 1
	fieldEntryKey        = 1
	fieldEntryValue      = 2
	fieldNumber          = 2
	fieldString          = 3
)

// appendLease appends the bytes of what leaseMetadata makes of the verdict.
func (v *verdict) appendLease(b []byte) []byte {
	if v.lease <= 0 {
		return b
	}
	size := sizeMessage(fieldFields, sizeEntry(fieldLease, sizeNumber)) +
		sizeMessage(fieldFields, sizeEntry(fieldUser, sizeString(fieldString, v.user)))
	if v.left > 0 {
		size += sizeMessage(fieldFields, sizeEntry(fieldLeft, sizeNumber))
	}
	renewed := v.renewedBytes()
	size += len(renewed)
	b = protowire.AppendTag(b, fieldDynamicMetadata, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = appendNumber(b, fieldLease, float64(v.lease.Milliseconds()))
	b = appendEntry(b, fieldUser, sizeString(fieldString, v.user))
	b = appendString(b, fieldString, v.user)
	if v.left > 0 {
		b = appendNumber(b, fieldLeft, float64(milliseconds(v.left)))
	}
	return append(b, renewed...)
}

var sizeNumber = protowire.SizeTag(fieldNumber) + protowire.SizeFixed64()

func sizeEntry(key string, value int) int {
	return sizeString(fieldEntryKey, key) + sizeMessage(fieldEntryValue, value)
}

func appendNumber(b []byte, key string, n float64) []byte {
	b = appendEntry(b, key, sizeNumber)
	b = protowire.AppendTag(b, fieldNumber, protowire.Fixed64Type)
	return protowire.AppendFixed64(b, math.Float64bits(n))
}

// appendEntry appends an entry of a Struct up to the value, which has size bytes.
func appendEntry(b []byte, key string, size int) []byte {
	b = protowire.AppendTag(b, fieldFields, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeEntry(key, size)))
	b = appendString(b, fieldEntryKey, key)
	b = protowire.AppendTag(b, fieldEntryValue, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(size))
}
