// Package yamlof decides how a protobuf message is written as YAML: as its JSON with the names of the schema, in the
// style of YAML.
package yamlof

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

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
	var document any
	var node yaml.Node
	// A YAML parser keeps the order of the fields, but refuses some characters that JSON allows.
	if err := yaml.Unmarshal(text, &node); err == nil {
		clearStyle(&node)
		document = &node
	} else if err := json.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("reading a message as JSON: %w", err)
	}
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(document); err != nil {
		return nil, fmt.Errorf("writing YAML: %w", err)
	}
	return out.Bytes(), nil
}

// clearStyle removes the style of JSON: braces, and quotes where every parser takes the text for a text.
func clearStyle(node *yaml.Node) {
	if node.Style != yaml.DoubleQuotedStyle || !isOldBool(node.Value) {
		node.Style = 0
	}
	for _, child := range node.Content {
		clearStyle(child)
	}
}

// isOldBool reports whether a text is a boolean in YAML 1.1, to which Envoy's parser keeps.
func isOldBool(text string) bool {
	switch strings.ToLower(text) {
	case "y", "n", "yes", "no", "on", "off":
		return true
	}
	return false
}
