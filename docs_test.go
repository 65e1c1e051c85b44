package gatepost_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
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

// path matches a code span that names a file or folder below one at the top of the project.
var path = regexp.MustCompile("`([a-z0-9_]+)((?:/[a-z0-9_.]+)+)`")

func TestFilesInTheDocumentationExist(t *testing.T) {
	for _, p := range pages(t) {
		if p.path == "CHANGELOG.md" {
			continue
		}
		for _, m := range path.FindAllStringSubmatch(p.prose, -1) {
			if _, err := os.Stat(m[1]); err != nil {
				continue // no path of ours
			}
			if _, err := os.Stat(m[1] + m[2]); err != nil {
				t.Errorf("%s names %s%s: %v", p.path, m[1], m[2], err)
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
	metricName = regexp.MustCompile(`\b(?:gatepost|envoy)_[a-z_]+`)
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
			isLogKey := name == "gatepost_version" || name == "envoy_version"
			if !isLogKey && !strings.Contains(reference["metrics"], "`"+name+"`") {
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

// The answers in CONTRIBUTING.md name these files, and each has what it is named for.
func TestTheAnswersOfContributingAreTrue(t *testing.T) {
	text, err := os.ReadFile("CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	for file, has := range map[string]string{
		"proto/gatepost/v1/definitions.proto": "\nmessage Service {",
		"docs/reference/definitions.md":       "\n## Service\n",
		"definitions/model.go":                "\ntype Service struct {",
		"definitions/defaults.go":             "\nfunc serviceOf(",
		"definitions/semantics.go":            "\nfunc parseService(",
		"definitions/message.go":              "\nfunc (s *Service) Message() ",
		"definitions/testdata/good/all.txtar": "\nservices:",
		"definitions/golden_test.go":          "\nfunc TestTheModelHasEveryFieldOfTheSchema(",
		"xds/services.go":                     "\nfunc (b *builder) service(",
		"xds/routes.go":                       "\nfunc (b *builder) ",
		"explain/modelled.go":                 "\nvar modelled = ",
		"authz/rule.go":                       "\nfunc (r Rule) Extensions() ",
		"convention/responses.go":             `= "You are not allowed to access this API!"`,
		"authz/response.go":                   "StatusCode_Unauthorized, convention.TextUnauthorized",
		"rollout/rollout.go":                  "\n//   - rejected: [xds.Nacked], if the NACK counts: ",
		"rollout/machine_test.go":             `{"two Envoys disagree", `,
		"tokens/token.go":                     "\nfunc (t Token) Hash() Hash {",
	} {
		if !strings.Contains(string(text), file) {
			t.Errorf("CONTRIBUTING.md does not name %s", file)
		}
		if code, err := os.ReadFile(file); err != nil || !strings.Contains(string(code), has) {
			t.Errorf("%s does not have %q (%v)", file, has, err)
		}
	}
}
