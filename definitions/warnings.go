package definitions

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Warnings returns valid values that are probably mistakes, sorted by position. `gatepost validate --strict` refuses
// them.
func (d *Definitions) Warnings() Problems {
	f := d.read()
	if len(f.found) > 0 {
		return nil // not reached: the same text was parsed before
	}
	for i, s := range d.Gateway.Services {
		for _, method := range s.Methods {
			if !slices.Contains(knownMethods, method) {
				f.add(f.item(fmt.Sprintf("services[%d].allowed_methods", i), method), methodFault(method))
			}
		}
	}
	if chains := d.Gateway.FilterChains(); chains > 1 {
		for i, l := range d.Gateway.RateLimits {
			if !l.Cluster {
				f.add(fmt.Sprintf("rate_limits[%d].requests", i), aboutNotes.faultf("write scope: cluster",
					"%d in %s is counted apart in each of up to %d filter chains, so together they allow up to %d",
					l.Requests, l.Period(), chains, l.Requests*chains))
			}
		}
	}
	if d.Gateway.Tokens.Lease > 0 {
		f.add("tokens.lease", aboutNotes.faultf("remove it", "it has no effect: Envoy checks tokens by itself (--module)"))
	}
	return f.sorted()
}

func methodFault(method string) *fault {
	remedy := "check the spelling"
	if meant := nearest(method, knownMethods); meant != "" {
		remedy = "did you mean " + meant + "?"
	}
	return aboutNotes.faultf(remedy, "%s is not a known HTTP method", shown(method))
}

// item returns the field of the list item with the value. Its index in the model can differ, because HEAD is added
// behind GET.
func (f *findings) item(list, value string) string {
	node, _ := f.locate(list)
	i := slices.IndexFunc(node.Content, func(item *yaml.Node) bool { return item.Value == value })
	return fmt.Sprintf("%s[%d]", list, i)
}
