package definitions

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Report is what there is to say about one file.
type Report struct {
	File     string   `json:"file"`
	OK       bool     `json:"ok"`
	Services int      `json:"services"`
	Problems Problems `json:"problems"`
	// Notes are what a reader may have missed in a good file.
	Notes Problems `json:"notes"`
}

// Check loads the file at path and reports on it. A file that cannot be read is one with a problem.
func Check(path string) Report {
	report := Report{File: path, Problems: Problems{}, Notes: Problems{}}
	d, err := Load(path)
	if err != nil {
		if !errors.As(err, &report.Problems) {
			report.Problems = Problems{{File: path, Line: 1, Column: 1, What: err.Error()}}
		}
		return report
	}
	report.OK = true
	report.Services = len(d.Gateway.GetServices())
	report.Notes = append(report.Notes, d.Notes()...)
	return report
}

// Validate checks the files, writes what there is to say about them to w, and returns whether all may be served.
// The format is "text", a line for each problem and each note, and one for each file that is good, or "json", one
// object with `ok` and `files`. An error says that w took no more, or that there is no such format.
func Validate(w io.Writer, format string, paths ...string) (ok bool, err error) {
	reports, ok := make([]Report, len(paths)), true
	for i, path := range paths {
		reports[i] = Check(path)
		ok = ok && reports[i].OK
	}
	switch format {
	case "text":
		err = writeText(w, reports)
	case "json":
		encoder := json.NewEncoder(w)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(struct {
			OK    bool     `json:"ok"`
			Files []Report `json:"files"`
		}{ok, reports})
	default:
		return false, fmt.Errorf("writing problems: no format %q, only text and json", format)
	}
	if err != nil {
		return false, fmt.Errorf("writing problems: %w", err)
	}
	return ok, nil
}

func writeText(w io.Writer, reports []Report) error {
	var lines []string
	for _, r := range reports {
		for _, p := range r.Problems {
			lines = append(lines, p.String())
		}
		for _, n := range r.Notes {
			n.What = "note: " + n.What
			lines = append(lines, n.String())
		}
		if r.OK {
			lines = append(lines, fmt.Sprintf("%s: good, %s", r.File, count(r.Services, "service")))
		}
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
