// Command style measures the prose of the project: the comments of its source files and its Markdown.
//
// It fails if a sentence or a line is too long, or if words that mark an indirect style are too frequent
// (CONTRIBUTING.md, "How it is written"). It reads the names of the files from standard input, one per line,
// and reports every finding as file:line: message.
package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"unicode/utf8"
)

const (
	maxColumns       = 120 // of a line of prose
	maxSentenceWords = 40
)

// limits are the highest accepted frequencies, per 1,000 words, over all prose of one kind.
var limits = []struct {
	name  string
	words *regexp.Regexp
	most  float64
}{
	{"where", regexp.MustCompile(`(?i)^(where|wherever)$`), 3},
	{"who", regexp.MustCompile(`(?i)^(who|whoever)$`), 1},
	{"say, tell, hear, obey", regexp.MustCompile(`(?i)^(say|says|said|tell|tells|told|hear|hears|heard|obey|obeys|obeyed)$`), 3},
}

// A passage is one paragraph, list item or comment: its text without markup, and where it starts.
type passage struct {
	file string
	line int
	text string
}

func main() {
	var kinds = map[string][]passage{}
	problems := 0
	report := func(file string, line int, format string, args ...any) {
		problems++
		fmt.Printf("%s:%d: %s\n", file, line, fmt.Sprintf(format, args...))
	}
	names := bufio.NewScanner(os.Stdin)
	for names.Scan() {
		name := names.Text()
		text, err := os.ReadFile(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		kind, lines := prose(name, string(text))
		for _, l := range lines {
			if n := utf8.RuneCountInString(l.raw); n > maxColumns && !l.unbreakable {
				report(name, l.number, "the line has %d columns, at most %d are allowed", n, maxColumns)
			}
		}
		kinds[kind] = append(kinds[kind], passages(name, lines)...)
	}
	for kind, ps := range kinds {
		for _, p := range ps {
			for _, s := range sentences(p.text) {
				if n := len(strings.Fields(s)); n > maxSentenceWords {
					report(p.file, p.line, "a sentence has %d words, at most %d are allowed: %.60s…", n, maxSentenceWords, s)
				}
			}
		}
		problems += frequencies(kind, ps)
	}
	if problems > 0 {
		os.Exit(1)
	}
}

// frequencies prints how often the limited words occur in ps, and returns the number of limits that are exceeded.
// For an exceeded limit it names the files with the most occurrences.
func frequencies(kind string, ps []passage) (exceeded int) {
	total := 0
	counts := make([]map[string]int, len(limits))
	sums := make([]int, len(limits))
	for i := range counts {
		counts[i] = map[string]int{}
	}
	for _, p := range ps {
		for _, w := range strings.FieldsFunc(p.text, func(r rune) bool { return !isWordRune(r) }) {
			total++
			for i, l := range limits {
				if l.words.MatchString(w) {
					counts[i][p.file]++
					sums[i]++
				}
			}
		}
	}
	for i, l := range limits {
		per := 1000 * float64(sums[i]) / float64(max(total, 1))
		if per < l.most {
			continue
		}
		exceeded++
		fmt.Printf("%s: %q %.1f times per 1,000 words, under %.0f are allowed; most in %s\n", kind, l.name, per, l.most, worst(counts[i]))
	}
	return exceeded
}

func worst(counts map[string]int) string {
	var files []string
	for f := range counts {
		files = append(files, f)
	}
	sort.Slice(files, func(i, j int) bool {
		return counts[files[i]] > counts[files[j]] || counts[files[i]] == counts[files[j]] && files[i] < files[j]
	})
	var out []string
	for _, f := range files[:min(5, len(files))] {
		out = append(out, fmt.Sprintf("%s (%d)", f, counts[f]))
	}
	return strings.Join(out, ", ")
}

func isWordRune(r rune) bool {
	return r == '\'' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r > 127
}

// A line is one line of prose without its comment marker. A line with a gap before it starts a new passage.
type line struct {
	number      int
	raw         string // as it stands in the file
	text        string // without markup
	starts      bool   // starts a new passage
	unbreakable bool   // a table row, a heading or a link that cannot be wrapped
}

func prose(name, text string) (kind string, lines []line) {
	if filepath.Ext(name) == ".md" {
		return "Markdown", markdownLines(text)
	}
	marker := "//"
	switch filepath.Ext(name) {
	case ".go", ".proto", ".c", ".h":
	default:
		marker = "#"
	}
	return "comments", commentLines(text, marker)
}

var listItem = regexp.MustCompile(`^\s*([-*]|\d+\.)\s+`)

func markdownLines(text string) (lines []line) {
	fenced, starts := false, true
	for i, raw := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(raw)
		switch {
		case strings.HasPrefix(trimmed, "```"):
			fenced, starts = !fenced, true
			continue
		case fenced:
			continue
		case trimmed == "":
			starts = true
			continue
		}
		table := strings.HasPrefix(trimmed, "|")
		heading := strings.HasPrefix(trimmed, "#")
		item := listItem.MatchString(raw)
		plain := strings.NewReplacer("|", ". ", "**", "", "#", "").Replace(listItem.ReplaceAllString(trimmed, ""))
		lines = append(lines, line{i + 1, raw, withoutCode(plain), starts || table || heading || item, table || heading || !strings.Contains(trimmed, " ")})
		starts = heading || table
	}
	return lines
}

