package nodegateway

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// write returns the definitions as YAML with comments.
func (i *importer) write() ([]byte, error) {
	top := &mapping{importer: i}
	top.add("listen", text(i.listen, 0))
	if len(i.origins) > 0 {
		top.add("origins", list(i.origins, yaml.DoubleQuotedStyle))
	}
	tokens := &mapping{importer: i, path: "tokens."}
	tokens.add("lifetime", text("3600s", 0))
	if i.authenticator != "" {
		authenticator := &mapping{importer: i, path: "tokens.authenticator."}
		authenticator.add("url", text(i.authenticator, yaml.DoubleQuotedStyle))
		tokens.add("authenticator", authenticator.node())
	}
	top.add("tokens", tokens.node())
	services := &yaml.Node{Kind: yaml.SequenceNode}
	if len(i.services) == 0 {
		services.Style = yaml.FlowStyle
	}
	for n, s := range i.services {
		services.Content = append(services.Content, i.service(s, fmt.Sprintf("services[%d]", n)))
	}
	top.add("services", services)

	var b bytes.Buffer
	b.WriteString(i.header())
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := encoder.Encode(top.node()); err != nil {
		return nil, err
	}
	return b.Bytes(), encoder.Close()
}

func (i *importer) service(s service, field string) *yaml.Node {
	m := &mapping{importer: i, path: field + "."}
	m.add("name", text(s.name, 0))
	m.add("path", text(s.path, 0))
	m.add("authenticate", &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(s.authenticate)})
	if len(s.methods) > 0 {
		m.add("allowed_methods", list(s.methods, 0))
	}
	m.add("upstreams", list([]string{s.upstream}, yaml.DoubleQuotedStyle))
	node := m.node()
	node.HeadComment = i.comment(field)
	return node
}

// header returns the comment at the top of the file.
func (i *importer) header() string {
	var b strings.Builder
	b.WriteString(wrap("Imported from "+i.name+" by gatepost import.", "# ", "# "))
	b.WriteString("\n")
	for _, change := range i.general {
		b.WriteString(wrap(change, "# - ", "#   "))
		b.WriteString("\n")
	}
	return b.String() + "\n"
}

// comment returns the comment of a field.
func (i *importer) comment(field string) string {
	var lines []string
	for _, note := range i.comments[field] {
		lines = append(lines, wrap(note, "# ", "#   "))
	}
	return strings.Join(lines, "\n")
}

// wrap breaks text into lines of a comment of at most 100 columns, if its words are not longer. A file name can have
// characters that a definitions file cannot have, so they are replaced.
func wrap(text, first, other string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
	var lines []string
	line := first
	for n, word := range strings.Fields(text) {
		if n > 0 && len(line)+len(word) > 100 {
			lines = append(lines, strings.TrimRight(line, " "))
			line = other
		}
		line += word + " "
	}
	return strings.Join(append(lines, strings.TrimRight(line, " ")), "\n")
}

// mapping builds a YAML mapping whose fields have the comments of the importer.
type mapping struct {
	*importer
	path    string // of its fields, with the dot at its end
	content []*yaml.Node
}

func (m *mapping) add(name string, value *yaml.Node) {
	key := &yaml.Node{Kind: yaml.ScalarNode, Value: name, HeadComment: m.comment(m.path + name)}
	m.content = append(m.content, key, value)
}

func (m *mapping) node() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Content: m.content} }

// text returns a text, in quotation marks if it would mean something else without them.
func text(value string, style yaml.Style) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value, Style: style}
}

func list(values []string, style yaml.Style) *yaml.Node {
	node := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, value := range values {
		node.Content = append(node.Content, text(value, style))
	}
	return node
}
