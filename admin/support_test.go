package admin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"strings"
	"testing"

	"gatepost/authz"
	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/xds"
)

// TestTheSupportBundleHasNoSecrets: values of headers for upstreams and queries can be keys, and comments can have
// anything.
func TestTheSupportBundleHasNoSecrets(t *testing.T) {
	t.Parallel()
	d, err := definitions.Parse("gatepost.yaml", []byte(`# the password is TOPSECRET
tokens: {authenticator: {url: "http://users.example/login?code=TOPSECRET"}}
services:
  - {name: a, path: /a, upstreams: ["http://127.0.0.1:1"], request_headers: {set: {x-api-key: "100%TOPSECRET"}}, response_headers: {set: {x-shown: here}}, health_check: {path: "/healthz?key=TOPSECRET"}}
`))
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := xds.Build(d.Gateway, xds.Options{GRPCCluster: "grpc", HTTPCluster: "http", CAFile: xds.DefaultCAFile})
	if err != nil {
		t.Fatal(err)
	}
	k := newKit(t)
	k.config.Definitions = func() *definitions.Definitions { return d }
	k.config.Snapshot = func() *xds.Snapshot { return snapshot }
	k.config.Status = func() *gatewayv1.Status {
		return &gatewayv1.Status{Former: []*gatewayv1.Service{d.Gateway.Services[0].Message()}}
	}
	k.config.Services = func(context.Context) Services { return Services{} }
	k.config.Denials = func() []authz.Denial { return nil }
	unzipped, err := gzip.NewReader(bytes.NewReader(k.ask("GET", "/api/v1/support").Body.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for archive := tar.NewReader(unzipped); ; {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		text := string(content)
		if strings.Contains(text, "TOPSECRET") {
			t.Errorf("%s has a secret: %s", header.Name, text)
		}
		if strings.Contains(text, "x-api-key") {
			seen++
			if !strings.Contains(text, "[redacted]") || !strings.Contains(text, "here") {
				t.Errorf("%s is %s", header.Name, text)
			}
		}
	}
	if seen != 3 {
		t.Errorf("%d files name the header, want the definitions, the status and the configuration of Envoy", seen)
	}
	if m := d.Gateway.Services[0].RequestHeaders; m.Set[0].Value != "100%TOPSECRET" {
		t.Errorf("the definitions that are served have %+v", m)
	}
}
