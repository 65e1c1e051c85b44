// Command style measures the prose of the project: the comments of its source files and its Markdown.
//
// It fails if a sentence or a line is too long, or if words that mark an indirect style are too frequent
// (CONTRIBUTING.md, "How it is written"). It reads the names of the files from standard input, one per line,
// and reports every finding as file:line: message.
package main

import (
	"bufio"
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	maxColumns       = 120 // of a line of prose
	maxSentenceWords = 40
	enough           = 1000 // words, for a file or a folder to be measured by itself
)

// limits are the highest accepted frequencies, per 1,000 words.
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

// A tally counts words of prose, and among them those of each limit.
type tally struct {
	words  int
	counts []int // as limits
}

// frequencies reports where the limited words occur too often, and returns how often that is so. Each file with enough
// words is measured by itself, and the others by folder.
func frequencies(kind string, ps []passage) (exceeded int) {
	tallies := map[string]*tally{}
	for _, p := range ps {
		of := tallies[p.file]
		if of == nil {
			of = &tally{counts: make([]int, len(limits))}
			tallies[p.file] = of
		}
		for _, w := range strings.FieldsFunc(p.text, func(r rune) bool { return !isWordRune(r) }) {
			of.words++
			for i, l := range limits {
				if l.words.MatchString(w) {
					of.counts[i]++
				}
			}
		}
	}
	parts := partsOf(tallies)
	for _, part := range slices.Sorted(maps.Keys(parts)) {
		for i, l := range limits {
			words, found := 0, 0
			for _, file := range parts[part] {
				words += tallies[file].words
				found += tallies[file].counts[i]
			}
			per := 1000 * float64(found) / float64(words)
			if per < l.most {
				continue
			}
			exceeded++
			fmt.Printf("%s (%s): %q %.1f times per 1,000 words, under %.0f are allowed%s\n", part, kind, l.name, per, l.most, worst(parts[part], tallies, i))
		}
	}
	return exceeded
}

// partsOf returns what is measured by itself, with its files: a file with enough words, or a folder whose other files
// have enough words together. The rest of a folder counts for the folder above.
func partsOf(tallies map[string]*tally) map[string][]string {
	parts, rest := map[string][]string{}, map[string][]string{}
	for file, of := range tallies {
		if of.words >= enough {
			parts[file] = []string{file}
		} else {
			folder := filepath.Dir(file)
			rest[folder] = append(rest[folder], file)
		}
	}
	for len(rest) > 0 {
		folder := slices.MaxFunc(slices.Collect(maps.Keys(rest)), func(a, b string) int { return cmp.Compare(depth(a), depth(b)) })
		files, words := rest[folder], 0
		delete(rest, folder)
		for _, file := range files {
			words += tallies[file].words
		}
		if above := filepath.Dir(folder); words < enough && above != folder {
			rest[above] = append(rest[above], files...)
		} else {
			parts[folder] = files
		}
	}
	return parts
}

func depth(folder string) int {
	if folder == "." {
		return 0
	}
	return 1 + strings.Count(folder, "/")
}

// worst names the files of a folder with most of the words of a limit.
func worst(files []string, tallies map[string]*tally, limit int) string {
	if len(files) == 1 {
		return ""
	}
	count := func(file string) int { return tallies[file].counts[limit] }
	slices.SortFunc(files, func(a, b string) int { return cmp.Or(count(b)-count(a), strings.Compare(a, b)) })
	var out []string
	for _, f := range files[:min(5, len(files))] {
		if count(f) > 0 {
			out = append(out, fmt.Sprintf("%s (%d)", f, count(f)))
		}
	}
	return "; most in " + strings.Join(out, ", ")
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
	starts, inItem := true, false
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
			starts, inItem = true, false
			continue
		}
		if strings.TrimSpace(body) == "" {
			starts, inItem = true, false
			continue
		}
		item := listItem.MatchString(body)
		indented := strings.HasPrefix(body, "\t") || strings.HasPrefix(body, "    ") && !item && !inItem
		if indented { // code or a drawing in a doc comment
			starts, inItem = true, false
			continue
		}
		inItem = inItem || item
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
