package gatepost_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	changelogVersion = regexp.MustCompile(`^## \[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d{2}-\d{2})$`)
	changelogKinds   = []string{"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
)

// CHANGELOG.md has the form of Keep a Changelog 1.1.0: what is unreleased first, then each version with its date, the
// newest first, and the changes of each grouped by kind.
func TestChangelogKeepsItsForm(t *testing.T) {
	text, err := os.ReadFile("CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range changelogProblems(string(text)) {
		t.Error(problem)
	}
	for broken, want := range map[string]string{
		strings.Replace(string(text), "## [Unreleased]", "## Unreleased", 1):       "begins with",
		strings.Replace(string(text), "## [0.1.0]", "## [0.9.0]", 1):               "is not older",
		strings.Replace(string(text), "## [0.2.0] - 2026", "## [0.2.0] - 2027", 1): "is not older",
		strings.Replace(string(text), "### Fixed", "### Repaired", 1):              "is no kind of change",
		strings.Replace(string(text), "### Changed", "### Added", 1):               "is not in its order",
		strings.Replace(string(text), "\n- `gatepost", "\n`gatepost", 1):           "no list",
		string(text) + "\n### Security\n":                                          "is empty",
	} {
		if found := changelogProblems(broken); !slices.ContainsFunc(found, func(p string) bool { return strings.Contains(p, want) }) {
			t.Errorf("a changelog in another form is accepted, or not with %q: %q", want, found)
		}
	}
}

// changelogProblems returns what is not in the form of Keep a Changelog.
func changelogProblems(text string) (problems []string) {
	sections := regexp.MustCompile(`(?m)^## `).Split(text, -1)
	if !strings.HasPrefix(text, "# Changelog\n") || len(sections) < 3 || !strings.HasPrefix(sections[1], "[Unreleased]\n") {
		return []string{"the changelog begins with # Changelog and ## [Unreleased]"}
	}
	newer, newerDate := []string{"999999"}, "9999-12-31"
	for i, section := range sections[1:] {
		title, body, _ := strings.Cut(section, "\n")
		if i > 0 {
			m := changelogVersion.FindStringSubmatch("## " + title)
			if m == nil {
				problems = append(problems, title+": a version is written as ## [0.1.0] - 2026-11-23")
				continue
			}
			version := []string{pad(m[1]), pad(m[2]), pad(m[3])}
			if _, err := time.Parse(time.DateOnly, m[4]); err != nil || m[4] > newerDate || slices.Compare(version, newer) >= 0 {
				problems = append(problems, title+" is not older than the version above it")
			}
			newer, newerDate = version, m[4]
		}
		problems = append(problems, kindProblems(title, body)...)
	}
	return problems
}

// pad makes numbers comparable as texts.
func pad(number string) string { return strings.Repeat("0", max(0, 6-len(number))) + number }

// kindProblems returns what is wrong with the groups of changes of one version.
func kindProblems(version, body string) (problems []string) {
	last := -1
	for _, group := range regexp.MustCompile(`(?m)^### `).Split(body, -1)[1:] {
		kind, list, _ := strings.Cut(group, "\n")
		at := slices.Index(changelogKinds, kind)
		switch {
		case at < 0:
			problems = append(problems, version+": "+kind+" is no kind of change")
		case at <= last:
			problems = append(problems, version+": "+kind+" is not in its order, or is there twice")
		case strings.TrimSpace(list) == "":
			problems = append(problems, version+": "+kind+" is empty")
		case strings.Contains("\n"+list, "\n\n\n") || !regexp.MustCompile(`\A\n(- .*\n(  .*\n)*)+\n?\z`).MatchString(list):
			problems = append(problems, version+": "+kind+" is no list of changes")
		}
		last = max(last, at)
	}
	return problems
}
