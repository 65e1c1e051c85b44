package definitions

import (
	"cmp"
	"slices"
	"strings"

	"gatepost/convention"
)

// gatewayItself is the Service of the gateway's own calls.
const gatewayItself = "(gateway)"

// PublicPath is a path that can be reached without a token. For a service, it includes all paths below it.
type PublicPath struct {
	// Host is the host, or *. and a suffix. It is empty if it is every host.
	Host    string   `json:"host,omitempty"`
	Path    string   `json:"path"`
	Methods []string `json:"methods"`
	// Service is the name of the service, or "(gateway)" for the gateway's own calls. Those below tokens.path check the
	// token themselves.
	Service string `json:"service"`
	// Except are the paths of the secured services directly below, with the host if that is another. Without these
	// services, the paths would be public.
	Except []string `json:"except,omitempty"`
}

// String returns the path as a line for comparison. An edit elsewhere does not change it, and an edit that makes more
// public changes a line.
func (p PublicPath) String() string {
	line := strings.Join(p.Methods, ",") + " " + p.Host + p.Path + " " + p.Service
	if len(p.Except) > 0 {
		line += " except " + strings.Join(p.Except, " ")
	}
	return line
}

// Public lists everything that can be reached without a token, sorted by path and host. If origins are listed, a
// request still needs one of them.
func (d *Definitions) Public() []PublicPath {
	byPlace := d.byPlace()
	public := d.ownPublic()
	except := d.exceptions(byPlace)
	for _, s := range d.Gateway.Services {
		if s.Authenticate {
			continue
		}
		for place := range s.places() {
			secured := slices.Compact(slices.Sorted(slices.Values(except[place])))
			public = append(public, PublicPath{
				Host: place.Host, Path: s.Path, Methods: slices.Sorted(slices.Values(s.Methods)), Service: s.Name, Except: secured,
			})
		}
	}
	slices.SortStableFunc(public, func(a, b PublicPath) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.Host, b.Host))
	})
	return public
}

// exceptions returns what secured services take from public ones. :: place of a public service → paths
func (d *Definitions) exceptions(byPlace map[Place]int) map[Place][]string {
	except := map[Place][]string{}
	secured := func(place Place) bool { return d.Gateway.Services[byPlace[place]].Authenticate }
	narrower := map[string][]string{} // :: host → the hosts of secured services that it covers
	known := map[string]bool{}        // :: host with a secured service
	for place := range byPlace {
		if secured(place) && !known[place.Host] {
			known[place.Host] = true
			for wider := range Wider(place.Host) {
				narrower[wider] = append(narrower[wider], place.Host)
			}
		}
		outer, ok := enclosing(byPlace, place)
		if !ok || !secured(place) || secured(outer) {
			continue
		}
		path := d.Gateway.Services[byPlace[place]].Path
		if outer.Host != place.Host {
			path = place.Host + path
		}
		except[outer] = append(except[outer], path)
	}
	for place, i := range byPlace { // a more specific host can take all of a path
		for _, host := range narrower[place.Host] {
			above, ok := nearestAbove(byPlace, Place{host, place.Path})
			if _, there := byPlace[Place{host, place.Path}]; !there && ok && secured(above) && !secured(place) {
				except[place] = append(except[place], host+d.Gateway.Services[i].Path)
			}
		}
	}
	return except
}

// ownPublic are the gateway's own calls. Envoy checks no token for them.
func (d *Definitions) ownPublic() []PublicPath {
	tokens := d.Gateway.Tokens.Path
	public := []PublicPath{{Path: VersionPath, Methods: []string{"*"}, Service: gatewayItself}}
	for _, host := range d.Gateway.Tokens.Patterns() {
		own := func(path string, methods ...string) {
			public = append(public, PublicPath{Host: host, Path: path, Methods: methods, Service: gatewayItself})
		}
		own(tokens, "POST")
		own(tokens+convention.BelowIntrospect, "POST")
		own(tokens+convention.BelowRefresh, "POST")
		own(tokens+convention.BelowRevoke, "POST")
		own(tokens+convention.BelowSessions, "DELETE", "GET")
	}
	return public
}
