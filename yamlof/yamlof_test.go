package yamlof_test

import (
	"errors"
	"testing"
	"unicode/utf8"

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

// FuzzEveryTextIsRead: YAML must escape some characters, quote what would be no text, and change no end of a line.
func FuzzEveryTextIsRead(f *testing.F) {
	for _, text := range []string{
		"a\x7fb", "\ufffe", "\ufeff", "\x00", "a\nb", "- a: b", "007", "null", "\"'", "a\u0085b", "\u2028", "a\n\u2029 b", "a\rb", " \n\n",
		"é\U0001f600\U000e0001",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, name string) {
		text, err := yamlof.Message(&apipb.Api{Name: name})
		if !utf8.ValidString(name) {
			if err == nil {
				t.Errorf("%q is no text, and is written as %q", name, text)
			}
			return
		}
		read := struct{ Name any }{""} // an empty text is left out
		if err := errors.Join(err, yaml.Unmarshal(text, &read)); err != nil || read.Name != name {
			t.Errorf("%q is written as %q, and read as %q (%v)", name, text, read.Name, err)
		}
	})
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
