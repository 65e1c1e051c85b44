package gatepost_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// logKeys are the keys of log records. A key means the same in every record; a new one is a decision. An amount has its
// unit at the end of its name, if it has one; durations are in seconds.
const logKeys = `
acked address admin answered by cache call certificate change changed client count damaged_file damaged_pages days
decision dir envoy_version envoys error event.action file former from gatepost_version grpc host http left_out
lines_left_out masters message method module node origin outcome panic path pid poll_seconds reason redis refused
remedy removed request_id revision route seconds see service services session sessions source stack token type user
version wait_seconds withheld`

func TestLogKeysAreThoseOfTheList(t *testing.T) {
	want, used := strings.Fields(logKeys), map[string]bool{}
	files := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if skipped := []string{"bench", "examples", ".tools"}; err != nil || entry.IsDir() && slices.Contains(skipped, path) {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			for _, key := range keysOf(n) {
				if used[key] = true; !slices.Contains(want, key) {
					t.Errorf("%s: the key %q is not in the list", files.Position(n.Pos()), key)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range want {
		if !used[key] && key != "answered" { // that one is put together in a variable
			t.Errorf("no record has the key %q", key)
		}
	}
}

// keysOf returns the keys among the arguments of a call of a logger's method or of a constructor of slog.Attr.
func keysOf(n ast.Node) (keys []string) {
	call, _ := n.(*ast.CallExpr)
	if call == nil {
		return nil
	}
	method, _ := call.Fun.(*ast.SelectorExpr)
	if method == nil {
		return nil
	}
	args := call.Args
	switch name := method.Sel.Name; {
	case strings.Contains("String Int Int64 Uint64 Any Bool Duration Time Float64", name) && fmt.Sprint(method.X) == "slog":
		args = args[:1]
	case slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, name) && fmt.Sprint(method.X) != "http" && len(args) > 2:
		args = args[1:] // behind the message
	default:
		return nil
	}
	for i := 0; i < len(args); i += 2 {
		if text, ok := args[i].(*ast.BasicLit); ok {
			keys = append(keys, strings.Trim(text.Value, `"`))
		}
	}
	return keys
}
