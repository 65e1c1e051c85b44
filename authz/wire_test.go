package authz

import (
	"math"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/tokens"
)

// whole has something in every field that Envoy fills in.
func whole(t testing.TB) *authv3.CheckRequest {
	t.Helper()
	metadata, err := structpb.NewStruct(map[string]any{"n": 1.5, "b": true, "s": "x", "z": nil, "l": []any{"a", 2.0, map[string]any{"k": "v"}}})
	if err != nil {
		t.Fatal(err)
	}
	r := asking(fromBrowser, Rule{Service: "orders", Authenticate: true, Scopes: []string{"a"}}, map[string]string{
		"authorization": "Bearer 6e1c0000-0000-4000-8000-00000000000a", "origin": "https://shop.example", "accept": "*/*",
		"cookie": "a=1; gatepost=x", "sec-websocket-protocol": "chat",
	})
	a := r.Attributes
	a.Source.Service, a.Source.Labels, a.Source.Principal = "web", map[string]string{"k": "v"}, "spiffe://x"
	a.Request.Time = timestamppb.Now()
	h := a.Request.Http
	h.Query, h.Fragment, h.Body, h.RawBody = "q", "f", "body", []byte{0xff, 0}
	h.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "k", Value: "v", RawValue: []byte{0xff}}}}
	a.MetadataContext = &corev3.Metadata{
		FilterMetadata:      map[string]*structpb.Struct{"f": metadata},
		TypedFilterMetadata: map[string]*anypb.Any{"t": {TypeUrl: "type.googleapis.com/x", Value: []byte{1}}},
	}
	a.RouteMetadataContext = a.MetadataContext
	a.TlsSession = &authv3.AttributeContext_TLSSession{Sni: "shop.example"}
	return r
}

// wire builds messages by hand, in forms that no writer gives them.
type wire []byte

func (w wire) str(n protowire.Number, s string) wire {
	return protowire.AppendString(protowire.AppendTag(w, n, protowire.BytesType), s)
}
func (w wire) msg(n protowire.Number, m wire) wire { return w.str(n, string(m)) }
func (w wire) num(n protowire.Number, v uint64) wire {
	return protowire.AppendVarint(protowire.AppendTag(w, n, protowire.VarintType), v)
}
func (w wire) fix64(n protowire.Number, v uint64) wire {
	return protowire.AppendFixed64(protowire.AppendTag(w, n, protowire.Fixed64Type), v)
}
func (w wire) tag(n protowire.Number, t protowire.Type) wire { return protowire.AppendTag(w, n, t) }

func attributesOf(inner wire) wire { return wire{}.msg(1, inner) }
func httpOf(inner wire) wire       { return attributesOf(wire{}.msg(4, wire{}.msg(2, inner))) }
func addressOf(inner wire) wire    { return attributesOf(wire{}.msg(1, wire{}.msg(1, inner))) }
func pair(key, value string) wire  { return wire{}.str(1, key).str(2, value) }

