package explain

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"golang.org/x/tools/txtar"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/xds"
)

// corpus returns all definitions files in the project's tests, valid and invalid.
func corpus(t testing.TB) []string {
	t.Helper()
	var texts []string
	for _, pattern := range []string{"../definitions/testdata/*.txtar", "../definitions/testdata/good/*.txtar", "../xds/testdata/golden/*.txtar"} {
		archives, err := filepath.Glob(pattern)
		if err != nil || len(archives) == 0 {
			t.Fatalf("no archives %s: %v", pattern, err)
		}
		for _, path := range archives {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range archive.Files {
				isResource := strings.Contains(path, "/golden/") && file.Name != "definitions.yaml"
				if filepath.Ext(file.Name) == ".yaml" && !isResource {
					texts = append(texts, string(file.Data))
				}
			}
		}
	}
	return texts
}

// resources returns what Envoy gets for a text, or nil if the text is rejected. Accepted
// definitions must build, validate and be fully modelled.
func resources(t testing.TB, text string) *xds.Snapshot {
	t.Helper()
	d, err := definitions.Parse("gateway.yaml", []byte(text))
	if err != nil {
		return nil
	}
	snapshot, err := xds.Build(d.Gateway, options)
	if err != nil {
		t.Fatalf("is taken and cannot be built: %v\n%s", err, text)
	}
	for _, typeURL := range []string{resourcev3.ListenerType, resourcev3.ScopedRouteType, resourcev3.ClusterType} {
		ofType, err := snapshot.Resources(typeURL)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range ofType {
			if err := r.(interface {
				types.Resource
				ValidateAll() error
			}).ValidateAll(); err != nil {
				t.Fatalf("is taken and breaks a rule of Envoy's: %v\n%s", err, text)
			}
		}
	}
	e, err := New(Config{Definitions: d, Options: options})
	if err != nil {
		t.Fatalf("cannot be explained: %v\n%s", err, text)
	}
	if len(e.unsure) > 0 {
		t.Fatalf("explain does not know: %v\n%s", e.unsure, text)
	}
	for _, s := range d.Gateway.Services {
		host := hostOf(s)
		a, err := e.Explain(t.Context(), Request{Target: s.Path, Header: []Field{{"Host", host}}})
		if err != nil || a.Service == nil || a.Service.Name != s.Name {
			t.Fatalf("%s%s is not taken by %q: %+v %v\n%s", host, s.Path, s.Name, a, err, text)
		}
	}
	return snapshot
}

// hostOf returns a host for which no service is more specific than s.
func hostOf(s *definitions.Service) string {
	if len(s.Hosts) == 0 {
		return "zz"
	}
	return strings.Replace(s.Hosts[0], "*", "zz", 1)
}

// FuzzDefinitionsToEnvoy checks that every text is either rejected or results in valid resources.
func FuzzDefinitionsToEnvoy(f *testing.F) {
	for _, text := range corpus(f) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { resources(t, text) })
}

// TestEnvoyAcceptsValidDefinitions validates the configuration with a real Envoy: for the project's
// definitions files, for random definitions, and for definitions in which a few words were
// replaced.
func TestEnvoyAcceptsValidDefinitions(t *testing.T) {
	t.Parallel()
	envoytest.Require(t)
	d := dice{rand.New(rand.NewPCG(1, 1))}
	texts := corpus(t)
	for range 12 {
		texts = append(texts, d.definitions("127.0.0.1:5500", []string{"http://127.0.0.1:8080", "http://orders:8080"}))
	}
	for range 400 {
		texts = append(texts, d.reworded(texts[d.IntN(len(texts))], texts[d.IntN(len(texts))]))
	}
	most := 16 // each takes Envoy some time
	if testing.Short() {
		most = 4
	}
	d.Shuffle(len(texts), func(i, j int) { texts[i], texts[j] = texts[j], texts[i] })
	_, noRoots := os.Stat(xds.DefaultCAFile)
	taken, asked := map[string]bool{}, 0
	for _, text := range texts {
		snapshot := resources(t, text)
		if snapshot == nil || taken[text] || noRoots != nil && strings.Contains(text, "https://") || asked == most {
			continue
		}
		taken[text] = true
		asked++
		static, err := snapshot.Bootstrap(options)
		if err != nil {
			t.Fatal(err)
		}
		if verdict := envoytest.Validate(t, static); verdict != "" {
			t.Errorf("Envoy: %s\n%s", verdict, text)
		}
	}
	if asked < most {
		t.Errorf("Envoy validated %d definitions, want %d", asked, most)
	}
}

// reworded replaces some words of text by words of other.
func (d dice) reworded(text, other string) string {
	split := func(s string) []string { return strings.SplitAfterN(s, " ", -1) }
	words, others := split(text), split(other)
	for range 1 + d.IntN(3) {
		words[d.IntN(len(words))] = others[d.IntN(len(others))]
	}
	return strings.Join(words, "")
}

// FuzzExplain checks that every request gets an explanation or an error, and that a forwarded
// request goes to the service that owns the path.
func FuzzExplain(f *testing.F) {
	d, err := definitions.Parse("gateway.yaml", []byte(shop))
	if err != nil {
		f.Fatal(err)
	}
	e, err := New(Config{Definitions: d, Options: options})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("GET", "/orders/5?x=1", "Origin", "https://shop.example")
	f.Add("OPTIONS", "/items/..;/%2e%2E\\a", "Access-Control-Request-Method", "GET")
	f.Add("POST", "http://h:1/%%300", "Host", "")
	for _, piece := range pieces {
		f.Add("GET", "/items"+piece+"5", "Authorization", "Bearer x")
	}
	f.Fuzz(func(t *testing.T, method, target, name, value string) {
		a, err := e.Explain(t.Context(), Request{Method: method, Target: target, Header: []Field{{"Host", "h"}, {name, value}}})
		if err != nil {
			return
		}
		for _, o := range a.Outcomes {
			if (o.Forward == nil) == (o.Status == 0) {
				t.Fatalf("want either a response or a forwarded request: %+v", o)
			}
			if o.Forward == nil || o.Forward.TokenHandler {
				continue
			}
			if path := strings.ToLower(a.Path); a.Service == nil || path != a.Service.Path && !strings.HasPrefix(path, a.Service.Path+"/") {
				t.Fatalf("%q is matched as %q and goes to %+v", target, a.Path, a.Service)
			}
			for segment := range strings.SplitSeq(a.Path, "/") {
				if segment == "." || segment == ".." {
					t.Fatalf("%q is matched as %q", target, a.Path)
				}
			}
		}
	})
}
