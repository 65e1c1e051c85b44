package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const demo = "../../examples/demo"

func TestBootstrapOfTheDemoIsCurrent(t *testing.T) {
	file := filepath.Join(demo, "envoy/envoy.yaml")
	command := "bootstrap --grpc unix:/run/gatepost/grpc.sock --http unix:/run/gatepost/http.sock --envoy-host envoy" +
		" --envoy-admin unix:/run/envoy/admin.sock"
	want := "# Where Envoy finds Gatepost; all else comes from there. Made by\n" +
		"#   gatepost " + command + "\n" + printed(t, strings.Fields(command)...)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("%s is stale: go test ./cmd/gatepost -update (%v). Gatepost prints now:\n%s", file, err, want)
	}
}

func TestDefinitionsOfTheDemoAreValid(t *testing.T) {
	printed(t, "validate", filepath.Join(demo, "definitions/gatepost.yaml"), filepath.Join(demo, "local/gatepost.yaml"))
}

// Both ways to run the demo show the same gateway: the definitions differ only in addresses.
func TestDefinitionsOfTheDemoAreTheSame(t *testing.T) {
	compose, local := demoDefinitions(t, "definitions"), demoDefinitions(t, "local")
	local = strings.NewReplacer(
		"listen: 127.0.0.1:5500", "listen: 0.0.0.0:5500",
		"http://127.0.0.1:8081", "http://users:8080",
		"http://127.0.0.1:8082", "http://orders:8080",
		"http://127.0.0.1:8083", "http://items:8080",
	).Replace(local)
	if compose != local {
		t.Errorf("for compose:\n%s\nfor make run, with the addresses of compose:\n%s", compose, local)
	}
}

// demoDefinitions reads a definitions file without its first line, which describes the file.
func demoDefinitions(t *testing.T, dir string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(demo, dir, "gatepost.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(content), "\n")
	return rest
}

// printed runs a command, which must succeed, and returns its output.
func printed(t *testing.T, args ...string) string {
	t.Helper()
	var out, problems bytes.Buffer
	if code := gatepost(t.Context(), args, &out, &problems); code != exitDone {
		t.Fatalf("gatepost %q: exit code %d\n%s", args, code, &problems)
	}
	return out.String()
}
