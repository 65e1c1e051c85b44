package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gatepost/admin"
	"gatepost/authz"
)

func TestTopShowsRatesAndWhatIsWrong(t *testing.T) {
	t.Parallel()
	at := func(seconds int, allowed float64, requests uint64) *topState {
		return &topState{
			overview: admin.Overview{
				GatepostVersion: "1.0.0", Now: time.Unix(int64(seconds), 0), Checks: map[string]string{"store": "out of reach", "envoy": "ok"},
				Decisions: map[string]float64{"allow": allowed}, Logins: map[string]float64{"opened": 1, "unreachable": allowed / 2, "busy": 0},
			},
			services: admin.Services{Services: []admin.Service{{
				Name: "orders", Path: "/orders", State: admin.StateServed,
				Upstreams: []admin.Upstream{{Health: admin.HealthHealthy, Requests: requests}, {Health: admin.HealthResting, Requests: requests}},
			}}},
			denials: []authz.Denial{{Service: "orders", Reason: "token_missing", Method: "GET", Path: "/orders/\x1b[2J"}},
			envoys:  []byte("n1\tv1\tyes\t-\n"),
		}
	}
	var first, second strings.Builder
	at(0, 10, 5).print(&first, nil, 0)
	at(2, 30, 15).print(&second, at(0, 10, 5), 0)
	for _, want := range []string{"gatepost 1.0.0, not ready", "store: out of reach", "allow 10,", "\nlogins opened 1 unreachable 5\n", "orders   /orders  served  1/2 healthy  10 ", "n1", "GET /orders/?[2J"} {
		if !strings.Contains(first.String(), want) {
			t.Errorf("got\n%s\nwant %q in it", &first, want)
		}
	}
	for _, want := range []string{"allow 10.0/s", "\nlogins unreachable 5.0/s\n", "1/2 healthy  10.0/s"} {
		if !strings.Contains(second.String(), want) {
			t.Errorf("got\n%s\nwant %q in it", &second, want)
		}
	}
}

func TestTopFitsIntoTheTerminal(t *testing.T) {
	t.Parallel()
	state := &topState{
		overview: admin.Overview{Checks: map[string]string{"store": "out of reach"}}, envoys: []byte("n1\tv1\tyes\t-\n"),
		denials: []authz.Denial{{Service: "orders"}, {Service: "orders"}},
	}
	for i := range 40 {
		state.services.Services = append(state.services.Services, admin.Service{
			Name: fmt.Sprintf("s%d", i), Upstreams: []admin.Upstream{{Requests: uint64(i)}},
		})
	}
	for _, height := range []int{20, 24, 50, 200} {
		var out strings.Builder
		state.print(&out, nil, height)
		lines := strings.Count(out.String(), "\n") + 1 // the cursor is in the last one
		if lines > height || height == 24 && lines != height || !strings.Contains(out.String(), "s39") || !strings.Contains(out.String(), "DENIED") {
			t.Errorf("%d lines of %d:\n%s", lines, height, &out)
		}
		if cut := strings.Contains(out.String(), "more\n"); cut != (height < 55) {
			t.Errorf("of %d lines services were left out: %v", height, cut)
		}
	}
}
