package xds

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gatepost/tracing"
)

// TestLineHasTheUpstreamAndHowTheRequestEnded: in each part of the log.
func TestLineHasTheUpstreamAndHowTheRequestEnded(t *testing.T) {
	t.Parallel()
	d := startDeciding(t, "access_log: {format: ecs}\n"+decidingShop+"  - {name: dead, path: /dead, authenticate: false, upstreams: [\"http://127.0.0.1:9\"]}\n", 1)
	bearer := "authorization: bearer " + d.login("ada", time.Hour)
	requests := []struct{ path, header, want string }{
		{"/orders/1", bearer, "200 " + d.secured.Addr() + " - via_upstream"},
		{"/orders/2", bearer, "200 " + d.secured.Addr() + " - via_upstream"}, // a hit
		{"/items/3", bearer, "200 " + d.public.Addr() + " - via_upstream"},
		{"/orders/4", "x-none: 1", "401  UAEX ext_authz_denied"},
		{"/nobody", bearer, "404  - direct_response"},
		{"/dead", bearer, "503 127.0.0.1:9 URX,UF upstream_reset_before_response_started"},
	}
	var want, got []string
	for _, r := range requests {
		d.do("GET", r.path, r.header)
		want = append(want, r.want)
	}
	for _, line := range d.log.await(t, len(requests)) {
		details, _, _ := strings.Cut(at(t, line, "envoy", "response_code_details"), "{")
		got = append(got, strings.Join([]string{
			at(t, line, "http", "response", "status_code"), at(t, line, "service", "address"), at(t, line, "envoy", "response_flags"), details,
		}, " "))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestLineHasTheClientsRealAddress: that of the connection, or the one that a trusted proxy names.
func TestLineHasTheClientsRealAddress(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "access_log: {format: ecs}\n"+shop+proxies+"}")
	const named = "x-forwarded-for: 192.0.2.1"
	var want []string
	for _, path := range []string{"/items", "/orders", "/nobody"} {
		g.from(proxy, "", "GET", path, named)
		g.from(stranger, "", "GET", path, named)
		want = append(want, "192.0.2.1", stranger)
	}
	var got []string
	for _, line := range g.log.await(t, len(want)) {
		got = append(got, at(t, line, "client", "address"))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestLineHasItsTrace: the one that the upstream receives too.
func TestLineHasItsTrace(t *testing.T) {
	t.Parallel()
	options := testOptions
	options.Tracing = &tracing.Settings{Host: "127.0.0.1", Port: 9, Service: "gatepost", Sample: 1}
	g := startGatewayWith(t, "access_log: {format: ecs}\n"+shop, options)
	g.do("GET", "/items/1")
	g.do("GET", "/orders/2")
	received := append(g.public.Requests(), g.secured.Requests()...)
	for n, line := range g.log.await(t, 2) {
		parts := strings.Split(received[n].Header.Get("traceparent"), "-")
		if id := at(t, line, "trace", "id"); len(parts) != 4 || id != parts[1] {
			t.Errorf("the trace is %q, and the upstream received %q", id, parts)
		}
	}
}

// TestSampleOfTheLog: some requests have a line, and some have none. No client chooses which.
func TestSampleOfTheLog(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "access_log: {format: ecs, sample: 0.5}\n"+shop+proxies+"}")
	const requests, few = 200, 50 // less or more has a probability of 1 in a million millions
	send := func(n int, path string) {
		for range n {
			g.from(proxy, "", "GET", path, "x-request-id: 2f4b6c1e-9d3a-4e5f-8a7b-1c2d3e4f5a6b")
		}
	}
	send(requests, "/items")
	send(requests/4, "/nobody")
	// The lines come in turn, so that those of /nobody are after all others.
	logged := g.log.until(t, func(line string) bool { return at(t, line, "url", "path") == "/nobody" })
	if n := len(logged); n < few || n > requests-few {
		t.Errorf("%d of %d requests have a line, want half of them", n, requests)
	}
}
