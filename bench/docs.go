package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// What the goals compare, as far as README.md has their figures.
const (
	whatPublic   = "warm check ÷ a public service of the same gateway"
	whatOPA      = "warm check ÷ OPA behind a bare Envoy"
	whatOath     = "warm check ÷ Oathkeeper behind a bare Envoy"
	whatNode     = "warm check ÷ Node gateway as it was"
	whatWarm     = "Redis commands for a warm check of gatepost"
	whatCold     = "round trips to Redis for a cold token"
	whatLast     = "rate of the last of 10,000 services ÷ of the last of 10"
	whatAccepted = "acceptances after a revoke answered"
	whatRevoke   = "median time of a revoke"
)

// generated are the parts of the documentation that are made of RESULTS.md, by file.
var generated = map[string]func(results []byte) (string, error){
	"README.md":           speedTable,
	"docs/performance.md": goalsTable,
}

// The comments around a generated part.
const (
	generatedBegin = "<!-- Generated from bench/RESULTS.md: make bench -->\n"
	generatedEnd   = "<!-- End of the generated part -->\n"
)

// writeDocs replaces the generated parts of the documentation in the project's folder.
func writeDocs(root string, results []byte) error {
	for name, generate := range generated {
		path := filepath.Join(root, name)
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("reading documentation: %w", err)
		}
		text, err = replaceGenerated(text, results, generate)
		if err != nil {
			return fmt.Errorf("generating a part of %s: %w", name, err)
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return fmt.Errorf("writing documentation: %w", err)
		}
	}
	return nil
}

func replaceGenerated(text, results []byte, generate func([]byte) (string, error)) ([]byte, error) {
	before, rest, begins := bytes.Cut(text, []byte(generatedBegin))
	_, after, ends := bytes.Cut(rest, []byte(generatedEnd))
	if !begins || !ends {
		return nil, fmt.Errorf("write %q and %q around it", generatedBegin, generatedEnd)
	}
	part, err := generate(results)
	return []byte(string(before) + generatedBegin + part + generatedEnd + string(after)), err
}

// goalRow is a row of the goals in RESULTS.md.
type goalRow struct{ goal, what, measured, bound, verdict string }

// goalRows reads the goals of RESULTS.md.
func goalRows(results []byte) []goalRow {
	var rows []goalRow
	for line := range strings.Lines(string(results)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 8 || !strings.HasPrefix(cells[1], " G") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, goalRow{cells[1], cells[2], cells[3], cells[4], cells[5]})
	}
	return rows
}

// doubtMark starts a line of RESULTS.md with a reason not to trust it.
const doubtMark = "**No result to go by:** "

// doubtsOf returns the doubts of RESULTS.md as paragraphs.
func doubtsOf(results []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(results)) {
		if strings.HasPrefix(line, doubtMark) {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// speedTable makes the table of README.md.
func speedTable(results []byte) (string, error) {
	rows := goalRows(results)
	var missing []string
	measured := func(what string) string {
		for _, row := range rows {
			if row.what == what {
				return row.measured
			}
		}
		missing = append(missing, what)
		return ""
	}
	b := strings.Builder{}
	b.WriteString(doubtsOf(results) + "| | |\n|---|---|\n")
	row := func(what, format string, measured ...any) {
		fmt.Fprintf(&b, "| "+what+" | "+format+" |\n", measured...)
	}
	row("a secured service, as users get it by default", "%s × the rate of a public service of the same gateway",
		measured(whatPublic))
	row("… beside OPA, Oathkeeper, the old Node.js gateway as it was", "%s, %s, %s",
		times(measured(whatOPA)), times(measured(whatOath)), times(measured(whatNode)))
	row("Redis, for a token in memory and for another", "%s, %s", measured(whatWarm), measured(whatCold))
	row("the last of 10,000 services", "%s × the rate of the last of 10", measured(whatLast))
	row("after a revoke has answered, on two gateways under load", "%s; the revoke takes %s",
		measured(whatAccepted), measured(whatRevoke))
	if missing != nil {
		return "", fmt.Errorf("RESULTS.md is not of a whole run: it has no %q", missing)
	}
	return b.String(), nil
}

// times formats a ratio.
func times(measured string) string {
	if measured == "–" {
		return "not measured"
	}
	return measured + " ×"
}

// goalsTable makes the table of docs/performance.md.
func goalsTable(results []byte) (string, error) {
	var b strings.Builder
	b.WriteString(doubtsOf(results) + "| | what | measured | goal | |\n|---|---|---|---|---|\n")
	for _, row := range goalRows(results) {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", row.goal, row.what, row.measured, row.bound, row.verdict)
	}
	return b.String(), nil
}
