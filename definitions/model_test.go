package definitions

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// anything fills a message with values around what its rules allow.
func anything(r *rand.Rand, m protoreflect.Message) {
	for i := range m.Descriptor().Fields().Len() {
		field := m.Descriptor().Fields().Get(i)
		switch {
		case r.IntN(3) == 0:
		case field.IsList():
			for range []int{0, 1, 1, 2, 3, 40, 300}[r.IntN(7)] {
				list := m.Mutable(field).List()
				if field.Message() == nil {
					list.Append(anyValue(r, field))
				} else if list.Len() < 3 {
					anything(r, list.AppendMutable().Message())
				}
			}
		case field.Message() == nil:
			m.Set(field, anyValue(r, field))
		case field.Message().FullName() == "google.protobuf.Duration":
			d := []time.Duration{-1, 0, 1, time.Millisecond - 1, time.Millisecond, time.Second, time.Second + 1, time.Minute, time.Hour, time.Hour + 1, 24 * time.Hour, 8760 * time.Hour, 8760*time.Hour + 1}
			m.Set(field, protoreflect.ValueOfMessage(durationpb.New(d[r.IntN(len(d))]).ProtoReflect()))
		default:
			anything(r, m.Mutable(field).Message())
		}
	}
}

func anyValue(r *rand.Rand, field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		texts := []string{"", "a", "orders", "GET", "TRACE", "CONNECT", "x-user_id", "uuid", "proven", "a b", "ä", `"`, "-a", "a-", "\n", "a\n"}
		text := texts[r.IntN(len(texts))]
		return protoreflect.ValueOfString(strings.Repeat(text, []int{1, 1, 1, 1, 32, 64, 65, 150, 300, 301, 2001}[r.IntN(11)]))
	case protoreflect.Uint32Kind:
		n := []uint32{0, 1, 10_000, 10_001, 100_000, 100_001, 1_000_000, 1_000_001, 1<<32 - 1}
		return protoreflect.ValueOfUint32(n[r.IntN(len(n))])
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(r.IntN(2) == 0)
	}
	panic(field.Kind())
}

func shownLimit(v protoreflect.Value) string {
	list, ok := v.Interface().(protoreflect.List)
	if !ok {
		return v.String()
	}
	var all []string
	for i := range list.Len() {
		all = append(all, list.Get(i).String())
	}
	return strings.Join(all, " ")
}

func subtract(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(one string) bool { return slices.Contains(some, one) })
}

// TestTheRulesAreProtovalidates compares what is found with what protovalidate finds, whose rules they are.
func TestTheRulesAreProtovalidates(t *testing.T) {
	theirs, err := protovalidate.New(protovalidate.WithMessages(&gatewayv1.Gateway{}))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := model()
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(6, 12))
	found := map[string]int{}
	for range 3000 {
		g := new(gatewayv1.Gateway)
		anything(r, g.ProtoReflect())
		var want, got []string
		var broken *protovalidate.ValidationError
		if err := theirs.Validate(g); errors.As(err, &broken) {
			for _, v := range broken.Violations {
				line := protovalidate.FieldPathString(v.Proto.GetField()) + " " + v.Proto.GetRuleId()
				if kind, _, _ := strings.Cut(v.Proto.GetRuleId(), "."); kind == "duration" || kind == "uint32" {
					line += " " + v.Proto.GetMessage()
				} else {
					line += " " + shownLimit(v.RuleValue)
				}
				want = append(want, line)
			}
		} else if err != nil {
			t.Fatal(err)
		}
		ours.check(g.ProtoReflect(), "", func(v violation) {
			found[v.id]++
			line := v.field + " " + v.id
			if v.says != "" {
				line += " " + v.says
			} else {
				line += " " + shownLimit(v.limit)
			}
			got = append(got, line)
		})
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("found %q\nand not %q", subtract(got, want), subtract(want, got))
		}
	}
	for _, id := range []string{
		"string.pattern", "string.min_len", "string.max_len", "string.in", "string.not_in", "repeated.unique", "repeated.min_items", "repeated.max_items",
		"duration.gte_lte", "uint32.lte", "uint32.gte_lte",
	} {
		if found[id] == 0 {
			t.Errorf("no value has broken %s", id)
		}
	}
}

func TestARuleOfAnotherKindIsNotPassedOver(t *testing.T) {
	for _, said := range []*validate.FieldRules{
		{Required: proto.Bool(true)},
		{Type: &validate.FieldRules_String_{String_: &validate.StringRules{Prefix: proto.String("a")}}},
		{Type: &validate.FieldRules_Uint32{Uint32: &validate.UInt32Rules{Const: proto.Uint32(1)}}},
		{Type: &validate.FieldRules_Bool{Bool: &validate.BoolRules{Const: proto.Bool(true)}}},
		{Type: &validate.FieldRules_Repeated{Repeated: &validate.RepeatedRules{Items: &validate.FieldRules{Cel: []*validate.Rule{{}}}}}},
		{Required: proto.Bool(true), Type: &validate.FieldRules_String_{String_: &validate.StringRules{MinLen: proto.Uint64(1)}}},
	} {
		if _, _, err := listRules(said); err == nil {
			t.Errorf("%v is taken for no rule", said)
		}
	}
}
