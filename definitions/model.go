package definitions

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"unicode/utf8"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// The model says at each field what its value may be, as rules of protovalidate. Here are the few kinds of rules that it uses, asked
// directly: protovalidate's own engine compiles each into a program, which takes longer than to read most files, and holds more memory
// than all else that an idle gateway does. A rule of another kind is an error, and no file is served.

// rule is one rule about a value.
type rule struct {
	id    string             // protovalidate's name of it, such as string.pattern
	limit protoreflect.Value // what the model has it say
	says  string             // the same in words, where they are told
	holds func(protoreflect.Value) bool
}

// violation is a rule that does not hold.
type violation struct {
	*rule
	field string // where, such as services[3].upstreams[0]
}

// fieldRules are the rules of a field: about its value, or of a list about the whole and about each item.
type fieldRules struct {
	field        protoreflect.FieldDescriptor
	whole, items []rule
	message      messageRules // what its value, or each item, has rules of itself
}

// messageRules are those of all fields of a message that have any.
type messageRules []fieldRules

// model are the rules of the whole model, read once.
var model = sync.OnceValues(func() (messageRules, error) {
	return rulesOf((*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor())
})

func rulesOf(message protoreflect.MessageDescriptor) (all messageRules, err error) {
	for i := range message.Fields().Len() {
		one := fieldRules{field: message.Fields().Get(i)}
		said, _ := proto.GetExtension(one.field.Options(), validate.E_Field).(*validate.FieldRules)
		if one.field.IsList() {
			one.whole, one.items, err = listRules(said)
		} else {
			one.whole, err = valueRules(said)
		}
		if sub := one.field.Message(); err == nil && sub != nil && sub.ParentFile() == message.ParentFile() {
			one.message, err = rulesOf(sub)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the rules of %s: %w", one.field.FullName(), err)
		}
		if len(one.whole)+len(one.items)+len(one.message) > 0 {
			all = append(all, one)
		}
	}
	return all, nil
}

func listRules(said *validate.FieldRules) (whole, items []rule, err error) {
	of := said.GetRepeated()
	if of == nil {
		whole, err = valueRules(said)
		return whole, nil, err
	}
	if err := alone(said); err != nil {
		return nil, nil, err
	}
	if items, err = valueRules(of.GetItems()); err != nil {
		return nil, nil, err
	}
	of = proto.CloneOf(of)
	of.Items = nil
	whole, err = eachRule(of, "repeated", map[protoreflect.Name]func(protoreflect.Value) func(protoreflect.Value) bool{
		"min_items": func(least protoreflect.Value) func(protoreflect.Value) bool {
			return func(v protoreflect.Value) bool { return uint64(v.List().Len()) >= least.Uint() }
		},
		"max_items": func(most protoreflect.Value) func(protoreflect.Value) bool {
			return func(v protoreflect.Value) bool { return uint64(v.List().Len()) <= most.Uint() }
		},
		"unique": func(wanted protoreflect.Value) func(protoreflect.Value) bool {
			return func(v protoreflect.Value) bool { return !wanted.Bool() || distinct(v.List()) }
		},
	})
	return whole, items, err
}

// valueRules are the rules about one value.
func valueRules(said *validate.FieldRules) ([]rule, error) {
	if err := alone(said); err != nil {
		return nil, err
	}
	switch of := said.GetType().(type) {
	case *validate.FieldRules_String_:
		return stringRules(of.String_)
	case *validate.FieldRules_Duration:
		return rangeRule(of.Duration.ProtoReflect(), "duration", nanoseconds, func(v protoreflect.Value) string {
			return strconv.FormatFloat(float64(nanoseconds(v))/1e9, 'f', -1, 64) + "s"
		})
	case *validate.FieldRules_Uint32:
		return rangeRule(of.Uint32.ProtoReflect(), "uint32", func(v protoreflect.Value) int64 { return int64(v.Uint()) }, protoreflect.Value.String)
	}
	if said.GetType() != nil {
		return nil, fmt.Errorf("rules of a kind that is not known: %v", said)
	}
	return nil, nil
}

// alone is an error where something is said beside the rules of the value's type.
func alone(said *validate.FieldRules) (err error) {
	said.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if field.ContainingOneof() == nil {
			err = fmt.Errorf("a rule that is not known: %s", field.Name())
		}
		return err == nil
	})
	return err
}