func oddRequests(t testing.TB) map[string][]byte {
	t.Helper()
	full, err := proto.Marshal(whole(t))
	if err != nil {
		t.Fatal(err)
	}
	socket := wire{}.msg(1, wire{}.str(2, "192.0.2.9").num(3, 1))
	deep := wire{}
	for range 10_050 {
		deep = wire{}.msg(6, wire{}.msg(1, deep)) // Value.list_value.values
	}
	in := func(b wire) wire { // metadata_context.filter_metadata["k"].fields["k"]
		return attributesOf(wire{}.msg(11, wire{}.msg(1, wire{}.str(1, "k").msg(2, wire{}.msg(1, wire{}.str(1, "k").msg(2, b))))))
	}
	return map[string][]byte{
		"the address in a header":    append(addressOf(socket), httpOf(wire{}.msg(3, pair("x-envoy-external-address", "198.51.100.7")))...),
		"metadata of odd type":       attributesOf(wire{}.num(11, 1)),
		"metadata that is none":      attributesOf(wire{}.msg(11, wire{}.str(1, "\xff"))),
		"whole":                      full,
		"empty":                      {},
		"cut":                        full[:len(full)/2],
		"twice":                      append(append([]byte(nil), full...), full...),
		"submessages merge":          append(httpOf(wire{}.str(2, "GET").msg(3, pair("origin", "a"))), httpOf(wire{}.str(4, "/x").msg(3, pair("authorization", "b")))...),
		"the last scalar counts":     httpOf(wire{}.str(2, "GET").str(2, "PUT").str(4, "/x").str(4, "")),
		"the last entry counts":      httpOf(wire{}.msg(3, pair("authorization", "a")).msg(3, pair("authorization", "b"))),
		"the last value counts":      httpOf(wire{}.msg(3, pair("authorization", "a").str(2, "b").str(1, "origin"))),
		"entry without a value":      httpOf(wire{}.msg(3, pair("authorization", "a")).msg(3, wire{}.str(1, "authorization"))),
		"entry without a key":        httpOf(wire{}.msg(3, wire{}.str(2, "a"))),
		"value before key":           httpOf(wire{}.msg(3, wire{}.str(2, "a").str(1, "origin"))),
		"empty entry":                httpOf(wire{}.msg(3, nil)),
		"entry of odd types":         httpOf(wire{}.msg(3, wire{}.num(1, 1).str(1, "origin").fix64(2, 1).str(2, "a").str(7, "\xff"))),
		"headers of odd type":        httpOf(wire{}.num(3, 5).str(2, "GET")),
		"path of odd type":           httpOf(wire{}.str(4, "/x").num(4, 5)),
		"extensions merge":           append(attributesOf(wire{}.msg(10, pair("service", "a"))), attributesOf(wire{}.msg(10, pair("service", "b")).msg(10, pair("authenticate", "false")))...),
		"address, then pipe":         addressOf(append(socket, wire{}.msg(2, wire{}.str(1, "/p"))...)),
		"address, then internal":     addressOf(append(socket, wire{}.msg(3, nil)...)),
		"pipe, then address":         addressOf(append(wire{}.msg(2, nil), socket...)),
		"address, then pipe, socket": addressOf(append(append(append(wire{}, socket...), wire{}.msg(2, nil)...), wire{}.msg(1, wire{}.num(3, 2))...)),
		"address merges":             addressOf(append(append(wire{}, socket...), wire{}.msg(1, wire{}.num(3, 2))...)),
		"address, then odd pipe":     addressOf(append(append(wire{}, socket...), wire{}.num(2, 7)...)),
		"unknown fields":             append(attributesOf(wire{}.str(99, "\xff").num(98, 1)), wire{}.str(7, "\xff").fix64(8, 1)...),
		"unknown group":              wire{}.tag(20, protowire.StartGroupType).num(1, 1).tag(20, protowire.EndGroupType),
		"group in a field's place":   httpOf(wire{}.tag(2, protowire.StartGroupType).num(1, 1).tag(2, protowire.EndGroupType)),
		"group that does not end":    wire{}.tag(20, protowire.StartGroupType).num(1, 1),
		"group that did not begin":   wire{}.tag(20, protowire.EndGroupType),
		"group of another's end":     wire{}.tag(20, protowire.StartGroupType).tag(21, protowire.EndGroupType),
		"end of group in an entry":   httpOf(wire{}.msg(3, wire{}.tag(1, protowire.EndGroupType))),
		"field number 0":             {0x02, 0x00},
		"field number too great":     protowire.AppendVarint(nil, (1<<29)<<3),
		"field number far too great": protowire.AppendVarint(nil, math.MaxUint64),
		"reserved wire type":         {0x0e},
		"varint too long":            httpOf(append(wire{}.tag(9, protowire.VarintType), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)),
		"length beyond the end":      {0x0a, 0x05, 0x01},
		"length beyond all":          append([]byte{0x0a}, protowire.AppendVarint(nil, math.MaxUint64)...),
		"bad text that is wanted":    httpOf(wire{}.str(4, "/\xff")),
		"bad text that is not":       httpOf(wire{}.str(5, "\xff")),
		"bad text in a header":       httpOf(wire{}.msg(3, pair("cookie", "\xff"))),
		"bad text in a name":         httpOf(wire{}.msg(3, pair("\xff", "x"))),
		"bad text in metadata":       in(wire{}.str(3, "\xff")),
		"bad octets are no text":     httpOf(wire{}.str(12, "\xff")),
		"metadata":                   in(wire{}.str(3, "x").fix64(2, 1).num(4, 300)),
		"metadata nested too deep":   in(deep),
	}
}

