// Package gatepost_test holds ARCHITECTURE.md to the code.
package gatepost_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// row is a row of the table of folders: `folder` | decides | imports.
var row = regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)` \\| [^|]+ \\| ([^|]+) \\|$")

// The table of folders in ARCHITECTURE.md names for each package the packages of ours that it imports, tests apart.
// A new import is a decision: it is written there, or it is not made.
func TestTheTableOfFoldersIsWhatTheCodeImports(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]string{}
	for _, found := range row.FindAllStringSubmatch(string(text), -1) {
		table[found[1]] = found[2]
	}
	imports := ourImports(t)
	for folder, want := range table {
		if _, there := imports[folder]; !there {
			t.Errorf("ARCHITECTURE.md names the folder %s, which has no package", folder)
		} else if got := strings.Join(imports[folder], " "); got != names(want) {
			t.Errorf("%s imports %q, ARCHITECTURE.md says %q", folder, got, names(want))
		}
	}
	for _, folder := range slices.Sorted(maps.Keys(imports)) {
		if table[folder] == "" {
			t.Errorf("ARCHITECTURE.md does not name the folder %s, which imports %s", folder, strings.Join(imports[folder], ", "))
		}
	}
}

// The modules that only tests need are not in the program. An interpreter for CEL would be a tenth of it.
func TestTheProgramHasNoPackageOfTests(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/gatepost").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []string{"github.com/quic-go/", "buf.build/go/protovalidate", "cel.dev/cel-go/", "gatepost/testcert", "gatepost/envoy/envoytest"} {
		if strings.Contains(string(out), of) {
			t.Errorf("gatepost has %q", of)
		}
	}
}

// One call would keep the checks of all of Envoy's messages in the program, a seventh of it, because the linker cannot
// tell which of them it may reach. Envoy makes them itself.
func TestTheProgramHasNoGeneratedChecks(t *testing.T) {
	t.Parallel()
	onlyIn(t, filesOfTheProgram(t), nil, "it is a generated check", matchesOf(t, generatedCheck))
}

var generatedCheck = regexp.MustCompile(`\bValidate(All)?\(\) error\b|\.ValidateAll\(\)`)

// A file that a person names can be a pipe without a writer, which would block Gatepost forever, or endless. So it is
// read by regularfile. These files are read otherwise:
var readOtherwise = map[string]string{
	"definitions/lastgood.go":  "Gatepost wrote it",
	"envoy/module/module.go":   "Gatepost wrote it",
	"devcert/pair.go":          "Gatepost wrote it",
	"cmd/gatepost/import.go":   "the argument of a command can be standard input",
	"cmd/gatepost/settings.go": "a variable of the environment can name a substituted process",
}

func TestFilesAreReadByOneReader(t *testing.T) {
	t.Parallel()
	reads := regexp.MustCompile(`\b(os\.ReadFile|tls\.LoadX509KeyPair)\(`)
	onlyIn(t, filesOfTheProgram(t), readOtherwise, "it reads a file without the package regularfile", matchesOf(t, reads))
}

// onlyIn reports what find finds in a file that is none of the exceptions, and exceptions in which it finds nothing.
func onlyIn(t *testing.T, files []string, exceptions map[string]string, fault string, find func(file string) []string) {
	t.Helper()
	needed := map[string]bool{}
	for _, file := range files {
		for _, text := range find(file) {
			if needed[file] = true; exceptions[file] == "" {
				t.Errorf("%s: %s: %s", file, text, fault)
			}
		}
	}
	for file := range exceptions {
		if !needed[file] {
			t.Errorf("%s is no exception any more: remove it here", file)
		}
	}
}

// matchesOf returns a function that finds a pattern in a file.
func matchesOf(t *testing.T, pattern *regexp.Regexp) func(file string) []string {
	return func(file string) []string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return pattern.FindAllString(string(text), -1)
	}
}

// The values of definitions are parsed by package definitions alone, so that no other package decides what is valid. In
// the packages that read them, these files parse something else:
var parseOtherwise = map[string]string{
	"admin/access.go":           "--admin, and the address of a connection",
	"admin/guard.go":            "the Host of a request",
	"admin/link.go":             "--admin",
	"admin/steer.go":            "the parameters of a call",
	"authz/rule.go":             "a rule, which it wrote",
	"explain/handshake.go":      "the host of a request",
	"explain/request.go":        "the URL of a request",
	"rollout/beacon.go":         "the address of a connection",
	"tokens/endpoint/client.go": "the address of a client",
	"xds/peers.go":              "the address of a connection",
	"xds/secrets.go":            "the address of a connection",
	"xds/tracing.go":            "the address of a collector, which the environment names",
}

func TestDefinitionsAreParsedByOnePackage(t *testing.T) {
	t.Parallel()
	readers := regexp.MustCompile(`^(admin|authz|explain|rollout|tokens/endpoint|xds)/[^/]+$`)
	parses := regexp.MustCompile(`\b(url\.Parse(RequestURI)?|net\.(SplitHostPort|Parse\w+)|netip\.(Must)?Parse\w+|time\.ParseDuration|strconv\.(Atoi|Parse\w+))\(`)
	read := slices.DeleteFunc(filesOfTheProgram(t), func(file string) bool { return !readers.MatchString(file) })
	onlyIn(t, read, parseOtherwise, "if that is a value of definitions, package definitions parses it", matchesOf(t, parses))
}

// Parts are made in one way: New or Open takes a Config and returns an error. In these files they are made otherwise:
var madeOtherwise = map[string]string{
	"authz/request.go":               "a request is read from a message",
	"certs/acme/files.go":            "it is one folder",
	"certs/acme/redis.go":            "it is one connection with a key",
	"certs/set.go":                   "it is an empty set",
	"definitions/history/history.go": "it is one folder",
	"logqueue/logqueue.go":           "it is one writer",
	"redisconn/redisconn.go":         "its Options are read from a URL",
	"systemd/systemd.go":             "nothing about systemd stops the gateway, so there is no error",
	"tokens/session.go":              "a session is a value",
}

func TestPartsAreMadeFromAConfig(t *testing.T) {
	t.Parallel()
	constructor := regexp.MustCompile(`^(New|Open|Track)([A-Z]|$)`)
	onlyIn(t, filesOfTheProgram(t), madeOtherwise, "it takes no Config, or returns no error", func(file string) (otherwise []string) {
		for _, declaration := range parsed(t, file).Decls {
			made, isFunc := declaration.(*ast.FuncDecl)
			if !isFunc || made.Recv != nil || !constructor.MatchString(made.Name.Name) || made.Type.Results == nil {
				continue
			}
			takes, returns := typesOf(made.Type.Params), typesOf(made.Type.Results)
			ofThisPackage := regexp.MustCompile(`^\*[A-Z]\w*$`).MatchString(returns[0])
			if ofThisPackage && (len(takes) == 0 || !strings.HasSuffix(takes[len(takes)-1], "Config") || returns[len(returns)-1] != "error") {
				otherwise = append(otherwise, made.Name.Name)
			}
		}
		return otherwise
	})
}

// A logger, metrics and a clock have one name each, and nil means the same everywhere.
var meanings = map[string]struct{ name, withoutOne string }{
	"*slog.Logger":          {"Logger", "Nil: nothing is logged."},
	"prometheus.Registerer": {"Registerer", "Nil: they are not exported."},
	"func() time.Time":      {"Now", "Nil: [time.Now]."},
}

func TestLoggersMetricsAndClocksMeanTheSameEverywhere(t *testing.T) {
	t.Parallel()
	files := filesOfTheProgram(t)
	onlyIn(t, files, nil, "without a logger nothing is logged", matchesOf(t, regexp.MustCompile(`slog\.Default\(`)))
	onlyIn(t, files, nil, "it has another name, or its comment does not end with what nil means", func(file string) (otherwise []string) {
		ast.Inspect(parsed(t, file), func(n ast.Node) bool {
			field, isField := n.(*ast.Field)
			if !isField || len(field.Names) != 1 || !field.Names[0].IsExported() {
				return true
			}
			want, known := meanings[types.ExprString(field.Type)]
			comment := strings.Join(strings.Fields(field.Doc.Text()), " ")
			if known && (field.Names[0].Name != want.name || !strings.HasSuffix(comment, want.withoutOne)) {
				otherwise = append(otherwise, field.Names[0].Name)
			}
			return true
		})
		return otherwise
	})
}

// typesOf returns the types of parameters or results, as they are written.
func typesOf(fields *ast.FieldList) (all []string) {
	for _, field := range fields.List {
		all = append(all, types.ExprString(field.Type))
	}
	return all
}

func parsed(t *testing.T, file string) *ast.File {
	t.Helper()
	out, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What two parts agree on is a constant of package convention, and these files alone have the same text:
var writtenAgain = map[string]string{
	"admin/paths.go":         "a path of the admin API",
	"definitions/headers.go": "a list of the headers that definitions cannot change",
	"explain/receive.go":     "a list of the headers that Envoy removes",
}

func TestConventionsAreWrittenOnce(t *testing.T) {
	t.Parallel()
	conventions := map[string]bool{}
	files := filesOfTheProgram(t)
	isConvention := func(file string) bool { return strings.HasPrefix(file, "convention/") }
	for _, file := range slices.DeleteFunc(slices.Clone(files), func(file string) bool { return !isConvention(file) }) {
		for text := range textsOf(t, file, token.CONST) {
			conventions[text] = strings.ContainsAny(text, "/-_ ") // others are words that mean something else elsewhere
		}
	}
	onlyIn(t, slices.DeleteFunc(files, isConvention), writtenAgain, "it is a constant of package convention", func(file string) (again []string) {
		for text := range textsOf(t, file, token.IMPORT) {
			if conventions[text] {
				again = append(again, text)
			}
		}
		return again
	})
}

// textsOf returns the string literals of a file in lower case: those of its constants, or (IMPORT) all but the imports.
func textsOf(t *testing.T, file string, which token.Token) map[string]bool {
	t.Helper()
	texts := map[string]bool{}
	for _, declaration := range parsed(t, file).Decls {
		if general, isGeneral := declaration.(*ast.GenDecl); (isGeneral && general.Tok == which) != (which == token.CONST) {
			continue
		}
		ast.Inspect(declaration, func(n ast.Node) bool {
			if literal, isLiteral := n.(*ast.BasicLit); isLiteral && literal.Kind == token.STRING {
				text, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				texts[strings.ToLower(text)] = true
			}
			return true
		})
	}
	return texts
}

// names returns the code spans of a cell, sorted.
func names(cell string) string {
	var all []string
	for _, span := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
		all = append(all, span[1])
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// ourImports returns the imports among the packages of this module, test kits and examples apart.
func ourImports(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatalf("listing the packages: %v", err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		folder, ours := strings.CutPrefix(fields[0], "gatepost/")
		if !ours || apart.MatchString(folder) {
			continue
		}
		all[folder] = []string{}
		for _, imported := range fields[1:] {
			if name, ours := strings.CutPrefix(imported, "gatepost/"); ours {
				all[folder] = append(all[folder], name)
			}
		}
		slices.Sort(all[folder])
	}
	return all
}

// apart are the folders that the table leaves out.
var apart = regexp.MustCompile(`test$|^test(cert|log|port|run)$|^examples/|^e2e|^tokens/faultproxy$`)

// filesOfTheProgram returns our files that are compiled into the program, relative to this folder.
func filesOfTheProgram(t *testing.T) (files []string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{$dir := .Dir}}{{range .GoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}`,
		"-deps", "./cmd/gatepost").Output()
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for path := range strings.FieldsSeq(string(out)) {
		if file, ours := strings.CutPrefix(path, here+"/"); ours {
			files = append(files, file)
		}
	}
	return files
}
