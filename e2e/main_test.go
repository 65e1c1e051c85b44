// Package e2e tests the whole gateway: it starts `gatepost run` like a user, with a real Envoy and
// a real store, and checks the responses and the requests that reach the upstreams.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binary is the gatepost that all tests of this package run.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gatepost-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a folder for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("../tools/module", "build").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "compiling the module for Envoy: %v\n%s", err, out)
		return 1
	}
	binary = filepath.Join(dir, "gatepost")
	args := []string{"build", "-tags", "grpcnotrace,vtprotobuf", "-o", binary} // as released
	if raceEnabled {
		args = append(args, "-race") // detect races in the process under test too
	}
	build := exec.Command("go", append(args, "gatepost/cmd/gatepost")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building gatepost: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}
