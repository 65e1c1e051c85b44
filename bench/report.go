package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// result is the result of a run.
type result struct {
	Date        time.Time `json:"date"`
	Machine     []pair    `json:"machine"`
	Rounds      int       `json:"rounds"`
	Seconds     int       `json:"seconds"`
	Forced      bool      `json:"forced"`       // -force: other load was no reason to stop
	MostForeign float64   `json:"most_foreign"` // the greatest share of the machine that others used in a measurement
	Findings    []finding `json:"findings"`
	Series      []kept    `json:"series"`
	Counts      *counts   `json:"counts,omitempty"`
}

// pair is one line about the machine.
type pair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// kept are the figures from which findings were computed.
type kept struct {
	Title    string   `json:"title"`
	Subjects []string `json:"subjects"`
	Samples  series   `json:"samples"`
}

// counts are instructions per request.
type counts struct {
	Subjects []string             `json:"subjects"`
	Rounds   map[string][]float64 `json:"rounds"` // by subject
}

// keep adds the figures of a comparison to the result.
func (l *lab) keep(title string, subjects []string, samples series) {
	l.kept = append(l.kept, kept{title, subjects, samples})
}

// sort orders the findings by goal. The order within a goal is stable.
func (r *result) sort() {
	number := func(f finding) int {
		n, _ := strconv.Atoi(strings.TrimPrefix(f.Goal, "G"))
		return n
	}
	slices.SortStableFunc(r.Findings, func(a, b finding) int { return cmp.Compare(number(a), number(b)) })
}

// doubts returns the reasons not to trust the result.
func (r *result) doubts() []string {
	var out []string
	if r.Rounds < leastRounds {
		out = append(out, fmt.Sprintf("%d rounds only: at least %d make a result", r.Rounds, leastRounds))
	}
	if r.Forced {
		out = append(out, fmt.Sprintf("measured with -force: other load took up to %.0f%% of the machine", r.MostForeign*100))
	}
	return out
}

func (r *result) write(s settings, out io.Writer) error {
	if s.jsonFile != "" {
		text, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return fmt.Errorf("writing the result: %w", err)
		}
		if err := os.WriteFile(s.jsonFile, append(text, '\n'), 0o644); err != nil {
			return fmt.Errorf("writing the result: %w", err)
		}
	}
	if s.results != "" {
		if err := r.writeResults(s.results); err != nil {
			return err
		}
	}
	if s.docs != "" {
		if err := writeDocs(s.docs, r.markdown()); err != nil {
			return err
		}
	}
	_, err := out.Write(r.table())
	return err
}

// showAgain prints a stored result.
func showAgain(s settings, out io.Writer) error {
	text, err := os.ReadFile(s.show)
	if err != nil {
		return fmt.Errorf("reading a result: %w", err)
	}
	var r result
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("reading the result %s: %w", s.show, err)
	}
	s.jsonFile = ""
	return r.write(s, out)
}

// table formats the result for a terminal.
func (r *result) table() []byte {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "goal\twhat\tmeasured\tgoal\t\trounds")
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", f.Goal, f.What, f.value(), f.Bound.text(f.Unit), f.verdict(), f.spread())
	}
	_ = w.Flush() // writing to a buffer cannot fail
	for _, f := range r.Findings {
		if note := strings.TrimSpace(f.Missing + " " + f.Note); note != "" {
			fmt.Fprintf(&b, "%s %s: %s\n", f.Goal, f.What, note)
		}
	}
	for _, d := range r.doubts() {
		fmt.Fprintf(&b, "NO RESULT TO GO BY: %s\n", d)
	}
	return b.Bytes()
}

// notesLine separates the generated part of RESULTS.md from the handwritten notes.
const notesLine = "<!-- Notes: written by hand; a run leaves what is below this line. -->"

