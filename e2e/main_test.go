// Package e2e tests the whole gateway: it starts `gatepost run` like a user, with a real Envoy and
// a real store, and checks the responses and the requests that reach the upstreams.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
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
	if err := buildGatepost(binary); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// unraced is gatepost without the race detector, which takes several times the memory and, for ten thousand services,
// most of a minute.
var unraced = sync.OnceValues(func() (path string, err error) {
	if !raceEnabled {
		return binary, nil
	}
	path = binary + "-unraced"
	return path, buildGatepost(path, "-race=false")
})

// buildGatepost builds the program with the tags of a release, and with more arguments of go build.
func buildGatepost(path string, more ...string) error {
	args := []string{"build", "-tags", "grpcnotrace,vtprotobuf", "-o", path}
	if raceEnabled {
		args = append(args, "-race") // detect races in the process under test too
	}
	if out, err := exec.Command("go", slices.Concat(args, more, []string{"gatepost/cmd/gatepost"})...).CombinedOutput(); err != nil {
		return fmt.Errorf("building gatepost: %w\n%s", err, out)
	}
	return nil
}
