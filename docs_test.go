package gatepost_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// A page is one Markdown file: its text without code blocks, and its code blocks.
type page struct {
	path   string
	prose  string
	blocks []block
}

// A block is a fenced code block. Its text has the indentation of the list item that it stands in removed.
type block struct {
	language, text string
	line           int
}

// pages reads the documents at the top of the project and all of docs.
func pages(t *testing.T) (all []page) {
	t.Helper()
	paths, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	below, err := filepath.Glob("docs/*/*.md")
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Concat(paths, top, below) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, readPage(path, string(text)))
	}
	if len(all) < 20 {
		t.Fatalf("only %d pages were found", len(all))
	}
	return all
}

func readPage(path, text string) page {
	p := page{path: path}
	var prose strings.Builder
	open := -1 // the index of the block that is open
	indent := ""
	number := 0
	for line := range strings.Lines(text) {
		number++
		trimmed := strings.TrimLeft(line, " ")
		language, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open < 0:
			indent = line[:len(line)-len(trimmed)]
			p.blocks = append(p.blocks, block{language: language, line: number})
			open = len(p.blocks) - 1
		case isFence:
			open = -1
		case open >= 0:
			p.blocks[open].text += strings.TrimPrefix(line, indent)
		default:
			prose.WriteString(line)
		}
	}
	p.prose = prose.String()
	return p
}

var (
	codeSpan    = regexp.MustCompile("`[^`\n]+`")
	link        = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading     = regexp.MustCompile(`(?m)^#{1,6} (.*)$`)
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the anchors that a forge makes of a page's headings.
func (p page) anchors() map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(p.prose, -1) {
		text := strings.ToLower(strings.TrimSpace(m[1]))
		all[strings.ReplaceAll(notInAnchor.ReplaceAllString(text, ""), " ", "-")] = true
	}
	return all
}

func TestLinksOfTheDocumentationResolve(t *testing.T) {
	byPath := map[string]page{}
	for _, p := range pages(t) {
		byPath[p.path] = p
	}
	for _, p := range byPath {
		for _, m := range link.FindAllStringSubmatch(codeSpan.ReplaceAllString(p.prose, ""), -1) {
			target, anchor, hasAnchor := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := p.path
			if target != "" {
				path = filepath.Join(filepath.Dir(p.path), target)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s: %v", p.path, m[1], err)
			} else if hasAnchor && !byPath[path].anchors()[anchor] {
				t.Errorf("%s links to %s: the page has no such heading", p.path, m[1])
			}
		}
	}
}

func TestEveryPageIsLinkedFromTheIndex(t *testing.T) {
	index, err := os.ReadFile("docs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	records, err := os.ReadFile("docs/design/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		below, ok := strings.CutPrefix(p.path, "docs/")
		if !ok || below == "README.md" {
			continue
		}
		record, isRecord := strings.CutPrefix(below, "design/")
		if !strings.Contains(string(index), "("+below+")") && !(isRecord && strings.Contains(string(records), "("+record+")")) {
			t.Errorf("neither docs/README.md nor docs/design/README.md links to %s", p.path)
		}
	}
}

func TestExamplesOfDefinitionsAreValid(t *testing.T) {
	examples := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.language != "yaml" || !strings.Contains(b.text, "services:") {
				continue
			}
			examples++
			d, err := definitions.Parse(p.path, []byte(b.text))
			if err != nil {
				t.Errorf("%s:%d: %v", p.path, b.line, err)
			} else if warnings := d.Warnings(); len(warnings) > 0 {
				t.Errorf("%s:%d: %v", p.path, b.line, warnings)
			}
		}
	}
	if examples < 10 {
		t.Errorf("only %d examples were found", examples)
	}
}

// commandsOf returns the texts of a page that may name flags of gatepost: code spans that begin with gatepost or with a
// flag, and the lines of shell blocks that call gatepost.
func (p page) commandsOf() (all []string) {
	for _, span := range codeSpan.FindAllString(p.prose, -1) {
		if span = strings.Trim(span, "`"); strings.HasPrefix(span, "gatepost ") || strings.HasPrefix(span, "--") {
			all = append(all, span)
		}
	}
	for _, b := range p.blocks {
		if b.language != "sh" && b.language != "console" && b.language != "ini" {
			continue
		}
		for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
			if _, command, calls := strings.Cut(line, "gatepost "); calls {
				all = append(all, command)
			}
		}
	}
	return all
}

