package gatepost_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"gatepost/convention"
	"gatepost/definitions"
)

// These tests hold docs/troubleshooting.md and docs/reference/http.md to what the code reports.

// Each reason of a decision and each outcome of a login or call has its explanation in docs/troubleshooting.md, and
// nothing else has.
func TestReasonsAndOutcomesAreExplained(t *testing.T) {
	all := troubleshooting(t)
	reasons := literals(t, "authz", func(n ast.Node) []ast.Expr {
		spec, _ := n.(*ast.ValueSpec)
		if spec == nil || len(spec.Values) != 1 {
			return nil
		}
		switch value := spec.Values[0].(type) {
		case *ast.BasicLit:
			if strings.EqualFold(spec.Names[0].Name, "reasonModule") {
				return spec.Values
			}
		case *ast.CompositeLit:
			if spec.Names[0].Name == "labels" {
				return value.Elts
			}
		}
		return nil
	})
	section := cut(all, "## Reasons\n", "### Other reasons")
	sameNames(t, "reasons", reasons, firstCells(section, regexp.MustCompile(`(?m)^### (\S+)$`)))

	outcomes := literals(t, "tokens/endpoint", func(n ast.Node) []ast.Expr {
		spec, _ := n.(*ast.ValueSpec)
		if spec == nil {
			return nil
		}
		if kind, _ := spec.Type.(*ast.Ident); kind == nil || kind.Name != "outcome" {
			return nil
		}
		return spec.Values
	})
	section = cut(all, "## Outcomes", "## Validation")
	sameNames(t, "outcomes", outcomes, firstCells(section, regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|")))
}

// Each reason of gatepost explain and of the access log is explained, and nothing else is.
func TestReasonsOfExplainAndOfTheAccessLogAreExplained(t *testing.T) {
	var reasons []string
	shared := map[string]*ast.BasicLit{} // :: name of a constant of package convention → reason
	inspectFolder(t, "convention", func(n ast.Node) {
		if spec, _ := n.(*ast.ValueSpec); spec != nil && strings.HasPrefix(spec.Names[0].Name, "Reason") {
			shared[spec.Names[0].Name] = spec.Values[0].(*ast.BasicLit)
		}
	})
	add := func(e ast.Expr) {
		reason, _ := e.(*ast.BasicLit)
		if selector, _ := e.(*ast.SelectorExpr); selector != nil {
			reason = shared[selector.Sel.Name]
		}
		if reason != nil && reason.Value != `""` && !slices.Contains(reasons, unquoted(reason)) {
			reasons = append(reasons, unquoted(reason))
		}
	}
	inspectFolder(t, "explain", func(n ast.Node) {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				if field, _ := left.(*ast.SelectorExpr); field != nil && field.Sel.Name == "reason" && len(n.Rhs) == len(n.Lhs) {
					add(n.Rhs[i])
				}
			}
		case *ast.ReturnStmt: // of reason, why, change
			if len(n.Results) == 3 {
				add(n.Results[0])
			}
		}
	})
	inspectFolder(t, "xds", func(n ast.Node) { // the last one of decided{decision, reason}, and of each of envoysEnds
		switch n := n.(type) {
		case *ast.CompositeLit:
			if name, _ := n.Type.(*ast.Ident); name != nil && name.Name == "decided" && len(n.Elts) == 2 {
				add(n.Elts[1])
			}
		case *ast.ValueSpec:
			if n.Names[0].Name != "envoysEnds" {
				return
			}
			for _, end := range n.Values[0].(*ast.CompositeLit).Elts {
				add(end.(*ast.CompositeLit).Elts[2])
			}
		}
	})
	all := troubleshooting(t)
	others := firstCells(cut(all, "### Other reasons", "## Outcomes"), regexp.MustCompile(`(?m)^#### (\S+)$`))
	for _, reason := range others {
		if !slices.Contains(reasons, reason) {
			t.Errorf("docs/troubleshooting.md explains the reason %q, which there is not", reason)
		}
	}
	explained := append(firstCells(cut(all, "## Reasons\n", "### Other reasons"), regexp.MustCompile(`(?m)^### (\S+)$`)), others...)
	for _, reason := range reasons {
		if !slices.Contains(explained, reason) {
			t.Errorf("docs/troubleshooting.md does not explain the reason %q ", reason)
		}
	}
	if len(reasons) < 5 {
		t.Errorf("only the reasons %v were found in the code", reasons)
	}
	anchors := readPage("", all).anchors()
	for _, reason := range slices.Concat(reasons, explained) {
		if page, anchor, _ := strings.Cut(convention.SectionOfReason(reason).String(), "#"); page != "docs/troubleshooting.md" || !anchors[anchor] {
			t.Errorf("the reason %q names %s#%s, which does not exist", reason, page, anchor)
		}
	}
}

