package definitions

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Report is the result of validating one file.
type Report struct {
	File     string   `json:"file"`
	OK       bool     `json:"ok"`
	Services int      `json:"services"`
	Problems Problems `json:"problems"`
	// Warnings are probable mistakes in a valid file. With Validation.Strict they are problems.
	Warnings Problems `json:"warnings"`
	// Notes are facts about a valid file that its author may have missed.
	Notes Problems `json:"notes"`
	// Envoy is Envoy's verdict. It is nil if Envoy was not asked, such as for a file with problems.
	Envoy *Verdict `json:"envoy,omitempty"`
	// Public lists what can be reached without a token, with Validation.Public.
	Public []PublicPath `json:"public,omitempty"`
}

// Verdict is Envoy's verdict on the configuration that is made from definitions.
type Verdict struct {
	// Asked is whether an Envoy validated it.
	Asked bool `json:"asked"`
	// Skipped is the reason why none did.
	Skipped string `json:"skipped,omitempty"`
	// Refused is Envoy's error. It is empty if Envoy accepts the configuration.
	Refused string `json:"refused,omitempty"`
}

// Validation is how files are validated.
type Validation struct {
	// Format is "text": a line for each problem, warning, note and valid file; "json": one object with `ok` and `files`;
	// or "github": the text as annotations of a GitHub workflow.
	Format string
	// Public lists what can be reached without a token. The text about a valid file is then only this list, for
	// comparison.
	Public bool
	// Strict refuses files with warnings.
	Strict bool
	// Gateways is how many gateways serve the definitions, each of which counts rate limits alone. The zero value is one.
	Gateways int
	// Envoy validates the configuration of valid definitions with an Envoy. It can be nil.
	Envoy func(*Definitions) Verdict
}

// Check validates the file at path. A file that cannot be read has a problem.
func (v Validation) Check(path string) Report {
	report := Report{File: path, Problems: Problems{}, Warnings: Problems{}, Notes: Problems{}}
	d, err := Load(path)
	if err != nil {
		if !errors.As(err, &report.Problems) {
			report.Problems = Problems{{File: path, Line: 1, Column: 1, What: err.Error(), See: aboutFile.page()}}
		}
		return report
	}
	report.OK = true
	report.Services = len(d.Gateway.Services)
	problems, warnings := d.checkFiles(time.Now())
	if len(problems) > 0 {
		report.OK, report.Problems = false, problems
		return report
	}
	report.Warnings = append(report.Warnings, slices.Concat(d.Warnings(), d.LimitWarnings(v.Gateways), warnings)...)
	report.Notes = append(report.Notes, d.Notes()...)
	if v.Public {
		report.Public = d.Public()
	}
	if v.Envoy != nil {
		verdict := v.Envoy(d)
		report.Envoy, report.OK = &verdict, verdict.Refused == ""
	}
	if v.Strict && len(report.Warnings) > 0 {
		report.OK = false
	}
	return report
}

// Run validates the files, writes the reports to w, and returns whether all files are valid. An error is that of w,
// or of an unknown format.
func (v Validation) Run(w io.Writer, paths ...string) (ok bool, err error) {
	reports, ok := make([]Report, len(paths)), true
	for i, path := range paths {
		reports[i] = v.Check(path)
		ok = ok && reports[i].OK
	}
	switch v.Format {
	case "text":
		err = v.writeText(w, reports)
	case "json":
		encoder := json.NewEncoder(w)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(struct {
			OK    bool     `json:"ok"`
			Files []Report `json:"files"`
		}{ok, reports})
	case "github":
		err = v.writeGitHub(w, reports)
	default:
		return false, fmt.Errorf("writing problems: no format %q, only text, json and github", v.Format)
	}
	if err != nil {
		return false, fmt.Errorf("writing problems: %w", err)
	}
	return ok, nil
}

func (v Validation) writeText(w io.Writer, reports []Report) error {
	var lines []string
	var explained Problems
	for _, r := range reports {
		if v.Public && r.OK {
			if len(reports) > 1 {
				lines = append(lines, "# "+r.File)
			}
			for _, p := range r.Public {
				lines = append(lines, p.String())
			}
			continue
		}
		lines = append(lines, r.lines(v.Strict)...)
		explained = slices.Concat(explained, r.Problems, r.Warnings, r.refusal())
	}
	if see := explained.See(); see != "" {
		lines = append(lines, see)
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// lines returns the report as text. If strict is true, warnings are problems.
func (r Report) lines(strict bool) []string {
	var lines []string
	for _, p := range r.Problems {
		lines = append(lines, p.String())
	}
	for _, w := range r.Warnings {
		w.What = "warning: " + w.What
		lines = append(lines, w.String())
	}
	for _, n := range r.Notes {
		n.What = "note: " + n.What
		lines = append(lines, n.String())
	}
	switch {
	case len(r.Problems) > 0:
	case strict && len(r.Warnings) > 0:
		lines = append(lines, fmt.Sprintf("%s: refused, %s (--strict)", r.File, count(len(r.Warnings), "warning")))
	case r.Envoy == nil:
		lines = append(lines, fmt.Sprintf("%s: good, %s", r.File, count(r.Services, "service")))
	case r.Envoy.Refused != "":
		lines = append(lines, fmt.Sprintf("%s: Envoy refuses what is made of it: %s", r.File, r.Envoy.Refused))
	case r.Envoy.Skipped != "":
		lines = append(lines, fmt.Sprintf("%s: good, %s; Envoy's own check skipped: %s", r.File, count(r.Services, "service"), r.Envoy.Skipped))
	default:
		lines = append(lines, fmt.Sprintf("%s: good, %s, to Envoy too", r.File, count(r.Services, "service")))
	}
	return lines
}

// refusal is the problem that Envoy has with the configuration, if it refuses it.
func (r Report) refusal() Problems {
	if r.Envoy == nil || r.Envoy.Refused == "" {
		return nil
	}
	return Problems{problem(r.File, nil, position{1, 1}, "", aboutNotes.faultf("", "Envoy refuses what is made of it: %s", r.Envoy.Refused))}
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
