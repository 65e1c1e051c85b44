package definitions

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// violation is a value that violates a constraint of the schema.
type violation struct {
	field string // its path, such as services[3].timeout
	rule  string // of protovalidate, such as string.max_len
	limit protoreflect.Value
	// bounds is the range of a number or a duration in words; "" for other rules.
	bounds string
}

// violations returns the violations of the rules of buf.validate that the schema uses. An error reports a rule that it
// does not know. The library protovalidate knows all, with an interpreter for CEL: a tenth of the program, and
// megabytes of memory for each check. The tests compare the two.
func violations(m proto.Message) ([]violation, error) {
	c := &constraints{patterns: map[string]*regexp.Regexp{}, ruled: map[protoreflect.FullName][]ruledField{}}
	c.message("", m.ProtoReflect())
	return c.found, errors.Join(c.unknown...)
}

// constraints checks one message and all messages in it.
type constraints struct {
	patterns map[string]*regexp.Regexp
	ruled    map[protoreflect.FullName][]ruledField // :: message → the fields with something to check
	found    []violation
	unknown  []error
}

type ruledField struct {
	fd    protoreflect.FieldDescriptor
	rules *validate.FieldRules
}

// fieldsOf returns the fields of a message that have rules, and those that are messages.
func (c *constraints) fieldsOf(message protoreflect.MessageDescriptor) []ruledField {
	out, known := c.ruled[message.FullName()]
	if known {
		return out
	}
	for i := range message.Fields().Len() {
		fd := message.Fields().Get(i)
		rules := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
		if rules != nil || fd.Message() != nil && !fd.IsMap() {
			out = append(out, ruledField{fd, rules})
		}
	}
	c.ruled[message.FullName()] = out
	return out
}

func (c *constraints) message(path string, m protoreflect.Message) {
	if path != "" {
		path += "."
	}
	for _, field := range c.fieldsOf(m.Descriptor()) {
		fd, rules := field.fd, field.rules
		if !m.Has(fd) && (fd.HasPresence() || rules.GetIgnore() == validate.Ignore_IGNORE_IF_ZERO_VALUE) {
			continue
		}
		name, value := path+string(fd.Name()), m.Get(fd)
		c.check(name, rules, value)
		switch {
		case fd.Message() == nil || fd.IsMap() || fd.Message().FullName() == durationName:
		case fd.IsList():
			for i := range value.List().Len() {
				c.message(indexed(name, i), value.List().Get(i).Message())
			}
		default:
			c.message(name, value.Message())
		}
	}
}

var durationName = (*durationpb.Duration)(nil).ProtoReflect().Descriptor().FullName()

func indexed(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }

// check checks a value against the rules of its field, or of the items of its list.
func (c *constraints) check(field string, rules *validate.FieldRules, value protoreflect.Value) {
	rules.ProtoReflect().Range(func(kind protoreflect.FieldDescriptor, of protoreflect.Value) bool {
		switch {
		case kind.Name() == "ignore":
		case kind.Message() == nil || kind.IsList(): // such as required, or an expression in CEL
			c.unknown = append(c.unknown, fmt.Errorf("%s: the rule %s", field, kind.Name()))
		default:
			c.checkKind(field, kind.Name(), of.Message(), value)
		}
		return true
	})
}

// checkKind checks a value against rules of its kind, such as string.
func (c *constraints) checkKind(field string, kind protoreflect.Name, rules protoreflect.Message, value protoreflect.Value) {
	var bounds []string // the rules of a range
	outside := false
	rules.Range(func(fd protoreflect.FieldDescriptor, limit protoreflect.Value) bool {
		switch fd.Name() {
		case "gte":
			bounds, outside = append(bounds, "greater than or equal to "+boundText(limit)), outside || compare(value, limit) < 0
		case "lte":
			bounds, outside = append(bounds, "less than or equal to "+boundText(limit)), outside || compare(value, limit) > 0
		case "items":
			for i := range value.List().Len() {
				c.check(indexed(field, i), limit.Message().Interface().(*validate.FieldRules), value.List().Get(i))
			}
		default:
			broken, known := c.isBroken(fd.Name(), limit, value)
			if !known {
				c.unknown = append(c.unknown, fmt.Errorf("%s: the rule %s.%s", field, kind, fd.Name()))
			}
			if broken {
				c.found = append(c.found, violation{field: field, rule: string(kind + "." + fd.Name()), limit: limit})
			}
		}
		return true
	})
	if outside {
		slices.Sort(bounds) // the lower one first
		c.found = append(c.found, violation{field: field, rule: string(kind) + ".range", bounds: strings.Join(bounds, " and ")})
	}
}

