package admin

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/prometheus/client_golang/prometheus"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

func TestOpenAPIDescribesTheCallsThatAreServedAndNoOther(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	var described []string
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+path)
		}
	}
	served := newKit(t).calls()
	for _, pattern := range slices.Sorted(maps.Keys(served)) {
		if !slices.Contains(described, pattern) {
			t.Errorf("openapi.yaml does not describe %s", pattern)
		}
	}
	slices.Sort(described)
	for _, pattern := range described {
		if _, isServed := served[pattern]; !isServed {
			t.Errorf("openapi.yaml describes %s, which is not served", pattern)
		}
	}
}

// TestTheOverviewHasTheCountsOfTheMetrics: of logins and decisions, and whether tokens are answered from memory.
func TestTheOverviewHasTheCountsOfTheMetrics(t *testing.T) {
	t.Parallel()
	for _, held := range []float64{0, 1} {
		k := newKit(t)
		registry := prometheus.NewRegistry()
		k.config.Metrics = registry
		lease := prometheus.NewGauge(prometheus.GaugeOpts{Name: "gatepost_cache_lease_held"})
		logins := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatepost_logins_total"}, []string{"outcome"})
		decisions := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "gatepost_decisions_total"}, []string{"service", "decision"})
		registry.MustRegister(lease, logins, decisions)
		lease.Set(held)
		logins.WithLabelValues("ok").Add(2)
		decisions.WithLabelValues("orders", "deny").Add(3)
		decisions.WithLabelValues("items", "deny").Add(4)
		var got Overview
		if err := json.Unmarshal(k.ask("GET", "/api/v1/overview").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.FromMemory != (held == 1) || got.Logins["ok"] != 2 || got.Decisions["deny"] != 7 {
			t.Errorf("the overview is %+v, with the lease held: %v", got, held)
		}
	}
}

// TestTheOverviewShowsWhoChecksTokens: it has what /api/v1/status has.
func TestTheOverviewShowsWhoChecksTokens(t *testing.T) {
	t.Parallel()
	for _, m := range []*gatewayv1.ModuleStatus{nil, {Reason: "--module off"}, {Library: "/m.so", Table: "/t"}} {
		k := newKit(t)
		k.config.Status = func() *gatewayv1.Status { return &gatewayv1.Status{Module: m} }
		var got Overview
		if err := json.Unmarshal(k.ask("GET", "/api/v1/overview").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got.InEnvoy != (m.GetLibrary() != "") {
			t.Errorf("the overview has in_envoy %v, and the module is %v", got.InEnvoy, m)
		}
	}
}

// TestThePageHasItsPolicyOnEachFile: it loads nothing from elsewhere, makes no HTML of text, is in no frame, and its
// address is sent to nobody.
func TestThePageHasItsPolicyOnEachFile(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	for pattern := range pageFiles {
		path := strings.TrimSuffix(pattern, "{$}")
		got := k.ask("GET", path).Header()
		policy := strings.Split(got.Get("Content-Security-Policy"), "; ")
		for _, directive := range []string{
			"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:", "base-uri 'none'",
			"form-action 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'", "trusted-types 'none'",
		} {
			if !slices.Contains(policy, directive) {
				t.Errorf("the policy of %s is %q, without %s", path, policy, directive)
			}
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin", "Cache-Control": "no-cache",
		} {
			if got.Get(name) != want {
				t.Errorf("%s of %s is %q, want %s", name, path, got.Get(name), want)
			}
		}
	}
}

// TestThePageIsSmall: its files are compressed by nobody on loopback, and over a slow tunnel they count.
func TestThePageIsSmall(t *testing.T) {
	t.Parallel()
	const most = 60_000 // bytes, as a proxy would compress them
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	for _, name := range pageFiles {
		content, err := dist.ReadFile("page/dist/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(content)
	}
	if err := w.Close(); err != nil || packed.Len() > most {
		t.Errorf("%d bytes, %v; want at most %d", packed.Len(), err, most)
	}
}

func TestTheOverviewCountsTheEnvoysThatAnswerWithThePublishedVersion(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	k.config.Status = func() *gatewayv1.Status {
		return &gatewayv1.Status{Version: "v2", Active: "v1", Envoys: []*gatewayv1.EnvoyStatus{
			{Node: "current", Acked: "v2", Serving: "v2", Proven: true},
			{Node: "asked", Acked: "v2", Serving: "v1"},
			{Node: "behind", Acked: "v1", Serving: "v1", Proven: true},
		}}
	}
	var got Overview
	if err := json.Unmarshal(k.ask("GET", "/api/v1/overview").Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Envoys != 3 || got.Verified != 1 || got.Version != "v2" {
		t.Errorf("the overview is %+v, want 1 of 3 Envoys verified", got)
	}
}
