package definitions

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// findings collects the problems of one file. The checks run one after the other. They name a value by its field
// path, such as services[2].path. If an earlier check found a problem of a value, later checks ignore that value.
type findings struct {
	file  string
	files []folderFile // of a folder; nil if the definitions are one file
	root  *yaml.Node
	found Problems
	// merging are the problems of merging the files of a folder. They spoil no field, because other files have it too.
	merging Problems
	spoilt  map[string]bool // :: field path → found wrong
}

type position struct{ line, column int }

// at adds a problem of field at the node, and excludes the field from later checks.
func (f *findings) at(node *yaml.Node, field string, fault *fault) {
	f.spoilAlso(field)
	f.found = append(f.found, problem(f.file, f.files, position{node.Line, node.Column}, field, fault))
}

// add adds a problem of field unless the field is spoilt or fault is nil. Its position is that of the field or, if
// the field is missing, that of its parent.
func (f *findings) add(field string, fault *fault) {
	if fault == nil || f.isSpoilt(field) {
		return
	}
	node, _ := f.locate(field)
	f.found = append(f.found, problem(f.file, f.files, position{node.Line, node.Column}, field, fault))
}

// isSpoilt reports whether an earlier check found a problem of field or of a field that contains it.
func (f *findings) isSpoilt(field string) bool {
	if len(f.spoilt) == 0 {
		return false
	}
	for field != "" {
		if f.spoilt[field] {
			return true
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return false
}

// spoilAlso excludes a field whose problem has the position of another.
func (f *findings) spoilAlso(field string) {
	if f.spoilt == nil {
		f.spoilt = map[string]bool{}
	}
	f.spoilt[field] = true
}

// spoil excludes the fields of all problems found so far, before the next kind of check.
func (f *findings) spoil() {
	for _, p := range f.found {
		f.spoilAlso(p.Field)
	}
}

func (f *findings) sorted() Problems {
	ownIndexes(f.found, f.files)
	all := slices.Concat(f.merging, f.found)
	all.sort()
	return all
}

// where names the line of a field in a sentence: "line 7".
func (f *findings) where(field string) string {
	node, ok := f.locate(field)
	if !ok {
		return "the default"
	}
	return f.line(node)
}

// line names the line of a node for a sentence.
func (f *findings) line(node *yaml.Node) string { return lineText(f.file, f.files, node.Line) }

// locate returns the node of a field. If the file does not have the field, it returns the node of its parent, and ok is
// false. It walks from the root, so it is only for problems.
func (f *findings) locate(field string) (node *yaml.Node, ok bool) {
	node = f.root
	var message protoreflect.MessageDescriptor = (*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor()
	for step := range strings.SplitSeq(field, ".") {
		name, indexes, _ := strings.Cut(step, "[")
		if message == nil {
			return node, false
		}
		fd := message.Fields().ByName(protoreflect.Name(name))
		if fd != nil && fd == shorthand(message) && node.Kind == yaml.ScalarNode {
			return node, true
		}
		value := valueOf(node, fd)
		if value == nil {
			return node, false
		}
		node, message = value, fd.Message()
		if indexes == "" {
			continue
		}
		element := elementOf(node, strings.TrimSuffix(indexes, "]"), fd.IsMap())
		if element == nil || fd.IsMap() {
			return cmp.Or(element, node), element != nil
		}
		node = element
	}
	return node, true
}

// elementOf returns an element of a list, or the key of one of a map, or nil if there is none.
func elementOf(node *yaml.Node, index string, isMap bool) *yaml.Node {
	if isMap {
		key, err := strconv.Unquote(index)
		at := slices.IndexFunc(node.Content, func(n *yaml.Node) bool { return n.Value == key })
		if err != nil || at < 0 || at+1 >= len(node.Content) {
			return nil
		}
		return node.Content[at]
	}
	i, err := strconv.Atoi(index)
	if err != nil || node.Kind != yaml.SequenceNode || i >= len(node.Content) {
		return nil
	}
	return node.Content[i]
}

// valueOf returns the node of a field's value in a mapping, or nil.
func valueOf(mapping *yaml.Node, fd protoreflect.FieldDescriptor) *yaml.Node {
	if fd == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if key := mapping.Content[i].Value; key == fd.TextName() || key == fd.JSONName() {
			return mapping.Content[i+1]
		}
	}
	return nil
}
