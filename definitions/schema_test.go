package definitions

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"gatepost/testrun"
)

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("gatepost.schema.json", document); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("gatepost.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// asEditor reads YAML as an editor does that knows JSON Schema.
func asEditor(t *testing.T, text []byte) any {
	t.Helper()
	var read any
	if err := yaml.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	plain, err := json.Marshal(read)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// TestTheSchemaTakesEveryGoodFile tries the examples, and each good file of testdata, as it is written and with
// every default written out.
func TestTheSchemaTakesEveryGoodFile(t *testing.T) {
	testrun.Plain(t)
	schema := compileSchema(t)
	tried := 0
	try := func(name string, text []byte) {
		d, err := Parse(name, text)
		if err != nil {
			return
		}
		whole, err := Marshal(d.Gateway.Message())
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range [][]byte{text, whole} {
			tried++
			if err := schema.Validate(asEditor(t, one)); err != nil {
				t.Errorf("%s: %v\n%s", name, err, one)
			}
		}
	}
	for _, dir := range []string{"testdata", "testdata/good"} {
		for _, path := range archives(t, dir) {
			for _, file := range readArchive(t, path).Files {
				// A name of digits alone is a text to Parse, which knows that it must be one, and a number to an editor.
				if filepath.Ext(file.Name) == ".yaml" && filepath.Base(path)+" "+file.Name != "kinds.txtar text.yaml" {
					try(path+" "+file.Name, file.Data)
				}
			}
		}
	}
	examples, err := filepath.Glob("../examples/*/*/gatepost.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range examples {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		try(path, text)
	}
	if tried < 40 {
		t.Errorf("only %d files were tried", tried)
	}
}

func TestTheSchemaRefusesWhatAnEditorCanSee(t *testing.T) {
	schema := compileSchema(t)
	service := func(more string) string {
		return "services: [{name: a, path: /a, upstreams: [\"http://a\"]" + more + "}]"
	}
	if err := schema.Validate(asEditor(t, []byte(service("")))); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"an unknown field":       "servces: []",
		"a field of no service":  service(", allowed_method: [GET]"),
		"a service without name": "services: [{path: /a, upstreams: [\"http://a\"]}]",
		"a service to nowhere":   "services: [{name: a, path: /a}]",
		"no upstreams":           "services: [{name: a, path: /a, upstreams: []}]",
		"no list":                "services: 1",
		"a bad name":             "services: [{name: \"a b\", path: /a, upstreams: [\"http://a\"]}]",
		"a method in small":      service(", allowed_methods: [get]"),
		"no duration":            service(", timeout: soon"),
		"a number of what":       service(", timeout: 15"),
		"no boolean":             service(", authenticate: \"no\""),
		"no such format":         "tokens: {format: jwt}",
		"an empty format":        "tokens: {format: \"\"}",
		"a login without URL":    "tokens: {authenticator: {timeout: 5s}}",
	} {
		if err := schema.Validate(asEditor(t, []byte(text))); err == nil {
			t.Errorf("%s is taken: %s", name, text)
		}
		if _, err := Parse("gateway.yaml", []byte(text)); err == nil {
			t.Errorf("%s is taken by Parse: %s", name, text)
		}
	}
}