// Each section that messages name exists.
func TestSectionsThatMessagesNameExist(t *testing.T) {
	anchors := readPage("", troubleshooting(t)).anchors()
	sections := literals(t, "convention", func(n ast.Node) []ast.Expr {
		spec, _ := n.(*ast.ValueSpec)
		if spec == nil {
			return nil
		}
		if kind, _ := spec.Type.(*ast.Ident); kind == nil || kind.Name != "Section" {
			return nil
		}
		return spec.Values
	})
	for _, section := range sections {
		if !anchors[section] {
			t.Errorf("docs/troubleshooting.md has no heading #%s", section)
		}
	}
	if len(sections) < 5 {
		t.Errorf("only the sections %v were found in the code", sections)
	}
}

// Each problem, warning and note of the golden files of package definitions names the section that explains it.
func TestValidationMessagesNameTheSectionThatExplainsThem(t *testing.T) {
	named := map[string]int{}
	for _, p := range problemsOfGoldenFiles(t) {
		_, anchor, _ := strings.Cut(p.See, "#")
		named[anchor]++
		section := sectionOf(troubleshooting(t), anchor)
		if p.See == "" || section == "" {
			t.Errorf("%s names the page %q, which does not exist", p, p.See)
		} else if anchor != string(convention.SectionNotes) && !slices.ContainsFunc(slices.Collect(maps.Values(explanations(section))), func(r *regexp.Regexp) bool { return r.MatchString(p.What) }) {
			t.Errorf("%s names %s, which does not explain it", p, p.See)
		}
	}
	if len(named) < 6 {
		t.Errorf("only the sections %v are named", named)
	}
}

// sectionOf returns the text below the heading with an anchor, up to the next heading.
func sectionOf(page, anchor string) string {
	for _, part := range regexp.MustCompile(`(?m)^#+ `).Split(page, -1) {
		if title, text, _ := strings.Cut(part, "\n"); readPage("", "# "+title).anchors()[anchor] {
			return text
		}
	}
	return ""
}

// problemsOfGoldenFiles returns all that is reported about the golden files of package definitions.
func problemsOfGoldenFiles(t *testing.T) (all definitions.Problems) {
	t.Helper()
	paths, _ := filepath.Glob("definitions/testdata/*.txtar")
	folders, _ := filepath.Glob("definitions/testdata/folders/*.txtar")
	for _, path := range slices.Concat(paths, folders) {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for _, file := range archive.Files {
			name := filepath.Join(dir, file.Name)
			if file.Name == "problems" {
				continue
			}
			if err := os.WriteFile(name, file.Data, 0o600); err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(folders, path) {
				report := definitions.Validation{}.Check(name)
				all = slices.Concat(all, report.Problems, report.Warnings, report.Notes)
			}
		}
		if slices.Contains(folders, path) {
			report := definitions.Validation{}.Check(dir)
			all = slices.Concat(all, report.Problems, report.Warnings, report.Notes)
		}
	}
	if len(all) < 100 {
		t.Errorf("the golden files have only %d problems", len(all))
	}
	return all
}

// explanations are the spans in the first column of a section's tables, and the messages that they match.
func explanations(section string) map[string]*regexp.Regexp {
	explained := map[string]*regexp.Regexp{}
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(section, -1) {
		for _, span := range codeSpan.FindAllString(row[1], -1) {
			span = strings.Trim(span, "`")
			explained[span] = regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(span), "…", ".*") + `($|[ :])`)
		}
	}
	return explained
}

