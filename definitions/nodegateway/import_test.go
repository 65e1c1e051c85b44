package nodegateway_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"gatepost/definitions"
	"gatepost/definitions/nodegateway"
)

var update = flag.Bool("update", false, "write what comes out into testdata instead of comparing it")

// TestImport imports the settings of each archive in testdata, and compares the definitions or the problems with the
// archive's second file.
func TestImport(t *testing.T) {
	for _, path := range archives(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			settings := archive.Files[0]
			name, got := "gatepost.yaml", ""
			imported, err := nodegateway.Import(settings.Name, settings.Data)
			if err != nil {
				name, got = "problems", err.Error()+"\n"
			} else {
				got = string(imported.Text)
				checkValid(t, imported)
			}
			if *update {
				archive.Files = []txtar.File{settings, {Name: name, Data: []byte(got)}}
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if len(archive.Files) != 2 || archive.Files[1].Name != name {
				t.Fatalf("want the settings and %s, got\n%s", name, got)
			}
			if diff := cmp.Diff(string(archive.Files[1].Data), got); diff != "" {
				t.Errorf("%s (-want +got; run with -update if the new one is right):\n%s", name, diff)
			}
		})
	}
}

// checkValid checks that the definitions are valid and without warnings, and that a line of them has at most 120
// columns.
func checkValid(t *testing.T, imported *nodegateway.Imported) {
	t.Helper()
	d, err := definitions.Parse("gatepost.yaml", imported.Text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, imported.Text)
	}
	if warnings := d.Warnings(); len(warnings) > 0 {
		t.Error(warnings)
	}
	if len(d.Gateway.Services) != imported.Services {
		t.Errorf("%d services, reported as %d", len(d.Gateway.Services), imported.Services)
	}
	for line := range strings.Lines(string(imported.Text)) {
		if len(line) > 121 {
			t.Errorf("a long line: %s", line)
		}
	}
}

// The example of docs/migrate/node-gateway.md becomes exactly the definitions beside it there, but for comments.
func TestTheExampleOfTheDocumentationIsImported(t *testing.T) {
	page, err := os.ReadFile("../../docs/migrate/node-gateway.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(language string) string {
		_, text, ok := strings.Cut(string(page), "```"+language+"\n")
		text, _, closed := strings.Cut(text, "```")
		if !ok || !closed {
			t.Fatalf("the page has no block of %s", language)
		}
		return text
	}
	if !strings.Contains(string(page), "\n## Import the settings\n") {
		t.Error("the page has no heading for the anchor that problems name")
	}
	imported, err := nodegateway.Import("settings.json", []byte(block("json")))
	if err != nil {
		t.Fatal(err)
	}
	got, err := definitions.Parse("imported.yaml", imported.Text)
	if err != nil {
		t.Fatal(err)
	}
	want, err := definitions.Parse("page.yaml", []byte(block("yaml")))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Gateway.Message().String(), got.Gateway.Message().String()); diff != "" {
		t.Errorf("-page +imported:\n%s", diff)
	}
}

// FuzzImport holds Import to its promise for any text: valid definitions, or problems with their places.
func FuzzImport(f *testing.F) {
	for _, path := range archives(f) {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("settings.json", string(archive.Files[0].Data))
	}
	f.Add("a\n#b\u0085.json", `{"services": []}`)
	f.Fuzz(func(t *testing.T, name, text string) {
		imported, err := nodegateway.Import(name, []byte(text))
		if err == nil {
			if _, err := definitions.Parse("imported.yaml", imported.Text); err != nil {
				t.Fatalf("%v in\n%s", err, imported.Text)
			}
			return
		}
		var problems definitions.Problems
		if !errors.As(err, &problems) || len(problems) == 0 {
			t.Fatalf("an error without problems: %v", err)
		}
		lines := strings.Count(text, "\n") + 1
		if i := slices.IndexFunc(problems, func(p definitions.Problem) bool {
			return p.File != name || p.Line < 1 || p.Line > lines || p.Column < 1 || p.What == "" || strings.Contains(p.Field+p.What+p.Remedy, "\n")
		}); i >= 0 {
			t.Fatalf("a problem that cannot be found or read: %#v", problems[i])
		}
	})
}

func archives(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	return paths
}