// isBroken reports whether a value breaks a rule that is no range and no rule of items, and whether the rule is known.
func (c *constraints) isBroken(rule protoreflect.Name, limit, value protoreflect.Value) (broken, known bool) {
	switch rule {
	case "min_len":
		return uint64(utf8.RuneCountInString(value.String())) < limit.Uint(), true
	case "max_len":
		return uint64(utf8.RuneCountInString(value.String())) > limit.Uint(), true
	case "pattern":
		return !c.pattern(limit.String()).MatchString(value.String()), true
	case "in":
		return !contains(limit.List(), value), true
	case "not_in":
		return contains(limit.List(), value), true
	case "min_items":
		return uint64(value.List().Len()) < limit.Uint(), true
	case "max_items":
		return uint64(value.List().Len()) > limit.Uint(), true
	case "max_pairs":
		return uint64(value.Map().Len()) > limit.Uint(), true
	case "unique":
		return limit.Bool() && repeats(value.List()), true
	}
	return false, false
}

func (c *constraints) pattern(text string) *regexp.Regexp {
	if c.patterns[text] == nil {
		c.patterns[text] = regexp.MustCompile(text)
	}
	return c.patterns[text]
}

func contains(list protoreflect.List, value protoreflect.Value) bool {
	for i := range list.Len() {
		if list.Get(i).Equal(value) {
			return true
		}
	}
	return false
}

func repeats(list protoreflect.List) bool {
	seen := make(map[any]bool, list.Len())
	for i := range list.Len() {
		seen[list.Get(i).Interface()] = true
	}
	return len(seen) < list.Len()
}

// compare compares two whole numbers, numbers or durations.
func compare(a, b protoreflect.Value) int {
	switch x := a.Interface().(type) {
	case uint32:
		return cmp.Compare(uint64(x), b.Uint())
	case float64:
		return cmp.Compare(x, b.Float())
	default:
		return cmp.Compare(durationOf(a), durationOf(b))
	}
}

func durationOf(v protoreflect.Value) time.Duration {
	return v.Message().Interface().(*durationpb.Duration).AsDuration()
}

func boundText(limit protoreflect.Value) string {
	switch n := limit.Interface().(type) {
	case protoreflect.Message:
		return strconv.FormatFloat(durationOf(limit).Seconds(), 'f', -1, 64) + "s"
	case float64:
		return strconv.FormatFloat(n, 'f', -1, 64)
	default:
		return limit.String()
	}
}

// checkConstraints finds the values that violate a constraint of the schema.
func checkConstraints(f *findings, g *gatewayv1.Gateway) {
	defer f.spoil()
	found, err := violations(g)
	if err != nil { // a constraint that cannot be checked is violated
		f.at(f.root, "", aboutFields.faultf("", "the rules of the model cannot be checked: %v", err))
	}
	for _, v := range found {
		if v.rule == "repeated.unique" {
			addTwins(f, v.field)
		} else {
			f.add(v.field, violationFault(f, v))
		}
	}
}

// addTwins adds a problem for each repeated item of a list.
func addTwins(f *findings, field string) {
	list, _ := f.locate(field)
	first := map[string]*yaml.Node{} // :: value → item
	for i, item := range list.Content {
		if earlier, twice := first[item.Value]; twice {
			f.add(fmt.Sprintf("%s[%d]", field, i),
				aboutFields.faultf("remove one of them", "%s is in the list twice, first on %s", shown(item.Value), f.line(earlier)))
			continue
		}
		first[item.Value] = item
	}
}