var directive = regexp.MustCompile(`^//(go:|nolint|lint:|export )|^#!|^#(if|else|endif|define|include|undef|error|pragma)`)

// commentLines returns the comments that stand on lines of their own: those at the end of a line of code are short.
func commentLines(text, marker string) (lines []line) {
	starts := true
	block := false // inside a block comment of C
	literal := false
	for i, raw := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(raw)
		var body string
		switch {
		case marker == "//" && strings.Count(raw, "`")%2 == 1:
			literal = !literal
			continue
		case literal:
			continue
		case block:
			body = strings.TrimSuffix(strings.TrimPrefix(trimmed, "*"), "*/")
			block = !strings.HasSuffix(trimmed, "*/")
		case marker == "//" && strings.HasPrefix(trimmed, "/*"):
			body = strings.TrimSuffix(strings.TrimPrefix(trimmed, "/*"), "*/")
			block = !strings.HasSuffix(trimmed, "*/")
		case strings.HasPrefix(trimmed, marker) && !directive.MatchString(trimmed):
			body = strings.TrimPrefix(trimmed, marker)
		default:
			starts = true
			continue
		}
		if strings.TrimSpace(body) == "" {
			starts = true
			continue
		}
		indented := strings.HasPrefix(body, "\t") || strings.HasPrefix(body, "    ") // code or a drawing in a doc comment
		if indented {
			starts = true
			continue
		}
		item := listItem.MatchString(body)
		lines = append(lines, line{i + 1, raw, withoutCode(listItem.ReplaceAllString(body, "")), starts || item, !strings.Contains(strings.TrimSpace(body), " ")})
		starts = false
	}
	return lines
}

var (
	codeSpan = regexp.MustCompile("`[^`]*`")
	linkURL  = regexp.MustCompile(`\]\([^)]*\)`)
)

// withoutCode replaces code spans and link targets by one word each.
func withoutCode(s string) string {
	return linkURL.ReplaceAllString(codeSpan.ReplaceAllString(s, "code"), "]")
}

func passages(file string, lines []line) (ps []passage) {
	for _, l := range lines {
		if l.starts || len(ps) == 0 {
			ps = append(ps, passage{file, l.number, l.text})
			continue
		}
		last := &ps[len(ps)-1]
		last.text += " " + strings.TrimSpace(l.text)
	}
	return ps
}

var sentenceEnd = regexp.MustCompile(`[.!?:;]["')\]]*\s+`)

func sentences(text string) []string { return sentenceEnd.Split(text, -1) }
