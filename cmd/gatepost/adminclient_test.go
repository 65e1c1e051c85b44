package main

import (
	"strings"
	"testing"

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
