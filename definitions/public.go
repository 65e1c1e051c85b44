package definitions

import (
	"slices"
	"strings"
)

// gatewayItself is the Service of the gateway's own calls.
const gatewayItself = "(gateway)"

// PublicPath is a path that can be reached without a token. For a service, it includes all paths below it.
type PublicPath struct {
	Path    string   `json:"path"`
	Methods []string `json:"methods"`
	// Service is the name of the service, or "(gateway)" for the gateway's own calls. Those below tokens.path check the
	// token themselves.
	Service string `json:"service"`
	// Except are the paths of the secured services directly below. Without these services, the paths would be public.
	Except []string `json:"except,omitempty"`
}

// String returns the path as a line for comparison. An edit elsewhere does not change it, and an edit that makes more
// public changes a line.
func (p PublicPath) String() string {
	line := strings.Join(p.Methods, ",") + " " + p.Path + " " + p.Service
	if len(p.Except) > 0 {
		line += " except " + strings.Join(p.Except, " ")
	}
	return line
}

// Public lists everything that can be reached without a token, sorted by path. If origins are listed, a request still
// needs one of them.
func (d *Definitions) Public() []PublicPath {
	services, byPath := d.Gateway.Services, d.byPath()
	except := map[int][]string{} // :: index of a public service → the secured ones directly below it
	for _, s := range services {
		if outer, ok := enclosing(byPath, s.Path); ok && s.Authenticate {
			except[outer] = append(except[outer], s.Path)
		}
	}
	public := d.ownPublic()
	for i, s := range services {
		if s.Authenticate {
			continue
		}
		slices.Sort(except[i])
		public = append(public, PublicPath{
			Path: s.Path, Methods: slices.Sorted(slices.Values(s.Methods)), Service: s.Name, Except: except[i],
		})
	}
	slices.SortStableFunc(public, func(a, b PublicPath) int { return strings.Compare(a.Path, b.Path) })
	return public
}

// ownPublic are the gateway's own calls. Envoy checks no token for them.
func (d *Definitions) ownPublic() []PublicPath {
	tokens := d.Gateway.Tokens.Path
	own := func(path string, methods ...string) PublicPath {
		return PublicPath{Path: path, Methods: methods, Service: gatewayItself}
	}
	return []PublicPath{
		own(OwnPath+"/version", "*"),
		own(tokens, "POST"),
		own(tokens+"/introspect", "POST"),
		own(tokens+"/refresh", "POST"),
		own(tokens+"/revoke", "POST"),
		own(tokens+"/sessions", "DELETE", "GET"),
	}
}
