// Package yamlof decides how JSON is written as YAML: in the style of YAML, with the same fields in the same order. A
// protobuf message is written as its JSON with the names of the schema.
package yamlof

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Message returns a message as YAML. Fields have the order of the schema.
func Message(m proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("writing a message as JSON: %w", err)
	}
	return JSON(text)
}

// JSON returns JSON as YAML.
func JSON(text []byte) ([]byte, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(escaped(text), &document); err != nil { // the parser of YAML keeps the order of the fields
		return nil, fmt.Errorf("reading JSON: %w", err)
	}
	clearStyle(&document)
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&document); err != nil {
		return nil, fmt.Errorf("writing YAML: %w", err)
	}
	return out.Bytes(), nil
}

// escaped returns JSON in which each character that a parser of YAML may refuse, or take for the end of a line, is
// escaped. Such characters are only in its texts.
func escaped(text []byte) []byte {
	var out bytes.Buffer
	for _, r := range string(text) {
		if r < 0x7f || r > 0xffff {
			out.WriteRune(r)
			continue
		}
		fmt.Fprintf(&out, `\u%04x`, r)
	}
	return out.Bytes()
}

// clearStyle removes the style of JSON: braces, and quotes if every parser takes the text for a text, and for this one.
func clearStyle(node *yaml.Node) {
	if node.Style != yaml.DoubleQuotedStyle || !isOldBool(node.Value) && !strings.ContainsFunc(node.Value, needsEscape) {
		node.Style = 0
	}
	for _, child := range node.Content {
		clearStyle(child)
	}
}

// needsEscape reports whether a character is written by its number. Only the usual end of a line is none of these.
func needsEscape(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }

// isOldBool reports whether a text is a boolean in YAML 1.1, to which Envoy's parser keeps.
func isOldBool(text string) bool {
	switch strings.ToLower(text) {
	case "y", "n", "yes", "no", "on", "off":
		return true
	}
	return false
}
