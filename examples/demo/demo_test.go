// Package demo tests that the demo's files are valid and current.
package demo

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write envoy/envoy.yaml anew")

const root = "../.."

func TestBootstrapIsCurrent(t *testing.T) {
	const file = "envoy/envoy.yaml"
	command := strings.Fields("bootstrap --grpc unix:/run/gatepost/grpc.sock --http unix:/run/gatepost/http.sock --envoy-host envoy")
	want := "# Where Envoy finds Gatepost; all else comes from there. Made by\n" +
		"#   gatepost " + strings.Join(command, " ") + "\n" + gatepost(t, command...)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is stale: go test ./examples/demo -update. Gatepost prints now:\n%s", file, want)
	}
}

func TestDefinitionsAreValid(t *testing.T) {
	gatepost(t, "validate", "definitions/gatepost.yaml", "local/gatepost.yaml")
}

// Both ways to run the demo show the same gateway: the definitions differ only in addresses.
func TestDefinitionsAreTheSameDemo(t *testing.T) {
	compose, local := definitions(t, "definitions"), definitions(t, "local")
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

// definitions reads a definitions file without its first line, which describes the file.
func definitions(t *testing.T, dir string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "gatepost.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(content), "\n")
	return rest
}

// gatepost runs the real program without this shell's environment and returns its output.
func gatepost(t *testing.T, args ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "gatepost")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, root+"/cmd/gatepost").CombinedOutput(); err != nil {
		t.Fatalf("building gatepost: %v\n%s", err, out)
	}
	command := exec.CommandContext(t.Context(), binary, args...)
	command.Env = []string{}
	var stderr strings.Builder
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("gatepost %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}
