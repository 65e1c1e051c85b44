// Package e2e tests the whole: it starts `gatepost run` as a user does, with a real Envoy and a real store, and
// looks at what clients get and at what reaches the upstreams.
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
	args := []string{"build", "-tags", "grpcnotrace,vtprotobuf", "-o", binary} // as it is shipped
	if raceEnabled {
		args = append(args, "-race") // a race in the process under test counts too
	}
	build := exec.Command("go", append(args, "gatepost/cmd/gatepost")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building gatepost: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}
