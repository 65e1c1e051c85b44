package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/convention"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

func TestStatusNamesTheServicesThatAreServedOtherwiseThanDefined(t *testing.T) {
	var out strings.Builder
	status := &gatewayv1.Status{Version: "v1", Source: "f.yaml", Withheld: []string{"fresh", "late"}, Former: []*gatewayv1.Service{{Name: "orders"}}}
	if err := printStatus(&out, status); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"withheld  fresh, late (503)\n", "former    orders\n"} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("got\n%s\nwant %q in it", &out, line)
		}
	}
}

func TestStatusShowsTheListeners(t *testing.T) {
	var out strings.Builder
	status := &gatewayv1.Status{Listeners: []*gatewayv1.ListenerStatus{
		{Protocol: "http", Address: "0.0.0.0:80", Redirect: true, ProxyProtocol: true},
		{Protocol: "https", Address: "0.0.0.0:443", MinVersion: "1.2", ClientCertificates: "required", Problem: "no certificate can be used"},
		{Protocol: "http", Address: "0.0.0.0:8080"},
	}}
	if err := printStatus(&out, status); err != nil {
		t.Fatal(err)
	}
	want := `LISTENER  ADDRESS       SETTINGS
http      0.0.0.0:80    redirects to https, PROXY protocol
https     0.0.0.0:443   not served: no certificate can be used, TLS 1.2 and later, client certificates required
http      0.0.0.0:8080  -
`
	if !strings.Contains(out.String(), want) {
		t.Errorf("got\n%s\nwant\n%s in it", &out, want)
	}
}

func TestStatusShowsTheLastRejectionAlsoIfItWasOvercome(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	for name, c := range map[string]struct {
		envoy *gatewayv1.EnvoyStatus
		want  string
	}{
		"none":             {&gatewayv1.EnvoyStatus{}, "-"},
		"an older gateway": {&gatewayv1.EnvoyStatus{Nack: "no"}, "no"},
		"now": {
			&gatewayv1.EnvoyStatus{Nack: "no", LastNack: &gatewayv1.Nack{Reason: "no", Type: "listener", Version: "v2", At: at}},
			"no (listener of version v2, 2026-01-02T03:04:05Z)",
		},
		"overcome": {
			&gatewayv1.EnvoyStatus{LastNack: &gatewayv1.Nack{Reason: "no\nand\x1b[2J", Type: "route", At: at}},
			"no and?[2J (route, 2026-01-02T03:04:05Z, overcome)",
		},
	} {
		if got := lastNack(c.envoy); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestStatusNamesTheConnectionsOfEnvoys(t *testing.T) {
	var out strings.Builder
	status := &gatewayv1.Status{Envoys: []*gatewayv1.EnvoyStatus{
		{Node: "a", Address: "@", Acked: "v1", Proven: true}, {Node: "b\x1b[2J", Address: "192.0.2.1:4321"},
	}}
	if err := printStatus(&out, status); err != nil {
		t.Fatal(err)
	}
	const want = `
ENVOY  ADDRESS         ACKED  VERIFIED  LAST NACK
a      Unix socket     v1     yes       -
b?[2J  192.0.2.1:4321  -      not yet   -
`
	if !strings.Contains(out.String(), want) {
		t.Errorf("got\n%s\nwant\n%s in it", &out, want)
	}
}

// TestStatusOfANewerGatewayIsRead: the API only gets more fields.
func TestStatusOfANewerGatewayIsRead(t *testing.T) {
	status, err := new(settings).readStatus([]byte(`{"version": "v1", "later": {"added": [1]}}`))
	if err != nil || status.GetVersion() != "v1" {
		t.Errorf("%v, %v", status, err)
	}
}

func TestStatusTellsAPublishedVersionFromTheActiveOne(t *testing.T) {
	for want, status := range map[string]*gatewayv1.Status{
		"serving   v1\nsource    -\n":               {Version: "v1", Active: "v1"},
		"published v2\nactive    v1\nsource    -\n": {Version: "v2", Active: "v1"},
		"published v2\nactive    -\nsource    -\n":  {Version: "v2", Listeners: []*gatewayv1.ListenerStatus{{Protocol: "http"}}},
		"published v2\nsource    -\n":               {Version: "v2"}, // of an older gateway
	} {
		var out strings.Builder
		if err := printStatus(&out, status); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(out.String(), want) {
			t.Errorf("got\n%s\nwant at first\n%s", &out, want)
		}
	}
}

// TestAnErrorOfTheAPIIsPrintedOnceAndAsText: that the gateway is not ready has its reasons on standard output alone.
func TestAnErrorOfTheAPIIsPrintedOnceAndAsText(t *testing.T) {
	t.Parallel()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			convention.WriteJSON(w, http.StatusServiceUnavailable, map[string]string{"envoy": "no Envoy\tis connected"})
			return
		}
		convention.WriteJSON(w, http.StatusUnauthorized, map[string]string{"error": "this call needs a\x1btoken"})
	}))
	defer api.Close()
	address := api.Listener.Addr().String()
	for name, want := range map[string][2]string{
		"health": {`{"envoy":"no Envoy\tis connected"}` + "\n", "the gateway on " + address + " is not ready"},
		"status": {"", "requesting " + address + ": 401 Unauthorized: this call needs a?token"},
	} {
		root := newRoot()
		var out strings.Builder
		root.SetOut(&out)
		root.SetArgs([]string{name, "--admin", address})
		err := root.ExecuteContext(t.Context())
		if err == nil || err.Error() != want[1] || out.String() != want[0] {
			t.Errorf("%s: %v and %q, want %q", name, err, out.String(), want)
		}
	}
}
