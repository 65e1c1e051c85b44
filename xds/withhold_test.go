package xds

import (
	"slices"
	"testing"
)

func TestBlamedAreTheServicesThatEnvoyNames(t *testing.T) {
	clusters := map[string]*resource{}
	for _, name := range []string{"service/a", "service/ab", "service/a/base", "service/b-c", "service/b", "service/d/x/y", blackhole} {
		clusters[name] = &resource{}
	}
	s := &Snapshot{view: view{clusters: set{}.with(clusters)}}
	for reason, want := range map[string][]string{
		"Error adding/updating cluster(s) service/a: Failed to load certificate":      {"a"},
		"Error adding/updating cluster(s) service/a/base: x, service/b-c: y":          {"a", "b-c"},
		"cluster 'service/ab' is bad":                                                 {"ab"},
		"service/d/x/y":                                                               {"d"},
		"service/d/x/yz: no such one":                                                 nil,
		"error adding listener 'gatepost': cannot bind '127.0.0.1:1': Address in use": nil,
		"": nil,
	} {
		if got := s.Blamed(&Rejection{Reason: reason}); !slices.Equal(got, want) {
			t.Errorf("%q blames %v, want %v", reason, got, want)
		}
	}
}
