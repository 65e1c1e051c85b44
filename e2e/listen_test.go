package e2e

import (
	"fmt"
	"testing"

	"gatepost/envoy/envoytest"
)

// Several gateways on one machine can share definitions with one listen address; --listen gives
// each its own.
func TestListenFlagLetsTwoGatewaysShareDefinitions(t *testing.T) {
	t.Parallel()
	items := envoytest.Upstream(t)
	shared := fmt.Sprintf("services:\n  - {name: items, path: /items, authenticate: false, upstreams: [%q]}\n", items.URL())
	first := prepare(t, shared, setup{})
	gateways := []*gateway{first, prepare(t, shared, setup{})}
	unused := first.Addr
	for _, g := range gateways {
		g.args[2] = first.File
		g.Addr = envoytest.Addr(t)
		g.URL = "http://" + g.Addr
		g.args = append(g.args, "--listen", g.Addr)
		g.Run()
	}
	for _, g := range gateways {
		g.AwaitReady()
		if got := g.Do("GET", "/items", ""); got.Status != 200 {
			t.Errorf("GET /items at --listen %s: %d %s", g.Addr, got.Status, got.Body)
		}
		a := first.explained(t, []string{"--listen", g.Addr, "--admin", g.Admin}, "GET", "/items")
		if a.Gateway == nil || !a.Gateway.Serves {
			t.Errorf("explain --listen %s: got %+v, want that the gateway serves this version", g.Addr, a.Gateway)
		}
	}
	if envoytest.Accepts(unused) {
		t.Errorf("the address in the definitions, %s, is in use though every gateway has --listen", unused)
	}
}
