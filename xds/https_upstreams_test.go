package xds

import (
	"strings"
	"testing"
)

// The name of all upstreams of a service can be an IP address, which is no server name of a handshake (RFC 6066 §3).
func TestUpstreamsAreVerifiedByAnIPAddress(t *testing.T) {
	for name, want := range map[string]string{
		"10.0.0.7":      `"match_typed_subject_alt_names":[{"san_type":"IP_ADDRESS","matcher":{"exact":"10.0.0.7"}}]`,
		"shop.internal": `"sni":"shop.internal"`,
	} {
		dump, err := build(t, `services: [{name: a, path: /a, upstreams: ["https://orders"], upstream_tls: {server_name: "`+name+`"}}]`).Dump("a")
		if err != nil {
			t.Fatal(err)
		}
		cluster := string(dump.Clusters[0])
		if !strings.Contains(cluster, want) || strings.Contains(cluster, `"sni"`) != strings.Contains(want, "sni") {
			t.Errorf("%s: the cluster is %s, want %s in it", name, cluster, want)
		}
	}
}