// words are the noun and the remedy for a value of a field whose constraint is a regular expression.
var words = map[protoreflect.FullName]struct{ noun, remedy string }{
	"gatepost.v1.Service.name":                    {"a name", "1 to 64 letters, digits, '.', '_' and '-', the first and the last a letter or digit"},
	"gatepost.v1.Service.path":                    {"a path", "the path that the service is found under, such as /orders"},
	"gatepost.v1.Service.upstreams":               {"an upstream", "where the service runs, such as http://orders:8080"},
	"gatepost.v1.Service.allowed_methods":         {"a method that can be allowed", "a method in capital letters, such as GET; never CONNECT or TRACE"},
	"gatepost.v1.Service.hosts":                   {"a host", "a name such as api.shop.example"},
	"gatepost.v1.Tokens.hosts":                    {"a host", "a name such as api.shop.example"},
	"gatepost.v1.UpstreamTls.server_name":         {"a server name", "write the name in the certificate of the upstreams, such as orders.internal"},
	"gatepost.v1.Service.scopes":                  {"a scope", "1 to 64 visible ASCII characters without quotes, spaces and backslashes"},
	"gatepost.v1.Cors.allow_headers":              {"a header name", "name each header, such as Content-Type; Envoy rejects a request header with an underscore, and * does not cover Authorization"},
	"gatepost.v1.Cors.expose_headers":             {"a header name", "name each header, such as ETag"},
	"gatepost.v1.Identity.user_header":            {"a header name", "letters, digits and hyphens, such as x-user-id; Envoy rejects an underscore"},
	"gatepost.v1.Authenticator.user_header":       {"a header name", "letters, digits and hyphens, such as userid"},
	"gatepost.v1.Authenticator.scopes_header":     {"a header name", "letters, digits and hyphens, such as scopes"},
	"gatepost.v1.Authenticator.url":               {"an address", "the whole address of the login, such as http://users/users/authenticate"},
	"gatepost.v1.Tokens.cookie":                   {"a cookie name", "letters, digits, hyphens, dots and underscores, such as session"},
	"gatepost.v1.Tokens.subprotocol":              {"a subprotocol", "letters, digits, hyphens, dots and underscores, such as gatepost.bearer"},
	"gatepost.v1.ClientAddresses.trusted_proxies": {"a range of addresses", "write a range such as 10.0.0.0/8, or a single address"},
	"gatepost.v1.Canary.upstreams":                {"an upstream", "where the canary runs, such as http://orders-next:8080"},
	"gatepost.v1.Canary.percent":                  {"a percentage", "write a percentage, such as 10"},
	"gatepost.v1.Affinity.header":                 {"a header name", "letters, digits and hyphens, such as x-tenant; Envoy rejects an underscore"},
	"gatepost.v1.Gateway.origins":                 {"an origin", "write it as a browser sends it, such as https://shop.example"},
}

func violationFault(f *findings, v violation) *fault {
	known := words[fullName(v.field)]
	node, there := f.locate(v.field)
	if !there || v.rule == "repeated.min_items" {
		return aboutFields.faultf(known.remedy, "is missing")
	}
	_, rule, _ := strings.Cut(v.rule, ".")
	switch rule {
	case "in":
		return choiceFault(node, v)
	case "max_len":
		return aboutFields.faultf("at most "+v.limit.String()+" characters", "is too long")
	case "max_items", "max_pairs":
		return aboutFields.faultf("at most "+v.limit.String(), "has too many entries")
	case "min_len":
		return aboutFields.faultf(known.remedy, "is empty")
	case "range":
		return aboutFields.faultf("must be "+v.bounds, "%s is out of range", node.Value)
	default: // pattern, not_in
		return patternFault(node, known.noun, known.remedy)
	}
}

func patternFault(node *yaml.Node, noun, remedy string) *fault {
	value := node.Value
	if upper := strings.ToUpper(value); noun == words["gatepost.v1.Service.allowed_methods"].noun && upper != value {
		remedy = "write " + upper // methods are case-sensitive (RFC 9110 §9.1)
	}
	return aboutFields.faultf(remedy, "%s is not %s", shown(value), noun)
}

// choiceFault is the problem of a string that is none of the valid ones.
func choiceFault(node *yaml.Node, v violation) *fault {
	var choices []string
	for i := range v.limit.List().Len() {
		if choice := v.limit.List().Get(i).String(); choice != "" && choice != formerStrict {
			choices = append(choices, choice)
		}
	}
	return aboutFields.faultf("write "+strings.Join(choices, " or "), "is %s", shown(node.Value))
}

// fullName returns the full name in the schema of the field at a path.
func fullName(field string) (name protoreflect.FullName) {
	message := (*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor()
	for step := range strings.SplitSeq(field, ".") {
		step, _, _ = strings.Cut(step, "[")
		if message == nil {
			return name
		}
		fd := message.Fields().ByName(protoreflect.Name(step))
		if fd == nil {
			return name
		}
		name, message = fd.FullName(), fd.Message()
	}
	return name
}
