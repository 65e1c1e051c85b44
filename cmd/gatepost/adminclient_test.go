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
