// Command schema converts the output of protoc-gen-jsonschema for gatepost.v1.Gateway into the
// schema of the definitions file, from standard input to standard output. The generator only has
// the message. The command adds what differs in the file: the format of durations, required fields,
// and that defaults are not empty strings.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

const (
	root     = "gatepost.v1.Gateway"
	duration = "google.protobuf.Duration"
)

// shorthands are the messages that a file may give as the value of one of their fields, as in package definitions.
// :: message → field
var shorthands = map[string]string{"HealthCheck": "path", "Retries": "count", "Affinity": "by"}

// object is a JSON object.
type object = map[string]any

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "making the schema:", err)
		os.Exit(1)
	}
}

func run() error {
	var made object
	if err := json.NewDecoder(os.Stdin).Decode(&made); err != nil {
		return err
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	schema, err := corrected(made)
	if err != nil {
		return err
	}
	if err := encoder.Encode(schema); err != nil {
		return err
	}
	_, err = os.Stdout.Write(out.Bytes())
	return err
}

// corrected returns the schema of the file.
func corrected(made object) (object, error) {
	definitions, ok := made["$defs"].(object)
	if !ok {
		return nil, fmt.Errorf("the generator made no $defs")
	}
	renamed := object{}
	for name, value := range definitions {
		definition, ok := value.(object)
		if !ok {
			return nil, fmt.Errorf("$defs.%s is no object", name)
		}
		require(definition)
		clean(definition)
		renamed[shortName(name)] = definition
	}
	for name, field := range shorthands {
		definition, _ := renamed[name].(object)
		properties, _ := definition["properties"].(object)
		if properties[field] == nil {
			return nil, fmt.Errorf("the generator made no %s.%s", name, field)
		}
		renamed[name] = object{"title": definition["title"], "anyOf": []any{definition, properties[field]}}
	}
	if renamed[shortName(root)] == nil || renamed[shortName(duration)] == nil {
		return nil, fmt.Errorf("the generator made no %s or no %s", root, duration)
	}
	renamed[shortName(duration)] = object{
		"title":       "Duration",
		"description": "A number with its unit: 15s, 500ms, 2h. 0 needs none.",
		"anyOf": []any{
			object{"type": "string", "pattern": `^\+?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+$`},
			object{"enum": []any{0, "0"}},
		},
	}
	return object{
		"$schema": made["$schema"],
		"title":   "A Gatepost definitions file",
		"$ref":    "#/$defs/" + shortName(root),
		"$defs":   renamed,
	}, nil
}

// shortName returns the name of a message without its package and the generator's suffix.
func shortName(name string) string {
	name = strings.TrimSuffix(name, ".schema.json")
	return name[strings.LastIndexByte(name, '.')+1:]
}

// require lists the required fields of a message: those whose rules no missing value satisfies.
func require(definition object) {
	properties, _ := definition["properties"].(object)
	var required []string
	for name, value := range properties {
		if field, ok := value.(object); ok && refusesMissing(field) {
			required = append(required, name)
		}
	}
	if properties["redirect"] != nil && properties["upstreams"] != nil { // of a service, which has upstreams or a redirect
		required = slices.DeleteFunc(required, func(name string) bool { return name == "upstreams" })
		definition["anyOf"] = []any{object{"required": []any{"upstreams"}}, object{"required": []any{"redirect"}}}
	}
	slices.Sort(required)
	if len(required) > 0 {
		definition["required"] = required
	}
}

func refusesMissing(field object) bool {
	number := func(key string) float64 { n, _ := field[key].(float64); return n }
	if number("minLength") > 0 || number("minItems") > 0 {
		return true
	}
	pattern, ok := field["pattern"].(string)
	if !ok || field["type"] != "string" {
		return false
	}
	re, err := regexp.Compile(pattern)
	return err == nil && !re.MatchString("")
}

// clean recursively removes what is true only of the message, not of the file.
func clean(value any) {
	switch value := value.(type) {
	case object:
		if _, isName := value["default"].(object); !isName { // a default, not a field of that name
			delete(value, "default")
		}
		if choices, ok := value["enum"].([]any); ok { // the empty value is the default, which a file omits
			value["enum"] = slices.DeleteFunc(choices, func(choice any) bool { return choice == "" })
		}
		if number, ok := numberOnly(value); ok { // the JSON form of a message may have a text instead
			delete(value, "anyOf")
			maps.Copy(value, number)
		}
		for key, inner := range value {
			switch text, isText := inner.(string); {
			case isText && key == "description":
				value[key] = strings.Join(strings.Fields(text), " ")
			case isText && key == "$ref":
				value[key] = "#/$defs/" + shortName(text)
			default:
				clean(inner)
			}
		}
		delete(value, "$schema")
	case []any:
		for _, inner := range value {
			clean(inner)
		}
	}
}

// numberOnly returns the rules of a field that is a number or, in the generator's words, a text with one.
func numberOnly(field object) (number object, ok bool) {
	choices, _ := field["anyOf"].([]any)
	if len(choices) != 2 {
		return nil, false
	}
	number, _ = choices[0].(object)
	return number, number["type"] == "number"
}
