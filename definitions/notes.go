package definitions

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Notes returns facts that an author may have missed, such as a public service below the path of a secured one, with
// the same upstream, or under a more specific host. They are sorted by position, and are no problems.
func (d *Definitions) Notes() Problems {
	byPlace := d.byPlace()
	secured := d.securedPlaces()
	doors := d.openDoors()
	var notes Problems
	for i, s := range d.Gateway.Services {
		for place := range s.places() {
			around, ok := enclosing(byPlace, place)
			if outer := byPlace[around]; ok && !s.Authenticate && d.Gateway.Services[outer].Authenticate {
				notes = append(notes, d.note(i, "authenticate", aboutNotes.faultf("see that this is meant",
					"the public service %q lies under the path of %q on %s, which is secured",
					s.Name, d.Gateway.Services[outer].Name, d.line(outer))))
				break
			}
		}
		if at, of, ok := taken(byPlace, secured, s); ok {
			notes = append(notes, d.note(i, "hosts", aboutNotes.faultf("see that this is meant, or add the host to a secured service with this path",
				"under %s the public service %q takes %s, the path of %q on %s, which is secured",
				at.Host, s.Name, at.Path, d.Gateway.Services[of].Name, d.line(of))))
		}
		if door, ok := doors.to(s); ok && s.Authenticate {
			notes = append(notes, d.note(i, "upstreams", aboutNotes.faultf("see that this is meant, or give each an upstream or a base path of its own",
				"the public service %q on %s leads to the same upstream, so what %q has there may be reached without a token",
				d.Gateway.Services[door].Name, d.line(door), s.Name)))
		}
		notes = append(notes, d.methodNotes(i, s)...)
		notes = append(notes, d.resilienceNotes(i, s)...)
	}
	notes = append(notes, d.tokenNotes()...)
	notes = append(notes, d.counterNotes()...)
	ownIndexes(notes, d.files)
	notes.sort()
	return notes
}

// doors are the public services by their upstreams.
type doors map[string]map[string]int // :: host:port → path there, without a slash at the end → index

func (d *Definitions) openDoors() doors {
	open := doors{}
	for i, s := range d.Gateway.Services {
		if s.Authenticate {
			continue
		}
		for _, at := range leads(s) {
			if open[at.Address()] == nil {
				open[at.Address()] = map[string]int{}
			}
			if _, taken := open[at.Address()][at.Base]; !taken {
				open[at.Address()][at.Base] = i
			}
		}
	}
	return open
}

// to returns a public service through which a request reaches the upstream path of s, or one above it. If its path is
// above that of s, s receives the requests for its own path, but not those that an upstream may read as such:
// /admin;x, /admin%20.
func (o doors) to(s *Service) (index int, ok bool) {
	for _, at := range leads(s) {
		for path, open := at.Base, o[at.Address()]; open != nil; path = path[:strings.LastIndexByte(path, '/')] {
			if index, ok = open[path]; ok {
				return index, true
			}
			if path == "" {
				break
			}
		}
	}
	return 0, false
}

// leads returns the upstreams of a service with the path under which its requests arrive.
func leads(s *Service) []Upstream {
	to := slices.Collect(s.AllUpstreams())
	if s.KeepPrefix && s.Path != "/" {
		for i := range to {
			to[i].Base += s.Path
		}
	}
	return to
}

// methodNotes lists methods that Envoy accepts over HTTP/2 only.
func (d *Definitions) methodNotes(i int, s *Service) Problems {
	var odd []string
	for _, m := range s.Methods {
		if !TakenOverHTTP1(m) {
			odd = append(odd, m)
		}
	}
	switch len(odd) {
	case 0:
		return nil
	case len(s.Methods):
		return Problems{d.note(i, "allowed_methods", aboutNotes.faultf("use methods that HTTP defines",
			"nobody can reach %q over HTTP/1.1: Envoy knows none of its methods there (%s)", s.Name, strings.Join(odd, ", ")))}
	}
	return Problems{d.note(i, "allowed_methods", aboutNotes.faultf("use methods that HTTP defines, or HTTP/2",
		"Envoy takes %s over HTTP/2 alone", strings.Join(odd, ", ")))}
}