var (
	flagName   = regexp.MustCompile(`(?:^|[\s\[(])(--[a-z][a-z-]*)`)
	metricName = regexp.MustCompile(`\bgatepost_[a-z_]+`)
	variable   = regexp.MustCompile(`\bGATEPOST_[A-Z_]+`)
	fieldPath  = regexp.MustCompile("`((?:tokens|cors|identity|services)\\.[a-z_.]+)")
)

// The pages of docs/reference are made from the code, so a name that is not on them does not exist.
func TestNamesInTheDocumentationExist(t *testing.T) {
	reference := map[string]string{}
	for _, name := range []string{"cli", "metrics", "environment"} {
		text, err := os.ReadFile("docs/reference/" + name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		reference[name] = string(text)
	}
	root := (*gatewayv1.Gateway)(nil).ProtoReflect().Descriptor()
	for _, p := range pages(t) {
		if strings.HasPrefix(p.path, "docs/migrate/") || p.path == "CHANGELOG.md" { // flags of others, and of the past
			continue
		}
		for _, command := range p.commandsOf() {
			for _, m := range flagName.FindAllStringSubmatch(command, -1) {
				if !strings.Contains(reference["cli"], "`"+m[1]+" ") && !strings.Contains(reference["cli"], "`"+m[1]+"`") {
					t.Errorf("%s: gatepost has no flag %s", p.path, m[1])
				}
			}
		}
		whole := p.prose
		for _, b := range p.blocks {
			whole += b.text
		}
		for _, name := range metricName.FindAllString(whole, -1) {
			name = regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
			if name != "gatepost_version" && !strings.Contains(reference["metrics"], "`"+name+"`") { // that one is a log key
				t.Errorf("%s: there is no metric %s", p.path, name)
			}
		}
		for _, name := range variable.FindAllString(whole, -1) {
			if p.path != "CONTRIBUTING.md" && !strings.Contains(reference["environment"], "`"+name+"`") {
				t.Errorf("%s: gatepost reads no variable %s", p.path, name)
			}
		}
		for _, m := range fieldPath.FindAllStringSubmatch(p.prose, -1) {
			if !strings.HasPrefix(m[1], "tokens.db") && !hasField(root, strings.Split(m[1], ".")) {
				t.Errorf("%s: definitions have no field %s", p.path, m[1])
			}
		}
	}
}

func hasField(m protoreflect.MessageDescriptor, path []string) bool {
	if m == nil {
		return false
	}
	field := m.Fields().ByName(protoreflect.Name(path[0]))
	return field != nil && (len(path) == 1 || hasField(field.Message(), path[1:]))
}

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

// Each reason that gatepost explain reports is explained.
func TestReasonsOfExplainAreExplained(t *testing.T) {
	var reasons []string
	add := func(e ast.Expr) {
		if reason, _ := e.(*ast.BasicLit); reason != nil && reason.Value != `""` && !slices.Contains(reasons, unquoted(reason)) {
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
	all := troubleshooting(t)
	explained := append(firstCells(cut(all, "## Reasons\n", "### Other reasons"), regexp.MustCompile(`(?m)^### (\S+)$`)),
		firstCells(cut(all, "### Other reasons", "## Outcomes"), regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|"))...)
	for _, reason := range reasons {
		if !slices.Contains(explained, reason) {
			t.Errorf("docs/troubleshooting.md does not explain the reason %q of gatepost explain", reason)
		}
	}
	if len(reasons) < 5 {
		t.Errorf("only the reasons %v were found in the code", reasons)
	}
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
	explained := map[string]*regexp.Regexp{}
	for _, row := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(section, -1) {
		for _, span := range codeSpan.FindAllString(row[1], -1) {
			span = strings.Trim(span, "`")
			explained[span] = regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(span), "…", ".*") + `($|[ :])`)
		}
	}
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
	if err != nil || len(files) < 20 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	line := regexp.MustCompile(`(?m)^[\w.-]+:\d+:\d+: (?:[\w.\[\]<?]+: |"[^"]*": )?(.*)$`)
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
