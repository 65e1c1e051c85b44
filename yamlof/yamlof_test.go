package yamlof_test

import (
	"testing"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/apipb"

	"gatepost/yamlof"
)

func TestAMessageIsWrittenInTheOrderOfItsSchema(t *testing.T) {
	t.Parallel()
	text, err := yamlof.Message(&apipb.Api{Version: "1.0", Name: "shop", Mixins: []*apipb.Mixin{{Root: "orders", Name: "true"}}})
	const want = "name: shop\nversion: \"1.0\"\nmixins:\n  - name: \"true\"\n    root: orders\n"
	if err != nil || string(text) != want {
		t.Errorf("%q, want %q (%v)", text, want, err)
	}
}

// TestEveryTextIsRead: YAML must escape some characters, and quote what would be no text.
func TestEveryTextIsRead(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a\x7fb", "\ufffe", "\x00", "a\nb", "- a: b", "007", "null", "\"'"} {
		text, err := yamlof.Message(&apipb.Api{Name: name})
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		var read struct{ Name any }
		if err := yaml.Unmarshal(text, &read); err != nil || read.Name != name {
			t.Errorf("%q is written as %q, and read as %q (%v)", name, text, read.Name, err)
		}
	}
}

// TestNoTextIsABooleanToEnvoy: its parser is one of YAML 1.1, so a service at /y would have no path.
func TestNoTextIsABooleanToEnvoy(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"y", "N", "yes", "No", "ON", "off", "true"} {
		text, err := yamlof.Message(&apipb.Api{Name: name})
		if want := "name: \"" + name + "\"\n"; err != nil || string(text) != want {
			t.Errorf("%q is written as %q, want %q (%v)", name, text, want, err)
		}
	}
}
