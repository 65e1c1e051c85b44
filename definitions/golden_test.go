package definitions

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

var update = flag.Bool("update", false, "write what comes out into testdata instead of comparing it")

// TestProblemsOfEachMistake reads the files of each archive in testdata and compares all that is said about them,
// line by line, with the archive's "problems": one archive per class of mistake, good files beside the bad.
func TestProblemsOfEachMistake(t *testing.T) {
	for _, path := range archives(t, "testdata") {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive := readArchive(t, path)
			var got []string
			for _, file := range archive.Files {
				if strings.HasSuffix(file.Name, ".yaml") {
					got = append(got, linesAbout(t, file)...)
				}
			}
			compareGolden(t, path, archive, "problems", strings.Join(got, "\n")+"\n")
		})
	}
}

// TestDefaultsOfGoodFiles compares what good files become with every default filled in.
func TestDefaultsOfGoodFiles(t *testing.T) {
	for _, path := range archives(t, "testdata/good") {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive := readArchive(t, path)
			d, err := Parse("in.yaml", archive.Files[0].Data)
			if err != nil {
				t.Fatal(err)
			}
			out, err := Marshal(d.Gateway.Message())
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, path, archive, "whole.yaml", string(out))
		})
	}
}

// TestTheModelHasEveryFieldOfTheSchema: all.txtar sets every field of the schema, and none is lost on the way through
// the model. A field that is added to the schema fails here until it is in all.txtar, in the model and in Message.
func TestTheModelHasEveryFieldOfTheSchema(t *testing.T) {
	d := mustParse(t, string(readArchive(t, "testdata/good/all.txtar").Files[0].Data))
	set := map[protoreflect.FullName]bool{}
	err := protorange.Range(d.Gateway.Message().ProtoReflect(), func(values protopath.Values) error {
		if step := values.Index(-1).Step; step.Kind() == protopath.FieldAccessStep {
			set[step.FieldDescriptor().FullName()] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	messages := (*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor().ParentFile().Messages()
	for i := range messages.Len() {
		fields := messages.Get(i).Fields()
		for j := range fields.Len() {
			if name := fields.Get(j).FullName(); !set[name] {
				t.Errorf("%s is not set in the message of the model", name)
			}
		}
	}
}

func linesAbout(t *testing.T, file txtar.File) []string {
	t.Helper()
	d, err := Parse(file.Name, file.Data)
	if err == nil {
		lines := []string{file.Name + ": good"}
		for _, warning := range d.Warnings() {
			lines = append(lines, "warning: "+warning.String())
		}
		for _, note := range d.Notes() {
			lines = append(lines, "note: "+note.String())
		}
		return lines
	}
	var problems Problems
	if !errors.As(err, &problems) || len(problems) == 0 {
		t.Fatalf("%s: the error is no Problems: %v", file.Name, err)
	}
	text := bytes.Count(file.Data, []byte("\n")) + 1
	var lines []string
	for _, p := range problems {
		if p.File != file.Name || p.Line < 1 || p.Line > text || p.Column < 1 {
			t.Errorf("the problem is nowhere in the file: %+v", p)
		}
		lines = append(lines, p.String())
	}
	return lines
}

func archives(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no archives in %s: %v", dir, err)
	}
	return paths
}

func readArchive(t testing.TB, path string) *txtar.Archive {
	t.Helper()
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

func compareGolden(t *testing.T, path string, archive *txtar.Archive, name, got string) {
	t.Helper()
	i := slices.IndexFunc(archive.Files, func(f txtar.File) bool { return f.Name == name })
	if i < 0 {
		archive.Files = append(archive.Files, txtar.File{Name: name})
		i = len(archive.Files) - 1
	}
	if *update {
		archive.Files[i].Data = []byte(got)
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(archive.Files[i].Data), got); diff != "" {
		t.Errorf("%s (-want +got; run with -update where the new is right):\n%s", name, fmt.Sprint(diff))
	}
}
