package definitions

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// readStructure turns the nodes into a message, and adds to f what does not fit the schema: unknown and repeated
// fields, values of another type, and empty values of fields with a default. It refuses aliases, so that a small file
// cannot expand to a huge one. List items keep their index, even if they are wrong.
func readStructure(f *findings) *gatewayv1.Gateway {
	g := &gatewayv1.Gateway{}
	readFields(f, f.root, g.ProtoReflect(), "")
	services := g.ProtoReflect().Descriptor().Fields().ByName("services")
	if valueOf(f.root, services) == nil && !f.isSpoilt("services") {
		f.at(f.root, "services", aboutFields.faultf(emptyRemedy, "is missing"))
	}
	return g
}

func readFields(f *findings, mapping *yaml.Node, message protoreflect.Message, path string) {
	first := map[protoreflect.Name]*yaml.Node{} // :: field → its key
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		fd := fieldOf(key, message.Descriptor())
		if fd == nil {
			checkUnknown(f, key, message.Descriptor(), path)
			continue
		}
		field := join(path, string(fd.Name()))
		if earlier, twice := first[fd.Name()]; twice {
			f.at(key, field, aboutFields.faultf("remove one of them", "is given twice, first on %s", f.line(earlier)))
			continue
		}
		first[fd.Name()] = key
		readField(f, value, message, fd, field)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func fieldOf(key *yaml.Node, message protoreflect.MessageDescriptor) protoreflect.FieldDescriptor {
	if key.Kind != yaml.ScalarNode {
		return nil
	}
	if fd := message.Fields().ByTextName(key.Value); fd != nil {
		return fd
	}
	return message.Fields().ByJSONName(key.Value)
}

func checkUnknown(f *findings, key *yaml.Node, message protoreflect.MessageDescriptor, path string) {
	switch {
	case key.Kind != yaml.ScalarNode:
		f.at(key, join(path, "?"), aboutFields.faultf("write a field's name", "the name of a field is %s", kindOf(key)))
		return
	case key.Tag == "!!merge":
		f.at(key, join(path, "<<"), aboutFields.faultf("write the fields out", "merging is not supported"))
		f.spoilAlso(path) // fields that the merge would add are not missing
		return
	}
	names := make([]string, message.Fields().Len())
	for i := range names {
		names[i] = string(message.Fields().Get(i).Name())
	}
	remedy := "the fields are " + strings.Join(names, ", ")
	other, isForeign := foreign(message, key.Value)
	switch meant := nearest(key.Value, names); {
	case isForeign:
		remedy = other.remedy
		if other.field != "" {
			f.spoilAlso(join(path, string(other.field))) // it is not missing, it has another name
		}
	case meant != "":
		remedy = "did you mean " + meant + "?"
		f.spoilAlso(join(path, meant)) // it is not missing, it is misspelt
	}
	f.at(key, join(path, printable(key.Value)), aboutFields.faultf(remedy, "unknown field"))
}

// printable returns the name of an unknown field for a problem.
func printable(name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	quoted := strconv.Quote(name)
	if name == "" || strings.ContainsAny(name, " .[]:") || quoted[1:len(quoted)-1] != name {
		return quoted
	}
	return name
}

func readField(f *findings, node *yaml.Node, message protoreflect.Message, fd protoreflect.FieldDescriptor, field string) {
	if fd.IsMap() {
		readMap(f, node, message.Mutable(fd).Map(), fd, field)
		return
	}
	if !fd.IsList() {
		if value := readValue(f, node, message.NewField(fd), fd, field); value.IsValid() {
			message.Set(fd, value)
		}
		return
	}
	switch {
	case node.Kind != yaml.SequenceNode:
		f.at(node, field, wantList(node, fd))
		return
	case len(node.Content) == 0 && defaultOf(fd) != "":
		f.at(node, field, isEmpty(fd, "list"))
	}
	list := message.Mutable(fd).List()
	for i, item := range node.Content {
		value := readValue(f, item, list.NewElement(), fd, field+"["+strconv.Itoa(i)+"]")
		if !value.IsValid() {
			value = list.NewElement()
		}
		list.Append(value)
	}
}

// readMap reads a field with texts by name.
func readMap(f *findings, node *yaml.Node, into protoreflect.Map, fd protoreflect.FieldDescriptor, field string) {
	if node.Kind != yaml.MappingNode {
		f.at(node, field, aboutFields.faultf("write names and values, such as {X-Frame-Options: DENY}", "is %s", kindOf(node)))
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, entry := node.Content[i], entryOf(field, node.Content[i].Value)
		switch {
		case key.Kind != yaml.ScalarNode:
			f.at(key, field, aboutFields.faultf("write a name", "a name is %s", kindOf(key)))
			continue
		case key.Tag == "!!merge":
			f.at(key, field, aboutFields.faultf("write the names out", "merging is not supported"))
			continue
		case into.Has(protoreflect.ValueOfString(key.Value).MapKey()):
			f.at(key, entry, aboutFields.faultf("remove one of them", "is given twice, first on %s", f.where(entry)))
			continue
		}
		if value := readValue(f, node.Content[i+1], into.NewValue(), fd.MapValue(), entry); value.IsValid() {
			into.Set(protoreflect.ValueOfString(key.Value).MapKey(), value)
		}
	}
}

// entryOf returns the field path of an entry of a map.
func entryOf(field, key string) string { return field + "[" + strconv.Quote(key) + "]" }

func wantList(node *yaml.Node, fd protoreflect.FieldDescriptor) *fault {
	if node.Kind == yaml.MappingNode && len(node.Content) > 0 && fd.Message() != nil {
		return listOfFields(node, fd.Message())
	}
	if node.Kind == yaml.ScalarNode && node.Tag != "!!null" {
		return aboutFields.faultf("write ["+shown(node.Value)+"]", "is %s, not a list", kindOf(node))
	}
	return aboutFields.faultf("write a list, such as [a, b], or [] for none", "is %s, not a list", kindOf(node))
}

// listOfFields is the problem of a mapping in the place of a list of sets of fields: one item without its dash, or
// one set of fields for each name, as in docker-compose.
func listOfFields(node *yaml.Node, message protoreflect.MessageDescriptor) *fault {
	first := node.Content[0]
	if fieldOf(first, message) != nil {
		return aboutFields.faultf("put a dash before the first field of each: `- "+first.Value+": …`", "is a set of fields, not a list")
	}
	remedy := "write a list, each entry with a dash and its name: `- name: " + printable(first.Value) + "`"
	return aboutFields.faultf(remedy, "is a set of fields by name, not a list")
}

func isEmpty(fd protoreflect.FieldDescriptor, kind string) *fault {
	return aboutFields.faultf("remove the line for the default, "+defaultOf(fd), "is an empty %s", kind)
}

// readValue reads the value of a field, or of an item of a list. If it is wrong or null, the result is invalid. empty
// is a new value of the type; a message is read into it.
func readValue(f *findings, node *yaml.Node, empty protoreflect.Value, fd protoreflect.FieldDescriptor, field string) (value protoreflect.Value) {
	null := node.Kind == yaml.ScalarNode && node.Tag == "!!null"
	message := fd.Message()
	switch {
	case node.Kind == yaml.AliasNode:
		f.at(node, field, aboutFields.faultf("write the value out", "is an alias"))
	case message != nil && message.FullName() != "google.protobuf.Duration":
		if null && !fd.IsList() {
			return value // `tokens:` with all of its lines commented out
		}
		if short := shorthand(message); short != nil && node.Kind == yaml.ScalarNode {
			readField(f, node, empty.Message(), short, join(field, string(short.Name())))
			return empty
		}
		if node.Kind != yaml.MappingNode {
			f.at(node, field, aboutFields.faultf("write fields below it, as `name: value`", "is %s, not a set of fields", kindOf(node)))
			return value
		}
		readFields(f, node, empty.Message(), field)
		return empty
	case null:
		f.at(node, field, aboutFields.faultf("give it one, or remove the line", "has no value"))
	case node.Kind != yaml.ScalarNode:
		f.at(node, field, aboutFields.faultf("write a single value", "is %s", kindOf(node)))
	case variable.MatchString(node.Value):
		f.at(node, field, aboutFields.faultf(variableRemedy(field), "%s has a variable, and variables are not replaced", shown(node.Value)))
	default:
		value, fault := readScalar(node, fd)
		if fault != nil {
			f.at(node, field, fault)
		}
		return value
	}
	return value
}

// shorthands are the messages that a file may give as a single value: that of one field. :: message → field
var shorthands = map[protoreflect.FullName]protoreflect.Name{
	"gatepost.v1.HealthCheck": "path",
	"gatepost.v1.Retries":     "count",
	"gatepost.v1.Affinity":    "by",
}

// shorthand returns the field that a single value in the place of a message gives, or nil.
func shorthand(message protoreflect.MessageDescriptor) protoreflect.FieldDescriptor {
	return message.Fields().ByName(shorthands[message.FullName()])
}

// variable matches what shells, docker-compose and envsubst replace by the value of an environment variable.
var variable = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*([:?+=-][^}]*)?\}`)

func variableRemedy(field string) string {
	remedy := "write the value, or run the file through a tool such as envsubst first"
	if field == "listen" {
		remedy += "; --listen sets the address of one gateway"
	}
	return remedy
}

func readScalar(node *yaml.Node, fd protoreflect.FieldDescriptor) (value protoreflect.Value, wrong *fault) {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		// Only these two: YAML 1.1 has a dozen words for them, and YAML 1.2 reads most of those as strings.
		if node.Tag != "!!bool" || node.Value != "true" && node.Value != "false" {
			return value, aboutFields.faultf("write true or false, without quotes", "is %s", shown(node.Value))
		}
		return protoreflect.ValueOfBool(node.Value == "true"), nil
	case protoreflect.Uint32Kind:
		return readWholeNumber(node, fd)
	case protoreflect.DoubleKind:
		return readNumber(node)
	case protoreflect.MessageKind:
		d, ok := parseDuration(node.Value)
		if !ok {
			return value, aboutFields.faultf("write a number with its unit, such as 15s, 500ms or 2h", "is %s, not a duration", shown(node.Value))
		}
		return protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()), nil
	case protoreflect.StringKind:
		if node.Value == "" && !fd.IsList() && defaultOf(fd) != "" {
			return value, isEmpty(fd, "text")
		}
		return protoreflect.ValueOfString(node.Value), nil
	default:
		return value, aboutFields.faultf("", "is of the kind %s, which is not read from files", fmt.Sprint(fd.Kind()))
	}
}

func readWholeNumber(node *yaml.Node, fd protoreflect.FieldDescriptor) (value protoreflect.Value, wrong *fault) {
	n, err := strconv.ParseUint(node.Value, 10, 32)
	if err != nil {
		return value, aboutFields.faultf("write a whole number", "is %s", shown(node.Value))
	}
	if n == 0 && defaultOf(fd) != "" {
		return value, aboutFields.faultf("write at least 1, or remove the line for the default, "+defaultOf(fd), "is 0")
	}
	return protoreflect.ValueOfUint32(uint32(n)), nil
}

func readNumber(node *yaml.Node) (value protoreflect.Value, wrong *fault) {
	n, err := strconv.ParseFloat(node.Value, 64)
	if err != nil || node.Style != 0 || math.IsNaN(n) {
		return value, aboutFields.faultf("write a number, such as 0.1", "is %s", shown(node.Value))
	}
	return protoreflect.ValueOfFloat64(n), nil
}

// duration matches what [time.ParseDuration] reads, however long.
var duration = regexp.MustCompile(`^[-+]?([0-9]+\.?[0-9]*(ns|us|µs|μs|ms|s|m|h))+$`)

// parseDuration parses a duration. One of more than 292 years becomes 292 years, which exceeds every limit.
func parseDuration(text string) (d time.Duration, ok bool) {
	d, err := time.ParseDuration(text)
	if err == nil || !duration.MatchString(text) {
		return d, err == nil
	}
	if text[0] == '-' {
		return math.MinInt64, true
	}
	return math.MaxInt64, true
}
