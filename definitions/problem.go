package definitions

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"gatepost/convention"
)

// Problem is one mistake in a definitions file.
type Problem struct {
	// File is the name of the file.
	File string `json:"file"`
	// Line and Column are where it is, counted from 1; the column counts characters.
	Line   int `json:"line"`
	Column int `json:"column"`
	// Field is the field, such as services[2].path. It is empty if the problem is about the whole file.
	Field string `json:"field,omitempty"`
	// What is the problem.
	What string `json:"what"`
	// Remedy is what to do. It can be empty.
	Remedy string `json:"remedy,omitempty"`
	// See is the page, and the anchor in it, that explains the problem.
	See string `json:"see,omitempty"`
}

// String returns the problem as `file:line:column: field: problem (remedy)`.
func (p Problem) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.What)
	if p.Remedy != "" {
		b.WriteString(" (" + p.Remedy + ")")
	}
	return b.String()
}

// Problems are all problems of definitions, sorted by file and position. As an error it is never empty.
type Problems []Problem

// maxShown limits the problems in an error message, which can end up in a log.
const maxShown = 20

// Error lists the first 20 problems, one per line, the number of the others, and the pages that explain those listed.
func (p Problems) Error() string {
	lines := make([]string, 0, min(len(p), maxShown)+1)
	for _, problem := range p[:min(len(p), maxShown)] {
		lines = append(lines, problem.String())
	}
	if more := len(p) - maxShown; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more problems", more))
	}
	if see := p[:min(len(p), maxShown)].See(); see != "" {
		lines = append(lines, see)
	}
	return strings.Join(lines, "\n")
}

func (p Problems) sort() {
	slices.SortStableFunc(p, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Field, b.Field))
	})
}

// See returns a line that names the pages about the problems. It is empty if there is no page.
func (p Problems) See() string {
	var pages []string
	for _, p := range p {
		if p.See != "" && !slices.Contains(pages, p.See) {
			pages = append(pages, p.See)
		}
	}
	if len(pages) == 0 {
		return ""
	}
	return "see " + strings.Join(pages, ", ")
}

// fault is a problem of a value, without its position.
type fault struct {
	about        topic
	what, remedy string
}

// topic is the section of the documentation that explains a fault.
type topic convention.Section

const (
	aboutFile      = topic(convention.SectionFile)
	aboutFields    = topic(convention.SectionFields)
	aboutPaths     = topic(convention.SectionPaths)
	aboutFailures  = topic(convention.SectionFailures)
	aboutAddresses = topic(convention.SectionAddresses)
	aboutHosts     = topic(convention.SectionHosts)
	aboutTLS       = topic(convention.SectionTLS)
	aboutOrigins   = topic(convention.SectionOrigins)
	aboutNotes     = topic(convention.SectionNotes)
)

func (t topic) faultf(remedy, what string, args ...any) *fault {
	return &fault{about: t, what: fmt.Sprintf(what, args...), remedy: remedy}
}

func (t topic) page() string { return convention.Section(t).String() }

// shown returns a value of the file for a problem: quoted, truncated, and without user info, which can be a password.
func shown(value string) string {
	if at := strings.LastIndexByte(value, '@'); at >= 0 && strings.Contains(value[:at], ":") {
		scheme, _, ok := strings.Cut(value[:at], "://")
		if !ok {
			scheme = "http"
		}
		value = scheme + "://[redacted]" + value[at:]
	}
	const most = 100
	if runes := []rune(value); len(runes) > most {
		value = string(runes[:most]) + "…"
	}
	return fmt.Sprintf("%q", value)
}