// same says whether the two readings of one request agree: in refusing it, or in every fact.
func same(t *testing.T, b []byte) {
	t.Helper()
	var thin Request
	thinErr := thin.UnmarshalMessage(b)
	var r authv3.CheckRequest
	generatedErr := proto.Unmarshal(b, &r)
	if (thinErr == nil) != (generatedErr == nil) {
		t.Fatalf("read as bytes: %v; as the generated type: %v", thinErr, generatedErr)
	}
	if thinErr != nil {
		return
	}
	if reference := *NewRequest(&r); thin != reference {
		t.Fatalf("read as bytes:\n%+v\nas the generated type:\n%+v", thin, reference)
	}
}

func TestBytesAreReadAsTheGeneratedTypeReadsThem(t *testing.T) {
	for name, b := range oddRequests(t) {
		t.Run(name, func(t *testing.T) { same(t, b) })
	}
	full := oddRequests(t)["whole"]
	for i := range full { // every end, and every byte another
		same(t, full[:i])
		changed := append([]byte(nil), full...)
		for _, v := range []byte{0, 0x0b, 0x7f, 0x80, 0xff, full[i] ^ 1, full[i] + 8} {
			changed[i] = v
			same(t, changed)
		}
	}
}

func FuzzBytesAreReadAsTheGeneratedTypeReadsThem(f *testing.F) {
	for name, b := range oddRequests(f) {
		if !strings.Contains(name, "deep") {
			f.Add(b)
		}
	}
	f.Fuzz(same)
}

// A packed list would need a reading of its own.
func TestNoFieldOfACheckIsAListOfNumbers(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	var visit func(protoreflect.MessageDescriptor)
	visit = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		if m.ParentFile().Syntax() != protoreflect.Proto3 {
			t.Errorf("%s is no proto3: its strings are not checked", m.FullName())
		}
		for i := range m.Fields().Len() {
			d := m.Fields().Get(i)
			if d.IsPacked() || d.Kind() == protoreflect.GroupKind {
				t.Errorf("%s is packed, or a group", d.FullName())
			}
			if d.IsMap() && d.MapKey().Kind() != protoreflect.StringKind {
				t.Errorf("the keys of %s are no strings", d.FullName())
			}
			if d.IsMap() && d.MapValue().Kind() != protoreflect.StringKind && d.MapValue().Message() == nil {
				t.Errorf("the values of %s are neither strings nor messages", d.FullName())
			}
			if d.Message() != nil {
				visit(d.Message())
			}
		}
	}
	visit((&authv3.CheckRequest{}).ProtoReflect().Descriptor())
	if len(seen) < 10 {
		t.Errorf("only %d types were looked at", len(seen))
	}
}

// decisions are all reasons, with and without each change of the request.
func allDecisions() []Decision {
	var all []Decision
	for r := range reasons {
		for _, forward := range []bool{false, true} {
			d := Decision{Reason: r, User: "Ann Müller", Token: tokens.Hash{1}, rule: rule{
				service: "orders", userHeader: "x-user-id", scopes: "a b", subprotocol: "bearer", authenticate: true, forwardToken: forward,
			}}
			all = append(all, d)
			d.left = time.Minute
			all = append(all, d)
			d.stripped = strippedHeaders{cookie: remainder{changed: true}, subprotocols: remainder{changed: true}, marked: true}
			all = append(all, d)
			d.stripped = strippedHeaders{cookie: remainder{true, "a=1"}, subprotocols: remainder{true, "chat"}, marked: true}
			all = append(all, d)
		}
	}
	return append(all, Decision{})
}

func TestOnlyAnAllowedReasonLetsARequestPass(t *testing.T) {
	for _, d := range allDecisions() {
		resp := d.Response()
		if err := validateResponse(resp); err != nil {
			t.Errorf("%v: %v", d.Reason, err)
		}
		if allows := resp.GetOkResponse() != nil && resp.GetStatus().GetCode() == 0; allows != (d.Reason.Outcome() == Allowed) {
			t.Errorf("%v: lets pass: %v", d.Reason, allows)
		}
	}
}
