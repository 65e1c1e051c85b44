package definitions

import (
	"fmt"
	"slices"
	"strings"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// Notes returns what is no mistake but what a reader may have missed: a public service below the path of a
// secured one, and secured services that nobody can log in to. They are sorted by position, and keep nothing
// from being served.
func (d *Definitions) Notes() Problems {
	byPath := make(map[string]int, len(d.Gateway.GetServices())) // :: path in lower case → index
	for i, s := range d.Gateway.GetServices() {
		byPath[strings.ToLower(s.GetPath())] = i
	}
	var notes Problems
	for i, s := range d.Gateway.GetServices() {
		if s.GetAuthenticate() {
			continue
		}
		if outer, ok := d.enclosing(byPath, s); ok && d.Gateway.GetServices()[outer].GetAuthenticate() {
			notes = append(notes, d.note(i, "authenticate", fmt.Sprintf(
				"the public service %q lies under the path of %q on line %d, which is secured",
				s.GetName(), d.Gateway.GetServices()[outer].GetName(), d.Line(outer)), "see that this is meant"))
		}
	}
	secured := slices.IndexFunc(d.Gateway.GetServices(), (*gatewayv1.Service).GetAuthenticate)
	if secured >= 0 && d.Gateway.GetTokens().GetAuthenticator() == nil {
		notes = append(notes, d.note(secured, "authenticate",
			"nobody can log in to this or another secured service", "set tokens.authenticator"))
	}
	notes.sort()
	return notes
}

// enclosing returns the service that would take the requests of s if s were not there.
func (d *Definitions) enclosing(byPath map[string]int, s *gatewayv1.Service) (index int, ok bool) {
	for path := strings.ToLower(s.GetPath()); path != "/" && path != ""; {
		path = path[:strings.LastIndexByte(path, '/')]
		if path == "" {
			index, ok = byPath["/"]
			return index, ok
		}
		if index, ok = byPath[path]; ok {
			return index, true
		}
	}
	return 0, false
}

func (d *Definitions) note(service int, field, what, remedy string) Problem {
	p := d.places[service]
	return Problem{
		File: d.Name, Line: p.line, Column: p.column,
		Field: fmt.Sprintf("services[%d].%s", service, field), What: what, Remedy: remedy,
	}
}

// PublicPath is a path that is reachable without a token, with all below it that no other service takes.
type PublicPath struct {
	Path    string   `json:"path"`
	Methods []string `json:"methods"`
	Service string   `json:"service"`
}

// String returns the path as a line that can be kept and compared: it has nothing that an edit elsewhere changes.
func (p PublicPath) String() string {
	return strings.Join(p.Methods, ",") + " " + p.Path + " " + p.Service
}

// Public lists what the services let through without a token, sorted by path. The login itself is not in it.
func (d *Definitions) Public() []PublicPath {
	var public []PublicPath
	for _, s := range d.Gateway.GetServices() {
		if !s.GetAuthenticate() {
			methods := slices.Sorted(slices.Values(s.GetAllowedMethods()))
			public = append(public, PublicPath{Path: s.GetPath(), Methods: methods, Service: s.GetName()})
		}
	}
	slices.SortFunc(public, func(a, b PublicPath) int { return strings.Compare(a.Path, b.Path) })
	return public
}