// writeResults writes the result as Markdown. It keeps the text below notesLine.
func (r *result) writeResults(path string) error {
	notes := "\n"
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the notes of %s: %w", path, err)
	}
	if _, below, found := strings.Cut(string(before), notesLine); found {
		notes = below
	}
	if err := os.WriteFile(path, append(r.markdown(), []byte(notesLine+notes)...), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

func (r *result) markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Results\n\nWritten by `make bench` on %s: %d rounds, %d s for each design in a round, in turns of half a second\n"+
		"(%d connections, all on one machine, load generator included). A ratio is the median of the rounds' paired ratios. Ratios hold better than absolute\n"+
		"figures, and CPU per request better than rates.\n\n",
		r.Date.Format("2006-01-02 15:04 UTC"), r.Rounds, r.Seconds, connections)
	for _, d := range r.doubts() {
		fmt.Fprintf(&b, doubtMark+"%s.\n\n", d)
	}
	if !r.Forced {
		fmt.Fprintf(&b, "Other load never took more than %.0f%% of the machine during a measurement.\n\n", r.MostForeign*100)
	}
	b.WriteString("| | |\n|---|---|\n")
	for _, p := range r.Machine {
		fmt.Fprintf(&b, "| %s | %s |\n", p.Name, p.Value)
	}
	b.WriteString("\n## The goals\n\n| | what | measured | goal | | least … most of the rounds |\n|---|---|---|---|---|---|\n")
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", f.Goal, f.What, f.value(), f.Bound.text(f.Unit), f.verdict(), f.spread())
	}
	b.WriteString("\n")
	for _, f := range r.Findings {
		if note := strings.TrimSpace(f.Missing + " " + f.Note); note != "" {
			fmt.Fprintf(&b, "- %s, %s: %s\n", f.Goal, f.What, note)
		}
	}
	for _, k := range r.Series {
		k.markdown(&b)
	}
	if r.Counts != nil {
		r.Counts.markdown(&b)
	}
	b.WriteString("\n")
	return b.Bytes()
}

// markdown writes the figures of one comparison, each the median of its rounds.
func (k kept) markdown(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n## In figures: %s\n\n| | requests/s | p50 ms | p99 ms | CPU µs per request | of which |\n|---|---|---|---|---|---|\n", k.Title)
	for _, name := range k.Subjects {
		of := func(figure func(sample) float64) float64 {
			var all []float64
			for _, s := range k.Samples[name] {
				all = append(all, figure(s))
			}
			return median(all)
		}
		by := map[string]float64{}
		for _, s := range k.Samples[name] {
			for process := range s.CPU {
				by[process] = of(func(s sample) float64 { return s.CPU[process] })
			}
		}
		fmt.Fprintf(b, "| %s | %.0f | %.2f | %.2f | %.1f | %s |\n", name, of(rate),
			of(func(s sample) float64 { return s.P50 }), of(func(s sample) float64 { return s.P99 }), of(cpu), byProcess(by))
	}
}

// markdown writes the median of each subject.
func (c *counts) markdown(b *bytes.Buffer) {
	b.WriteString("\n## In instructions per request\n\nOf Envoy's user code, with one worker. They vary by about one percent. What the kernel does is not in them.\n\n" +
		"| | instructions | ÷ a warm check |\n|---|---|---|\n")
	for _, name := range c.Subjects {
		n := median(c.Rounds[name])
		fmt.Fprintf(b, "| %s | %.0f | %.3f |\n", name, n, n/median(c.Rounds[countWarm]))
	}
}

// describe returns the description of the machine and the programs.
func describe(ctx context.Context, l *lab) []pair {
	first := func(program string, args ...string) string {
		out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
		if err != nil {
			return "not there"
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return strings.TrimSpace(strings.TrimPrefix(line, program)) // some print their own path first
	}
	return []pair{
		{"CPU", fmt.Sprintf("%d × %s", runtime.NumCPU(), cpuModel())},
		{"kernel", first("uname", "-sr")},
		{"Gatepost", first("git", "-C", l.root, "describe", "--tags", "--always", "--dirty")},
		{"Go", runtime.Version()},
		{"Envoy", first(l.envoy, "--version")},
		{"Redis", first("redis-server", "--version")},
		{"nginx", first("nginx", "-v")},
		{"Node.js", first("node", "--version")},
		{"load", "wrk, " + strings.TrimSuffix(first("sh", "-c", "wrk --version; true"), " Copyright (C) 2012 Will Glozer")},
	}
}

// cpuModel returns the kernel's name for the processor.
func cpuModel() string {
	content, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(content)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}