// tokenNotes lists secured services that nobody, or no page, can use.
func (d *Definitions) tokenNotes() Problems {
	secured := slices.IndexFunc(d.Gateway.Services, func(s *Service) bool { return s.Authenticate })
	if secured < 0 {
		return nil
	}
	var notes Problems
	if d.Gateway.Tokens.Authenticator == nil {
		notes = append(notes, d.note(secured, "authenticate", aboutNotes.faultf("set tokens.authenticator",
			"nobody can log in to this or another secured service")))
	}
	if !slices.ContainsFunc(d.Gateway.Cors.AllowHeaders, func(h string) bool { return strings.EqualFold(h, "authorization") }) {
		notes = append(notes, d.note(secured, "authenticate", aboutNotes.faultf("add it to cors.allow_headers",
			"no page of another origin can show a token to this or another secured service: cors.allow_headers has no Authorization")))
	}
	return notes
}

// CheckListen returns the problems of d on a gateway that listens on an address other than Gateway.Listen: upstreams
// that are this address.
func (d *Definitions) CheckListen(listen netip.AddrPort) error {
	var problems Problems
	for i, s := range d.Gateway.Services {
		for u := range s.AllUpstreams() {
			if fault := ownAddressFault(u, u.String(), listen); fault != nil {
				problems = append(problems, d.note(i, "upstreams", fault))
			}
		}
	}
	if len(problems) > 0 {
		ownIndexes(problems, d.files)
		return problems
	}
	return nil
}

// byPlace returns the services by their places. :: place → index
func (d *Definitions) byPlace() map[Place]int {
	out := make(map[Place]int, len(d.Gateway.Services))
	for i, s := range d.Gateway.Services {
		for place := range s.places() {
			out[place] = i
		}
	}
	return out
}

// securedPlace is a path of a service that is secured.
type securedPlace struct {
	path  string
	index int
}

// securedPlaces returns the paths of secured services by their hosts, sorted.
func (d *Definitions) securedPlaces() map[string][]securedPlace {
	out := map[string][]securedPlace{}
	for i, s := range d.Gateway.Services {
		if s.Authenticate {
			for place := range s.places() {
				out[place.Host] = append(out[place.Host], securedPlace{place.Path, i})
			}
		}
	}
	for _, places := range out {
		slices.SortFunc(places, func(a, b securedPlace) int { return strings.Compare(a.path, b.path) })
	}
	return out
}

// taken returns a place below a public service where that gets the requests for a secured service, because its host is
// more specific, and the index of the secured one.
func taken(byPlace map[Place]int, secured map[string][]securedPlace, s *Service) (at Place, index int, ok bool) {
	if s.Authenticate {
		return Place{}, 0, false
	}
	for place := range s.places() {
		below := strings.TrimSuffix(place.Path, "/") + "/"
		for host := range Wider(place.Host) {
			places := secured[host]
			first, _ := slices.BinarySearchFunc(places, below, func(p securedPlace, path string) int { return strings.Compare(p.path, path) })
			for _, p := range places[first:] {
				if !strings.HasPrefix(p.path, below) {
					break
				}
				at = Place{place.Host, p.path}
				if _, own := byPlace[at]; own || p.path == place.Path {
					continue
				}
				if nearest, _ := nearestAbove(byPlace, at); nearest == place {
					return at, p.index, true
				}
			}
		}
	}
	return Place{}, 0, false
}

// enclosing returns the place whose service would receive the requests for a place of a service if that service did
// not exist: the longest path above it under the same host, or else under a less specific one.
func enclosing(byPlace map[Place]int, of Place) (place Place, ok bool) {
	if place, ok = nearestAbove(byPlace, of); ok {
		return place, true
	}
	for host := range Wider(of.Host) {
		place = Place{host, of.Path}
		if _, ok = byPlace[place]; ok {
			return place, true
		}
		if place, ok = nearestAbove(byPlace, place); ok {
			return place, true
		}
	}
	return Place{}, false
}

// nearestAbove returns the place with the longest path above a place, under the same host.
func nearestAbove(byPlace map[Place]int, of Place) (place Place, ok bool) {
	for path := of.Path; path != "/" && path != ""; {
		path = path[:strings.LastIndexByte(path, '/')]
		place = Place{of.Host, cmp.Or(path, "/")}
		if _, ok = byPlace[place]; ok {
			return place, true
		}
	}
	return Place{}, false
}

func (d *Definitions) note(service int, field string, fault *fault) Problem {
	return problem(d.Name, d.files, d.places[service], fmt.Sprintf("services[%d].%s", service, field), fault)
}