// Each log record above DEBUG has its explanation in docs/troubleshooting.md, and nothing else has.
func TestLogEventsAreExplained(t *testing.T) {
	section := cut(troubleshooting(t), "## Log events", "")
	var explained []string
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(section, -1) {
		for _, span := range codeSpan.FindAllString(row[1], -1) {
			explained = append(explained, strings.ReplaceAll(strings.Trim(span, "`"), "…", "%s"))
		}
	}
	logged, text := map[string]bool{}, map[string]bool{}
	inspect(t, func(n ast.Node) {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			text[unquoted(lit)] = true
		}
		if message := messageOf(n); message != "" {
			logged[message], text[message] = true, true
		}
	})
	for message := range logged {
		if !slices.Contains(explained, message) {
			t.Errorf("docs/troubleshooting.md does not explain the log event %q", message)
		}
	}
	for _, message := range explained {
		name, ofRedis := strings.CutPrefix(message, "Redis ")
		if !text[message] && !(ofRedis && text["Redis "] && text[name]) {
			t.Errorf("docs/troubleshooting.md explains %q, which the code does not have", message)
		}
	}
}

// messageOf returns the constant message of a call that logs above DEBUG, or "".
func messageOf(n ast.Node) string {
	call, _ := n.(*ast.CallExpr)
	if call == nil {
		return ""
	}
	method, _ := call.Fun.(*ast.SelectorExpr)
	if method == nil {
		return ""
	}
	at := 0
	switch method.Sel.Name {
	case "Info", "Warn", "Error":
	case "LogAttrs":
		at = 2
	default:
		return ""
	}
	if len(call.Args) <= at {
		return ""
	}
	message := call.Args[at]
	if sum, ok := message.(*ast.BinaryExpr); ok && isLiteral(sum.X) && isLiteral(sum.Y) {
		return unquoted(sum.X.(*ast.BasicLit)) + unquoted(sum.Y.(*ast.BasicLit))
	}
	if lit, ok := message.(*ast.BasicLit); ok && lit.Kind == token.STRING {
		return unquoted(lit)
	}
	return ""
}

func isLiteral(e ast.Expr) bool {
	lit, ok := e.(*ast.BasicLit)
	return ok && lit.Kind == token.STRING
}

// Each call of the admin address is documented.
func TestCallsOfTheAdminAddressAreDocumented(t *testing.T) {
	text, err := os.ReadFile("docs/reference/http.md")
	if err != nil {
		t.Fatal(err)
	}
	patterns := literals(t, "admin", func(n ast.Node) []ast.Expr {
		call, _ := n.(*ast.CallExpr)
		if call == nil || len(call.Args) != 2 {
			return nil
		}
		if method, _ := call.Fun.(*ast.SelectorExpr); method == nil || !strings.HasPrefix(method.Sel.Name, "Handle") {
			return nil
		}
		return call.Args[:1]
	})
	documented := strings.NewReplacer("/ID", "/{}", "/NAME", "/{}").Replace(string(text))
	for _, pattern := range patterns {
		pattern = regexp.MustCompile(`\{[a-z]+\}`).ReplaceAllString(pattern, "{}")
		if !strings.HasPrefix(pattern, "/debug/pprof/") && !strings.Contains(documented, "`"+pattern) {
			t.Errorf("docs/reference/http.md does not list %s", pattern)
		}
	}
}

// Each problem of the golden files of package definitions is explained, and nothing else is.
func TestValidationMessagesAreExplained(t *testing.T) {
	section := cut(troubleshooting(t), "## Validation messages", "### Warnings")
	explained := explanations(section)
	matched := map[string]bool{}
	for _, message := range problems(t) {
		known := false
		for span, pattern := range explained {
			if pattern.MatchString(message) {
				known, matched[span] = true, true
			}
		}
		if !known {
			t.Errorf("docs/troubleshooting.md does not explain %q", message)
		}
	}
	for span := range explained {
		if !matched[span] {
			t.Errorf("docs/troubleshooting.md explains %q, which no golden file of package definitions has", span)
		}
	}
}

// problems returns what is wrong, without place, field and remedy, of each problem in the golden files.
func problems(t *testing.T) (all []string) {
	t.Helper()
	files, err := filepath.Glob("definitions/testdata/*.txtar")
	folders, _ := filepath.Glob("definitions/testdata/folders/*.txtar")
	files = append(files, folders...)
	if err != nil || len(files) < 20 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	line := regexp.MustCompile(`(?m)^[\w./-]+:\d+:\d+: (?:[\w.\[\]<?"-]+: |"[^"]*": )?(.*)$`)
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if name := filepath.Base(path); name == "notes.txtar" || strings.Contains(name, "warnings") || name == "lease.txtar" {
			continue
		}
		for _, m := range line.FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
	}
	return all
}

