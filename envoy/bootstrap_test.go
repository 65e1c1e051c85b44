package envoy_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/envoy"
	"gatepost/envoy/envoytest"
	"gatepost/testcert"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// bootstraps are bootstraps of each kind; each has a golden file in testdata.
var bootstraps = map[string]envoy.BootstrapOptions{
	"sidecar-by-name": {GRPC: "gatepost:18000", HTTP: "gatepost:18001", NodeID: "edge-1"},
	"sidecar-by-ip":   {GRPC: "127.0.0.1:18000", HTTP: "[::1]:18001", Admin: "127.0.0.1:9901", MaxConnections: 1000, MaxHeap: 256 << 20},
	"managed":         {GRPC: "unix:/run/gatepost/grpc.sock", HTTP: "unix:/run/gatepost/http.sock", Admin: "unix:/run/gatepost/admin.sock", NameServer: "127.0.0.1:5353"},
}

func TestBootstrapMatchesGoldenFileAndIsValid(t *testing.T) {
	t.Parallel()
	for name, opts := range bootstraps {
		t.Run(name, func(t *testing.T) {
			b, err := envoy.Bootstrap(opts)
			if err != nil {
				t.Fatal(err)
			}
			got, err := envoy.YAML(b)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the bootstrap differs from %s (-update rewrites it):\n%s", golden, cmp.Diff(string(want), string(got)))
			}
			if verdict := envoytest.Validate(t, b); verdict != "" {
				t.Errorf("Envoy rejects it: %s", verdict)
			}
		})
	}
}

// The certificate files must exist for the validation, so this test has no golden file.
func TestBootstrapWithMutualTLSIsValid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := testcert.New(t)
	ca.Write(filepath.Join(dir, envoy.TLSCA))
	ca.Issue(filepath.Join(dir, envoy.TLSCert), filepath.Join(dir, envoy.TLSKey))
	b, err := envoy.Bootstrap(envoy.BootstrapOptions{GRPC: "gatepost:18000", HTTP: "127.0.0.1:18001", TLS: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range b.GetStaticResources().GetClusters() {
		if c.GetTransportSocket() == nil {
			t.Errorf("%s has no TLS", c.GetName())
		}
	}
	if verdict := envoytest.Validate(t, b); verdict != "" {
		t.Errorf("Envoy rejects it: %s", verdict)
	}
	overSockets, err := envoy.Bootstrap(envoy.BootstrapOptions{GRPC: "unix:/run/grpc.sock", HTTP: "unix:/run/http.sock", TLS: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range overSockets.GetStaticResources().GetClusters() {
		if c.GetTransportSocket() != nil {
			t.Errorf("%s has TLS over a Unix socket", c.GetName())
		}
	}
}

func TestJSONEqualsYAML(t *testing.T) {
	want, err := envoy.Bootstrap(bootstraps["sidecar-by-ip"])
	if err != nil {
		t.Fatal(err)
	}
	text, err := envoy.JSON(want)
	if err != nil {
		t.Fatal(err)
	}
	var got bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(proto.Message(want), proto.Message(&got), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestBootstrapRejectsUnusableAddresses(t *testing.T) {
	const good = "127.0.0.1:18000"
	for name, tc := range map[string]struct {
		opts envoy.BootstrapOptions
		want string
	}{
		"none":                        {envoy.BootstrapOptions{HTTP: good}, "Gatepost's gRPC server"},
		"no port":                     {envoy.BootstrapOptions{GRPC: good, HTTP: "gatepost"}, "Gatepost's token handler"},
		"port 0":                      {envoy.BootstrapOptions{GRPC: "gatepost:0", HTTP: good}, "from 1 to 65535"},
		"a port too high":             {envoy.BootstrapOptions{GRPC: "gatepost:65536", HTTP: good}, "from 1 to 65535"},
		"no host":                     {envoy.BootstrapOptions{GRPC: ":18000", HTTP: good}, "has no host"},
		"a URL":                       {envoy.BootstrapOptions{GRPC: "http://gatepost:18000", HTTP: good}, "host:port or unix:/path"},
		"one to listen on":            {envoy.BootstrapOptions{GRPC: "0.0.0.0:18000", HTTP: good}, "give the one at which Envoy reaches Gatepost"},
		"one to listen on, IPv6":      {envoy.BootstrapOptions{GRPC: good, HTTP: "[::]:18001"}, "give the one at which Envoy reaches Gatepost"},
		"a socket by a relative path": {envoy.BootstrapOptions{GRPC: "unix:grpc.sock", HTTP: good}, "must be absolute"},
		"a socket by a long path":     {envoy.BootstrapOptions{GRPC: "unix:/" + strings.Repeat("x", 110), HTTP: good}, "must be shorter"},
		"TLS by a relative path":      {envoy.BootstrapOptions{GRPC: good, HTTP: good, TLS: "tls"}, "must be absolute"},
		"admin open to all":           {envoy.BootstrapOptions{GRPC: good, HTTP: good, Admin: "0.0.0.0:9901"}, "open to everyone"},
		"admin by a name":             {envoy.BootstrapOptions{GRPC: good, HTTP: good, Admin: "localhost:9901"}, "open to everyone"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := envoy.Bootstrap(tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q in it", err, tc.want)
			}
		})
	}
}

// A page in a browser on the same machine can post to a loopback port.
func TestAdminOverTCPCannotStopOrChangeEnvoy(t *testing.T) {
	t.Parallel()
	b, err := envoy.Bootstrap(bootstraps["sidecar-by-ip"])
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/quitquitquit", "/drain_listeners", "/healthcheck/fail", "/logging", "/runtime_modify", "/reset_counters", "/cpuprofiler", "/heapprofiler"} {
		for _, allowed := range b.GetAdmin().GetAllowPaths() {
			if strings.HasPrefix(path, allowed.GetPrefix()) {
				t.Errorf("%s is served", path)
			}
		}
	}
}
