package admin

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

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