// Each body that the gateway answers with by itself is documented.
func TestAnswersOfTheGatewayAreDocumented(t *testing.T) {
	page, err := os.ReadFile("docs/reference/http.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := cut(string(page), "## Answers of the gateway", "## What a 401 means")
	found := 0
	for _, folder := range []string{"authz", "convention", "tokens/endpoint", "xds"} {
		for _, text := range literals(t, folder, bodies) {
			found++
			if !strings.Contains(documented, "`\""+strings.TrimSpace(text)) {
				t.Errorf("docs/reference/http.md does not have the answer %q of %s", text, folder)
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d answers were found in the code", found)
	}
}

// bodies returns the texts of responses: constants whose names begin with text, and the fields of xds.replies.
func bodies(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.ValueSpec:
		name := n.Names[0].Name
		if len(name) > 4 && strings.EqualFold(name[:4], "text") && name != "textCannotTell" { // Envoy has its own for that one
			return n.Values
		}
	case *ast.KeyValueExpr:
		if key, _ := n.Key.(*ast.Ident); key != nil && key.Name == "text" {
			return []ast.Expr{n.Value}
		}
	}
	return nil
}

func troubleshooting(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// cut returns the part of text from begin to end.
func cut(text, begin, end string) string {
	_, text, _ = strings.Cut(text, begin)
	if end != "" {
		text, _, _ = strings.Cut(text, end)
	}
	return text
}

func firstCells(section string, pattern *regexp.Regexp) (names []string) {
	for _, m := range pattern.FindAllStringSubmatch(section, -1) {
		names = append(names, m[1])
	}
	return names
}

func sameNames(t *testing.T, what string, code, documented []string) {
	t.Helper()
	if len(code) < 5 {
		t.Errorf("only the %s %v were found in the code", what, code)
	}
	for _, name := range code {
		if !slices.Contains(documented, name) {
			t.Errorf("docs/troubleshooting.md explains the %s %v, not %s", what, documented, name)
		}
	}
	for _, name := range documented {
		if !slices.Contains(code, name) {
			t.Errorf("docs/troubleshooting.md explains %s, which the code does not have", name)
		}
	}
}

// literals returns the string literals among the expressions that pick selects in the non-test files of a folder.
func literals(t *testing.T, folder string, pick func(ast.Node) []ast.Expr) (all []string) {
	t.Helper()
	inspectFolder(t, folder, func(n ast.Node) {
		for _, e := range pick(n) {
			if pair, ok := e.(*ast.KeyValueExpr); ok {
				e = pair.Value
			}
			if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				all = append(all, unquoted(lit))
			}
		}
	})
	return all
}

func unquoted(lit *ast.BasicLit) string {
	text, err := strconv.Unquote(lit.Value)
	if err != nil {
		return lit.Value
	}
	return text
}

// inspect visits all nodes of the program's own files.
func inspect(t *testing.T, visit func(ast.Node)) {
	t.Helper()
	for folder := range ourImports(t) {
		if folder != "bench" && !strings.HasPrefix(folder, "tools") {
			inspectFolder(t, folder, visit)
		}
	}
}

func inspectFolder(t *testing.T, folder string, visit func(ast.Node)) {
	t.Helper()
	files, err := filepath.Glob(folder + "/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", folder, err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool { visit(n); return true })
	}
}

// Each name of an event is explained and in a log record, and nothing else is explained.
func TestNamesOfEventsAreExplainedAndLogged(t *testing.T) {
	names := map[string]string{} // :: constant → name
	inspectFolder(t, "convention", func(n ast.Node) {
		spec, _ := n.(*ast.ValueSpec)
		if spec == nil {
			return
		}
		if kind, _ := spec.Type.(*ast.Ident); kind != nil && kind.Name == "Event" {
			names[spec.Names[0].Name] = unquoted(spec.Values[0].(*ast.BasicLit))
		}
	})
	section := cut(troubleshooting(t), "## Names of events", "## Log events")
	var explained []string
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(section, -1)[1:] {
		for _, span := range codeSpan.FindAllString(row[1], -1) {
			explained = append(explained, strings.Trim(span, "`"))
		}
	}
	sameNames(t, "names of events", slices.Collect(maps.Values(names)), explained)
	inspect(t, func(n ast.Node) {
		if use, _ := n.(*ast.SelectorExpr); use != nil && fmt.Sprint(use.X) == "convention" {
			delete(names, use.Sel.Name)
		}
	})
	for name := range names {
		t.Errorf("no log record has convention.%s", name)
	}
}
