package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
)

// The time from saving the definitions until Envoy responds with their version. It includes the
// watcher's debounce. Each save changes the upstream of one service.
func BenchmarkSaveToVerified(b *testing.B) {
	for _, services := range []int{10, 1000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			upstream := envoytest.Upstream(b)
			define := func(round int) string {
				var text strings.Builder
				text.WriteString("services:\n")
				for i := range services {
					path := fmt.Sprintf("/service-%d", i)
					if i == services/2 {
						path = fmt.Sprintf("/moved-%d", round)
					}
					fmt.Fprintf(&text, "  - {name: s%d, path: %s, authenticate: false, upstreams: [%q]}\n", i, path, upstream.URL())
				}
				return text.String()
			}
			g := start(b, define(-1), setup{})
			before := versionOf(b, g)
			b.ResetTimer()
			for round := range b.N {
				g.Define(define(round))
				for versionOf(b, g) == before {
					time.Sleep(time.Millisecond)
				}
				before = versionOf(b, g)
			}
			b.StopTimer()
			if got := g.Do("GET", fmt.Sprintf("/moved-%d", b.N-1), ""); got.Status != http.StatusOK {
				b.Fatalf("the last change is not served: %d", got.Status)
			}
		})
	}
}

// versionOf returns the version with which the gateway's Envoy responds.
func versionOf(tb testing.TB, g *gateway) (version string) {
	tb.Helper()
	if err := json.Unmarshal([]byte(g.Do("GET", definitions.VersionPath, "").Body), &version); err != nil || version == "" {
		tb.Fatalf("the gateway returns no version: %v", err)
	}
	return version
}
