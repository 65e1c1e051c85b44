// Package nodegateway decides what the settings of the old Node.js gateway mean as definitions.
//
// [Import] returns the text of a definitions file, in which a comment stands at each place whose meaning changes. What
// it cannot translate is a [definitions.Problem] with its place in the settings and its remedy, so that no setting is
// lost in silence. The values themselves are checked by package definitions.
package nodegateway

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gatepost/definitions"
)

// page is the page about the import.
const page = "docs/migrate/node-gateway.md#import-the-settings"

// Imported is the result of an import.
type Imported struct {
	// Text is a valid definitions file.
	Text []byte
	// Services is the number of services in it, and Notes that of its comments about a change of meaning.
	Services, Notes int
}

// Import translates the settings in text, which is JSON. The name is that of the file, for problems. An error is a
// definitions.Problems, sorted by position.
func Import(name string, text []byte) (*Imported, error) {
	root, err := readJSON(name, text)
	if err != nil {
		return nil, err
	}
	i := &importer{name: name, settings: map[string]value{}}
	i.read(root)
	if len(i.problems) > 0 {
		return nil, sorted(i.problems)
	}
	out, err := i.write()
	if err != nil {
		return nil, fmt.Errorf("writing definitions as YAML: %w", err)
	}
	d, err := definitions.Parse("definitions", out)
	var problems definitions.Problems
	switch {
	case errors.As(err, &problems):
		return nil, i.placed(problems)
	case err != nil:
		return nil, err
	}
	return &Imported{Text: out, Services: len(d.Gateway.Services), Notes: i.notes}, nil
}

// importer collects the definitions, and the problems of the settings.
type importer struct {
	name     string
	problems definitions.Problems
	settings map[string]value // :: field path in the definitions → the setting that it was made from

	listen        string
	origins       []string
	authenticator string
	services      []service
	general       []string            // what changes, whatever the service
	comments      map[string][]string // :: field path in the definitions → what changes there
	notes         int
}

// problem adds a problem of a setting.
func (i *importer) problem(v value, remedy, what string, args ...any) {
	i.problems = append(i.problems, definitions.Problem{
		File: i.name, Line: v.line, Column: v.column, Field: v.path, What: fmt.Sprintf(what, args...), Remedy: remedy, See: page,
	})
}

// note adds a comment to a field of the definitions, about the setting that it was made from.
func (i *importer) note(field string, v value, remedy, what string, args ...any) {
	if i.comments == nil {
		i.comments = map[string][]string{}
	}
	i.notes++
	i.comments[field] = append(i.comments[field], fmt.Sprintf("%s: %s (%s)", v.path, fmt.Sprintf(what, args...), remedy))
}

// placed returns problems of the definitions as problems of the settings.
func (i *importer) placed(problems definitions.Problems) definitions.Problems {
	placed := make(definitions.Problems, 0, len(problems))
	for _, p := range problems {
		v := i.setting(p.Field)
		p.File, p.Line, p.Column, p.Field = i.name, v.line, v.column, v.path
		placed = append(placed, p)
	}
	return sorted(placed)
}

func sorted(problems definitions.Problems) definitions.Problems {
	slices.SortStableFunc(problems, func(a, b definitions.Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return problems
}

// setting returns the setting that a field of the definitions, or the nearest one above it, was made from.
func (i *importer) setting(field string) value {
	for field != "" {
		if v, ok := i.settings[field]; ok {
			return v
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return i.settings[""]
}
