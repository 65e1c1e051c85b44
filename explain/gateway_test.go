package explain

import (
	"strings"
	"testing"
	"time"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"
	"gatepost/xds"
)

// at returns explainers for a gateway that serves a version and withholds some services.
func at(t *testing.T, w *world, text string, withheld ...string) (with, without *Explainer) {
	t.Helper()
	d := w.serve(text, withheld...)
	opts := w.options()
	opts.Withheld = withheld
	snapshot, err := xds.Build(d.Gateway, opts)
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{Address: "gate:1", Status: &gatewayv1.Status{Version: snapshot.Version, Withheld: withheld}}
	if with, err = New(Config{Definitions: d, Options: w.options(), Sessions: w.sessions, Gateway: g}); err != nil {
		t.Fatal(err)
	}
	if without, err = New(Config{Definitions: d, Options: w.options(), Gateway: g}); err != nil {
		t.Fatal(err)
	}
	without.sessions = nil // no session lookups
	return with, without
}

// TestWithheldServicesMatchARealEnvoy compares whole responses.
func TestWithheldServicesMatchARealEnvoy(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]string{"every origin": "", "listed origins": origins, "credentials": origins + "cors: {allow_credentials: true, expose_headers: [x-total]}\n"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			alice := w.sessions.open(t, tokens.FormatUUID, "alice", time.Hour)
			reader := w.sessions.open(t, tokens.FormatUUID, "reader", time.Hour, "read")
			with, without := at(t, w, "listen: "+w.addr+"\n"+more+strings.ReplaceAll(shop, "http://items:8080", "http://"+w.upstreams["a"].addr), "orders", "prices", "live")
			w.awaitServedBy(t, with)
			seen := map[string]int{}
			for _, origin := range []string{"", " [Origin: https://shop.example]", " [Origin: https://evil.example]"} {
				for _, line := range []string{
					"GET /orders/5 [Authorization: " + alice + "]", "HEAD /orders [Authorization: " + alice + "]", "GET /orders", "PUT /orders",
					"GET /orders/prices/7?a=b [Authorization: " + reader + "]", "GET /orders/prices [Authorization: " + alice + "]",
					"GET /live [Connection: Upgrade] [Upgrade: websocket]", "GET /live", "OPTIONS /live [Access-Control-Request-Method: GET]", "GET /items",
				} {
					seen[w.compare(t, with, without, requestOf(line+origin))]++
				}
			}
			if seen["withheld"] < 5 || seen["forwarded"] == 0 {
				t.Errorf("outcomes: %v", seen)
			}
		})
	}
}

// A gateway with Redis has filters that one without does not have. Its status does not tell which it is.
func TestTheVersionOfAGatewayIsKnownWithRedisAndWithout(t *testing.T) {
	d, err := definitions.Parse("gateway.yaml", []byte(`services: [{name: a, path: /a, authenticate: false, upstreams: ["http://a"]}]`))
	if err != nil {
		t.Fatal(err)
	}
	for _, withRedis := range []bool{true, false} {
		opts := options
		opts.ClusterLimits = withRedis
		snapshot, err := xds.Build(d.Gateway, opts)
		if err != nil {
			t.Fatal(err)
		}
		e, err := New(Config{Definitions: d, Options: options, Gateway: &Gateway{Status: &gatewayv1.Status{Version: snapshot.Version}}})
		if err != nil || !e.isServed {
			t.Errorf("with Redis: %v: the definitions are not served, %v", withRedis, err)
		}
	}
}
