package main

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"gatepost/envoy"
)

// TestMain lets the scripts run this program as the command gatepost.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gatepost": main})
}

// TestScripts runs the scripts in testdata/script, one per command. They use the Envoy in $ENVOY,
// if there is one (the condition `envoy`), and find no other.
func TestScripts(t *testing.T) {
	path, err := envoy.Find(os.Getenv("GATEPOST_ENVOY"))
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("the scripts need a real Envoy: %v", err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			commands, _, _ := strings.Cut(env.Getenv("PATH"), string(os.PathListSeparator))
			env.Setenv("PATH", commands)
			env.Setenv("ENVOY", path)
			return nil
		},
		Cmds:      map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "answers": answers},
		Condition: func(name string) (bool, error) { return name == "envoy" && path != "", nil },
	})
}

// exits runs a command and checks its exit code: exits CODE COMMAND...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exited *exec.ExitError
		if !errors.As(err, &exited) {
			ts.Fatalf("%v: %v", args[1:], err)
		}
		code = exited.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("%v: exit code %d, want %s", args[1:], code, args[0])
	}
}

// versionLine matches the version in an explanation, which depends on how Envoy's configuration is
// built.
var versionLine = regexp.MustCompile(`(?m)^  "?version"?:? +\S+\n`)

// answers compares an explanation, except its version, with a file: answers FILE.
func answers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: answers FILE")
	}
	got, want := ts.ReadFile("stdout"), ts.ReadFile(args[0])
	if !versionLine.MatchString(got) {
		ts.Fatalf("there is no version in\n%s", got)
	}
	if got = versionLine.ReplaceAllString(got, ""); got != want {
		ts.Fatalf("got\n%s\nwant %s\n%s", got, args[0], want)
	}
}
