package definitions

import (
	"fmt"
	"io"
	"strings"
)

// writeGitHub writes the reports as workflow commands, which GitHub shows at the lines of the files (GitHub
// documentation, "Workflow commands for GitHub Actions").
func (v Validation) writeGitHub(w io.Writer, reports []Report) error {
	for _, r := range reports {
		for _, line := range r.annotations(v.Strict) {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// annotations are the workflow commands of a report and, if the file is good, a line that confirms it. If strict is
// true, its warnings are errors.
func (r Report) annotations(strict bool) (lines []string) {
	add := func(command string, problems Problems) {
		for _, p := range problems {
			lines = append(lines, annotation(command, p))
		}
	}
	add("error", r.Problems)
	if strict {
		add("error", r.Warnings)
	} else {
		add("warning", r.Warnings)
	}
	add("notice", r.Notes)
	add("error", r.refusal())
	if r.OK {
		r.Warnings, r.Notes = nil, nil
		lines = append(lines, r.lines(false)...)
	}
	return lines
}

// annotation returns the workflow command that shows a problem.
func annotation(command string, p Problem) string {
	text := p.What
	if p.Field != "" {
		text = p.Field + ": " + text
	}
	if p.Remedy != "" {
		text += " (" + p.Remedy + ")"
	}
	if p.See != "" {
		text += "\nsee " + p.See
	}
	return fmt.Sprintf("::%s file=%s,line=%d,col=%d::%s", command, githubProperty.Replace(p.File), p.Line, p.Column, githubText.Replace(text))
}

// Values of workflow commands are escaped as in github.com/actions/toolkit, packages/core/src/command.ts.
var (
	githubText     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	githubProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)
