package definitions

import (
	"errors"
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
	"gatepost/testrun"
)

// TestConstraintsAreThoseOfProtovalidate sets each field of the schema, alone in its message, to values at the edges of
// its rules. The library and the own check must find the same.
func TestConstraintsAreThoseOfProtovalidate(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	library, err := protovalidate.New(protovalidate.WithMessages(&gatewayv1.Gateway{}))
	if err != nil {
		t.Fatal(err)
	}
	var valid, invalid int
	for _, m := range edges((*gatewayv1.Gateway)(nil).ProtoReflect().Type()) {
		var broken *protovalidate.ValidationError
		if err := library.Validate(m.Interface()); err != nil && !errors.As(err, &broken) {
			t.Fatal(err)
		}
		var want, got []string
		if broken != nil {
			for _, v := range broken.Violations {
				field := protovalidate.FieldPathString(v.Proto.GetField()) + " "
				switch kind, rule, _ := strings.Cut(v.Proto.GetRuleId(), "."); rule {
				case "gte", "lte", "gte_lte":
					want = append(want, field+kind+".range: "+v.Proto.GetMessage())
				default:
					want = append(want, field+v.Proto.GetRuleId())
				}
			}
		}
		found, err := violations(m.Interface())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range found {
			text := v.field + " " + v.rule
			if v.bounds != "" {
				text += ": must be " + v.bounds
			}
			got = append(got, text)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%v\ngot  %q\nwant %q", m, got, want)
		}
		if len(want) == 0 {
			valid++
		} else {
			invalid++
		}
	}
	if valid < 100 || invalid < 100 {
		t.Errorf("only %d valid and %d invalid messages were compared", valid, invalid)
	}
}

// TestAnUnknownRuleIsAnError: a rule that is added to the schema must not go unchecked.
func TestAnUnknownRuleIsAnError(t *testing.T) {
	for name, rules := range map[string]*validate.FieldRules{
		"required": {Required: proto.Bool(true)},
		"cel":      {Cel: []*validate.Rule{{}}},
		"email":    {Type: &validate.FieldRules_String_{String_: &validate.StringRules{WellKnown: &validate.StringRules_Email{Email: true}}}},
	} {
		var c constraints
		if c.check("field", rules, protoreflect.ValueOfString("text")); len(c.unknown) != 1 {
			t.Errorf("%s: %v", name, c.unknown)
		}
	}
}

// edges returns messages of a type that have one field each, for all fields below.
func edges(of protoreflect.MessageType) []protoreflect.Message {
	out := []protoreflect.Message{of.New()}
	fields := of.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		for _, value := range edgesOf(of, fd) {
			m := of.New()
			m.Set(fd, value)
			out = append(out, m)
		}
	}
	return out
}

func edgesOf(of protoreflect.MessageType, fd protoreflect.FieldDescriptor) (out []protoreflect.Value) {
	rules := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
	switch {
	case fd.IsMap():
		for _, n := range around(rules.GetMap().GetMaxPairs()) {
			value := of.New().NewField(fd)
			for range n {
				key := strings.Repeat("k", 1+value.Map().Len())
				value.Map().Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString("v"))
			}
			out = append(out, value)
		}
	case fd.IsList():
		items := edgesOfOne(fd, rules.GetRepeated().GetItems(), func() protoreflect.MessageType { return typeOf(of.New().NewField(fd).List().NewElement()) })
		for _, item := range items {
			value := of.New().NewField(fd)
			value.List().Append(item)
			out = append(out, value)
		}
		for _, n := range append(around(rules.GetRepeated().GetMaxItems()), around(rules.GetRepeated().GetMinItems())...) {
			if n > 1001 {
				continue // each of 20,000 services would break rules of its own
			}
			value := of.New().NewField(fd)
			for range n {
				value.List().Append(items[len(items)/2])
			}
			out = append(out, value)
		}
	default:
		return edgesOfOne(fd, rules, func() protoreflect.MessageType { return typeOf(of.New().NewField(fd)) })
	}
	return out
}

func typeOf(v protoreflect.Value) protoreflect.MessageType { return v.Message().Type() }

// edgesOfOne returns values at the edges of the rules of a field, or of the items of a list.
func edgesOfOne(fd protoreflect.FieldDescriptor, rules *validate.FieldRules, of func() protoreflect.MessageType) (out []protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		s := rules.GetString()
		texts := []string{"", "a", "é", "GET", "get", "TRACE", "a b", "a\n", "x-user_id", "*", "secret", "none"}
		texts = append(append(texts, s.GetIn()...), s.GetNotIn()...)
		for _, n := range append(around(s.GetMaxLen()), around(s.GetMinLen())...) {
			texts = append(texts, strings.Repeat("é", int(n)))
		}
		for _, n := range []int{31, 32, 33, 63, 64, 65, 251, 252, 253} { // as in the patterns
			texts = append(texts, strings.Repeat("A", n))
		}
		for _, text := range texts {
			out = append(out, protoreflect.ValueOfString(text))
		}
	case protoreflect.Uint32Kind:
		u := rules.GetUint32()
		for _, n := range append(append(around(uint64(u.GetLte())), around(uint64(u.GetGte()))...), 301, 304) {
			out = append(out, protoreflect.ValueOfUint32(uint32(n)))
		}
	case protoreflect.DoubleKind:
		for _, n := range []float64{-1, 0, 0.0000009, 0.000001, 0.5, 1, 1.0001} {
			out = append(out, protoreflect.ValueOfFloat64(n))
		}
	case protoreflect.BoolKind:
		out = append(out, protoreflect.ValueOfBool(true))
	case protoreflect.MessageKind:
		if fd.Message().FullName() != durationName {
			for _, m := range edges(of()) {
				out = append(out, protoreflect.ValueOfMessage(m))
			}
			break
		}
		d := rules.GetDuration()
		for _, limit := range []time.Duration{d.GetGte().AsDuration(), d.GetLte().AsDuration()} {
			for _, by := range []time.Duration{-1, 0, 1} {
				out = append(out, protoreflect.ValueOfMessage(durationpb.New(limit+by).ProtoReflect()))
			}
		}
	}
	return out
}

// around returns the whole numbers next to a limit, and the limit.
func around(limit uint64) []uint64 {
	if limit == 0 {
		return []uint64{0, 1}
	}
	return []uint64{limit - 1, limit, limit + 1}
}
