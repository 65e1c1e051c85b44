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
	if err := build(binary, "gatepost/cmd/gatepost"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// race is -race if there is a race detector, which needs a C compiler. These tests themselves need none: each looks at
// a program from outside.
var race = os.Getenv("GATEPOST_RACE")

// racing returns a gatepost with the race detector, for tests of what happens at the same time. It takes four times the
// processor time, so the others use one without.
func racing(t *testing.T) (program string) {
	t.Helper()
	program, err := buildRacing()
	must(t, err)
	return program
}

var buildRacing = sync.OnceValues(func() (program string, err error) {
	if race == "" {
		return binary, nil
	}
	program = binary + "-racing"
	return program, build(program, "gatepost/cmd/gatepost", race)
})

// build builds a program with the tags of a release and more arguments of go build. Without the race detector it shares
// the compiled packages of make build.
func build(path, program string, more ...string) error {
	args := slices.Concat([]string{"build", "-tags", "grpcnotrace,vtprotobuf", "-o", path}, more, []string{program})
	command := exec.Command("go", args...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if race != "" && slices.Contains(more, race) {
		command.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", program, err, out)
	}
	return nil
}
