package xds

import (
	"slices"
	"strings"
)

// clusterOf is what the names of services' clusters begin with.
const clusterOf = "service/"

// Blamed returns the services that a rejection is about, sorted: those whose clusters Envoy names in its words.
// None: it is about something that all services share, or Envoy does not say.
func (s *Snapshot) Blamed(r *Rejection) []string {
	var blamed []string
	for _, cluster := range s.clusters.all {
		service, isService := ServiceOfStats(cluster.name)
		if isService && names(r.Reason, cluster.name) {
			blamed = append(blamed, service)
		}
	}
	slices.Sort(blamed)
	return slices.Compact(blamed)
}

// ServiceOf returns the service of a cluster that routes of this snapshot lead to. Envoy keeps a former one for a
// while.
func (s *Snapshot) ServiceOf(cluster string) (service string, ok bool) {
	if s == nil || s.clusters.get(cluster) == nil {
		return "", false
	}
	return ServiceOfStats(cluster)
}

// ServiceOfStats returns the service of a cluster by its name, or by its name in the statistics.
func ServiceOfStats(cluster string) (service string, ok bool) {
	service, ok = strings.CutPrefix(cluster, clusterOf)
	service, _, _ = strings.Cut(service, clusterHash)
	service, _, _ = strings.Cut(service, "/") // the base path; a service's name has no slash
	return service, ok
}

// names reports whether text has name in it as a whole: `service/a` is not named by `service/ab` or `service/a/base`.
func names(text, name string) bool {
	for {
		at := strings.Index(text, name)
		if at < 0 {
			return false
		}
		text = text[at+len(name):]
		// Envoy goes on with a colon, a comma, a quotation mark or a space.
		if text == "" || !strings.ContainsRune("/._-", rune(text[0])) && !isAlphanumeric(text[0]) {
			return true
		}
	}
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// withheld reports whether a service has its paths and its rule, but no upstream: what should reach it is 503. Were
// it left out whole, a service with a shorter path could take its requests, and that one may be public.
func (o Options) withheld(service string) bool { return slices.Contains(o.Withheld, service) }
