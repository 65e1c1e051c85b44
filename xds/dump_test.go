package xds

import (
	"strings"
	"testing"
)

// Whatever the name of its cluster contains: a base path, or a hash if Envoy looks up names or checks hosts.
func TestADumpOfAServiceHasItsRoutesAndItsCluster(t *testing.T) {
	snapshot := build(t, `services:
- {name: a, path: /a, upstreams: ["http://10.0.0.1:80"]}
- {name: a-based, path: /a-based, upstreams: ["http://10.0.0.1:80/v1"]}
- {name: a-named, path: /a-named, upstreams: ["http://orders:80"]}
- {name: a-both, path: /a-both, upstreams: ["http://orders:80/v1"]}
- {name: a-checked, path: /a-checked, upstreams: ["http://10.0.0.1:80"], health_check: {path: /healthz}}
`)
	for service, cluster := range map[string]string{
		"a": "service/a", "a-based": "service/a-based/v1", "a-named": "service/a-named#", "a-both": "service/a-both/v1#", "a-checked": "service/a-checked#",
	} {
		dump, err := snapshot.Dump(service)
		if err != nil {
			t.Fatal(err)
		}
		if len(dump.Clusters) != 1 || !strings.Contains(string(dump.Clusters[0]), `"name":"`+cluster) {
			t.Errorf("%s: the clusters are %s, want %s", service, dump.Clusters, cluster)
		}
		if len(dump.Scopes) != 1 || !strings.Contains(string(dump.Scopes[0]), `"name":"`+service+`"`) {
			t.Errorf("%s: the routes are %s", service, dump.Scopes)
		}
		const url = `"@type":"type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"`
		if !strings.Contains(string(dump.Clusters[0]), url) || strings.Contains(string(dump.Scopes[0]), `"@type":"-/`) {
			t.Errorf("%s: types have another URL than tools expect: %s %s", service, dump.Clusters, dump.Scopes)
		}
	}
}