func stringRules(said *validate.StringRules) ([]rule, error) {
	var pattern *regexp.Regexp
	if said.Pattern != nil {
		var err error
		if pattern, err = regexp.Compile(said.GetPattern()); err != nil {
			return nil, err
		}
	}
	return eachRule(said, "string", map[protoreflect.Name]func(protoreflect.Value) func(protoreflect.Value) bool{
		"min_len": func(least protoreflect.Value) func(protoreflect.Value) bool {
			return func(v protoreflect.Value) bool { return uint64(utf8.RuneCountInString(v.String())) >= least.Uint() }
		},
		"max_len": func(most protoreflect.Value) func(protoreflect.Value) bool {
			return func(v protoreflect.Value) bool { return uint64(utf8.RuneCountInString(v.String())) <= most.Uint() }
		},
		"pattern": func(protoreflect.Value) func(protoreflect.Value) bool {
			return func(v protoreflect.Value) bool { return pattern.MatchString(v.String()) }
		},
		"in": func(protoreflect.Value) func(protoreflect.Value) bool {
			return func(v protoreflect.Value) bool { return slices.Contains(said.GetIn(), v.String()) }
		},
		"not_in": func(protoreflect.Value) func(protoreflect.Value) bool {
			return func(v protoreflect.Value) bool { return !slices.Contains(said.GetNotIn(), v.String()) }
		},
	})
}

// eachRule makes a rule of each that is said, in the order of their numbers.
func eachRule(said proto.Message, kind string, known map[protoreflect.Name]func(limit protoreflect.Value) func(protoreflect.Value) bool) (rules []rule, err error) {
	fields := said.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		one := fields.Get(i)
		if !said.ProtoReflect().Has(one) {
			continue
		}
		if known[one.Name()] == nil {
			return nil, fmt.Errorf("a rule that is not known: %s.%s", kind, one.Name())
		}
		limit := said.ProtoReflect().Get(one)
		rules = append(rules, rule{id: kind + "." + string(one.Name()), limit: limit, holds: known[one.Name()](limit)})
	}
	return rules, nil
}

// rangeRule is the rule that a number lies between two, of which one may be missing.
func rangeRule(said protoreflect.Message, kind string, number func(protoreflect.Value) int64, shown func(protoreflect.Value) string) ([]rule, error) {
	one := rule{id: kind + "."}
	least, most := int64(-1<<63), int64(1<<63-1)
	var unknown error
	said.Range(func(field protoreflect.FieldDescriptor, limit protoreflect.Value) bool {
		if field.Name() != "gte" && field.Name() != "lte" {
			unknown = fmt.Errorf("a rule that is not known: %s.%s", kind, field.Name())
		}
		return unknown == nil
	})
	if unknown != nil {
		return nil, unknown
	}
	for _, end := range []struct {
		name  protoreflect.Name
		words string
		bound *int64
	}{{"gte", "greater than or equal to ", &least}, {"lte", "less than or equal to ", &most}} {
		field := said.Descriptor().Fields().ByName(end.name)
		if !said.Has(field) {
			continue
		}
		if one.says != "" {
			one.id, one.says = one.id+"_", one.says+" and "
		}
		one.limit = said.Get(field)
		*end.bound = number(one.limit)
		one.id, one.says = one.id+string(end.name), one.says+end.words+shown(one.limit)
	}
	if one.says == "" {
		return nil, nil
	}
	one.says = "must be " + one.says
	one.holds = func(v protoreflect.Value) bool { return number(v) >= least && number(v) <= most }
	return []rule{one}, nil
}

// nanoseconds is how long a duration is, or as much as can be told.
func nanoseconds(v protoreflect.Value) int64 {
	d, _ := v.Message().Interface().(*durationpb.Duration)
	return int64(d.AsDuration())
}

func distinct(list protoreflect.List) bool {
	if list.Len() < 2 {
		return true
	}
	seen := make(map[any]struct{}, list.Len())
	for i := range list.Len() {
		seen[list.Get(i).Interface()] = struct{}{}
	}
	return len(seen) == list.Len()
}

// check tells of each rule that does not hold of a message at a place.
func (all messageRules) check(m protoreflect.Message, place string, tell func(violation)) {
	for i := range all {
		one := &all[i]
		if one.field.HasPresence() && !m.Has(one.field) {
			continue // what is missing has its default
		}
		value, at := m.Get(one.field), place+string(one.field.Name())
		ask(one.whole, value, at, tell)
		if !one.field.IsList() {
			if len(one.message) > 0 {
				one.message.check(value.Message(), at+".", tell)
			}
			continue
		}
		if len(one.items)+len(one.message) == 0 {
			continue
		}
		for n := range value.List().Len() {
			item, at := value.List().Get(n), fmt.Sprintf("%s[%d]", at, n)
			ask(one.items, item, at, tell)
			if len(one.message) > 0 {
				one.message.check(item.Message(), at+".", tell)
			}
		}
	}
}

func ask(rules []rule, v protoreflect.Value, at string, tell func(violation)) {
	for i := range rules {
		if !rules[i].holds(v) {
			tell(violation{&rules[i], at})
		}
	}
}
