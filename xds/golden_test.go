package xds

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"gatepost/envoy/envoytest"
	"gatepost/envoy/module/moduletest"
	"gatepost/testrun"
)

var update = flag.Bool("update", false, "write the golden files anew")

// baseline is the case in which everything is written out; the others leave out what is the same there.
const baseline = "no_services.txtar"

// TestDefinitionsBecomeResources: one case is one file, with the definitions and the resources made from them.
// Every output is shown to Envoy too.
func TestDefinitionsBecomeResources(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	files, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	base := resources(t, build(t, "services: []"))
	for i, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in := archive.Files[0]
			options := testOptions
			if strings.HasPrefix(filepath.Base(file), "module") {
				options.Module = Module{Library: "/run/gatepost/libgatepost-0123456789abcdef.so", Table: "/run/gatepost/decisions"}
			}
			if strings.HasPrefix(filepath.Base(file), "tls") {
				options.Certificates = []Certificate{
					{Name: "shop.pem", ServerNames: []string{"shop.example", "*.shop.example"}}, {Name: "other.pem", Default: true},
				}
			}
			options.ClusterLimits = strings.HasPrefix(filepath.Base(file), "cluster")
			snapshot := buildWith(t, string(in.Data), options)
			got := append([]txtar.File{in}, render(t, snapshot, base, filepath.Base(file) == baseline)...)
			if *update {
				archive.Files = got
				if err := os.WriteFile(file, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for i, f := range got {
				want := txtar.File{}
				if i < len(archive.Files) {
					want = archive.Files[i]
				}
				if diff := cmp.Diff(string(want.Data), string(f.Data)); diff != "" {
					t.Errorf("%s (-golden +got; go test -update writes it anew):\n%s", f.Name, diff)
				}
			}
			t.Run("Envoy takes it", func(t *testing.T) {
				if testing.Short() && i%5 > 0 {
					t.Skip("each takes Envoy some time: run all without -short")
				}
				if options.Module.Library != "" { // one that is there
					options.Module.Library = moduletest.Compile(t, "library")
					snapshot = buildWith(t, string(in.Data), options)
				}
				static, err := snapshot.Bootstrap(options)
				if err != nil {
					t.Fatal(err)
				}
				if verdict := envoytest.Validate(t, static); verdict != "" {
					t.Error(verdict)
				}
			})
		})
	}
}

// TestTheStaticFormIsTakenByEnvoy: what `gatepost validate` shows to Envoy.
func TestTheStaticFormIsTakenByEnvoy(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	b, err := build(t, `services:
  - {name: a, path: /a, upstreams: ["https://a.example"]}
  - {name: b, path: /b, upstreams: ["https://a.example", "https://b.example"], upstream_tls: {ca_file: ca, cert_file: c, key_file: k}}
  - {name: c, path: /c, upstreams: ["https://a.example"], upstream_tls: {ca_file: ca, cert_file: c, key_file: k, server_name: a}}
`).Bootstrap(testOptions)
	if err != nil {
		t.Fatal(err)
	}
	validate(t, b)
	if verdict := envoytest.Validate(t, b); verdict != "" {
		t.Error(verdict)
	}
}

// resources are all resources of a snapshot in the plain form of JSON, by type.
func resources(t testing.TB, s *Snapshot) map[string][]any {
	t.Helper()
	out := map[string][]any{}
	for file, typeURL := range map[string]string{
		"listeners.yaml": resourcev3.ListenerType, "routes.yaml": resourcev3.ScopedRouteType, "clusters.yaml": resourcev3.ClusterType,
	} {
		all := resourcesOf(s, typeURL)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(all[name])
			if err != nil {
				t.Fatal(err)
			}
			var plain any
			if err := json.Unmarshal(text, &plain); err != nil {
				t.Fatal(err)
			}
			out[file] = append(out[file], plain)
		}
	}
	return out
}

// render writes a snapshot as YAML, one file for each type; what is the same in the base goes by its name alone.
func render(t testing.TB, s *Snapshot, base map[string][]any, whole bool) []txtar.File {
	t.Helper()
	all := resources(t, s)
	if !whole {
		for _, file := range []string{"listeners.yaml", "clusters.yaml"} {
			all[file] = shortened(all[file], base[file])
		}
		shortenRoutes(all["routes.yaml"], base["routes.yaml"])
		shortenChains(all["listeners.yaml"], base["listeners.yaml"])
	}
	var out []txtar.File
	for _, file := range slices.Sorted(maps.Keys(all)) {
		var text bytes.Buffer
		enc := yaml.NewEncoder(&text)
		enc.SetIndent(2)
		if err := enc.Encode(all[file]); err != nil {
			t.Fatal(err)
		}
		out = append(out, txtar.File{Name: file, Data: text.Bytes()})
	}
	return out
}

// shortenRoutes shortens the routes in each scope.
func shortenRoutes(scopes, base []any) {
	var known []any
	for _, scope := range base {
		known = append(known, vhost(scope)["routes"].([]any)...)
	}
	frame := vhost(base[0])["typed_per_filter_config"]
	for _, scope := range scopes {
		vhost := vhost(scope)
		vhost["routes"] = shortened(vhost["routes"].([]any), known)
		if cmp.Equal(vhost["typed_per_filter_config"], frame) {
			vhost["typed_per_filter_config"] = "as in " + baseline
		}
	}
}

// shortenChains shortens the filters of each chain.
func shortenChains(listeners, base []any) {
	known := base[0].(map[string]any)["filter_chains"].([]any)[0].(map[string]any)["filters"]
	for _, listener := range listeners {
		fields, _ := listener.(map[string]any)
		chains, _ := fields["filter_chains"].([]any)
		for _, chain := range chains {
			if chain := chain.(map[string]any); cmp.Equal(chain["filters"], known) {
				chain["filters"] = "as in " + baseline
			}
		}
	}
}

func vhost(scope any) map[string]any {
	return scope.(map[string]any)["route_configuration"].(map[string]any)["virtual_hosts"].([]any)[0].(map[string]any)
}

func shortened(items, base []any) []any {
	out := make([]any, 0, len(items))
	for _, item := range items {
		if slices.ContainsFunc(base, func(b any) bool { return cmp.Equal(b, item) }) {
			name, _ := item.(map[string]any)["name"].(string)
			item = name + ", as in " + baseline
		}
		out = append(out, item)
	}
	return out
}
