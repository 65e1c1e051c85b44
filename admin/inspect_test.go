package admin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/definitions"
	"gatepost/xds"
)

func TestConfigIsDumpedWholeOrByService(t *testing.T) {
	d, err := definitions.Parse("gatepost.yaml", []byte(`services: [{name: a, path: /a, upstreams: ["http://127.0.0.1:1"]}, {name: b, path: /b, upstreams: ["http://127.0.0.1:2"]}]`))
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := xds.Build(d.Gateway, xds.Options{GRPCCluster: "grpc", HTTPCluster: "http", CAFile: xds.DefaultCAFile})
	if err != nil {
		t.Fatal(err)
	}
	var served *xds.Snapshot
	s, err := New(Config{Local: true, Snapshot: func() *xds.Snapshot { return served }, Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string, want int) (dump xds.Dump) {
		t.Helper()
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
		if w.Code != want {
			t.Fatalf("GET %s: %d %s, want %d", path, w.Code, w.Body, want)
		}
		if want == http.StatusOK {
			if err := json.Unmarshal(w.Body.Bytes(), &dump); err != nil {
				t.Fatal(err)
			}
		}
		return dump
	}
	get("/api/v1/config", http.StatusServiceUnavailable)
	served = snapshot
	whole := get("/api/v1/config", http.StatusOK)
	if whole.Version != snapshot.Version || len(whole.Listeners) != 1 || len(whole.Scopes) < 4 {
		t.Errorf("version %s, %d listeners, %d scopes", whole.Version, len(whole.Listeners), len(whole.Scopes))
	}
	one := get("/api/v1/config?service=a", http.StatusOK)
	if len(one.Listeners) != 0 || len(one.Scopes) != 1 || len(one.Clusters) != 1 {
		t.Errorf("one service has %d listeners, %d scopes, %d clusters", len(one.Listeners), len(one.Scopes), len(one.Clusters))
	}
	get("/api/v1/config?service=c", http.StatusNotFound)
}

func TestProfilesAreServedOnlyIfEnabled(t *testing.T) {
	for asked, want := range map[bool]int{false: http.StatusNotFound, true: http.StatusOK} {
		s, err := New(Config{Local: true, Profiles: asked, Metrics: prometheus.NewRegistry()})
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/debug/pprof/cmdline", nil))
		if w.Code != want {
			t.Errorf("profiles enabled: %v: %d, want %d", asked, w.Code, want)
		}
		through := httptest.NewRequest(http.MethodGet, "http://localhost/debug/pprof/cmdline", nil)
		through.Header.Set("X-Envoy-External-Address", "192.0.2.1")
		w = httptest.NewRecorder()
		if s.ServeHTTP(w, through); w.Code == http.StatusOK {
			t.Error("a client of the gateway reads profiles")
		}
	}
}
