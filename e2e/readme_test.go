package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/testlog"
)

// step is a command of a page and the output shown below it.
type step struct {
	command string
	shown   []string // non-empty lines
}

// readmeSession returns the steps of the README's console block.
func readmeSession(t *testing.T, readme string) []step {
	t.Helper()
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(text), "```console\n")
	if !found {
		t.Fatalf("%s has no console block", readme)
	}
	block, _, _ = strings.Cut(block, "```")
	return readSteps(block)
}

// readSteps returns the steps of a console block.
func readSteps(block string) (steps []step) {
	for line := range strings.Lines(block) {
		line = strings.TrimRight(line, "\n")
		if command, isCommand := strings.CutPrefix(line, "$ "); isCommand {
			steps = append(steps, step{command: command})
		} else if line != "" {
			steps[len(steps)-1].shown = append(steps[len(steps)-1].shown, line)
		}
	}
	return steps
}

// script runs the steps in one shell, and marks the end of each output.
func script(steps []step) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "%s\nprintf '\\n%s\\n'\n", s.command, marker)
	}
	return b.String()
}

const marker = "----8<----"

// A GUID in the text stands for any GUID.
var guid = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)

// compare checks that each shown line is in the output, in the same order. The number of spaces
// does not matter, and … stands for any text.
func compare(t *testing.T, s step, answer string) {
	t.Helper()
	got := strings.Split(strings.ReplaceAll(guid.ReplaceAllString(answer, "GUID"), "\r", ""), "\n")
	for _, shown := range s.shown {
		pattern := regexp.QuoteMeta(spaced(guid.ReplaceAllString(shown, "GUID")))
		want := regexp.MustCompile("^" + strings.ReplaceAll(pattern, "…", ".*") + "$")
		at := slices.IndexFunc(got, func(line string) bool { return want.MatchString(spaced(line)) })
		if at < 0 {
			t.Errorf("$ %s\nthe page shows %q, which is not in the rest of the answer:\n%s", s.command, shown, strings.Join(got, "\n"))
			return
		}
		got = got[at+1:]
	}
}

// spaced replaces several spaces by one.
func spaced(line string) string { return strings.Join(strings.Fields(line), " ") }

// TestReadmeSession runs the README's `make run` and the commands after it.
func TestReadmeSession(t *testing.T) {
	t.Parallel()
	needPorts(t, "5500", "8081", "8082", "8083", "18002")
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, build := range [][]string{{"make", "build"}, {"go", "build", "-o", "bin/shop", "./examples/demo/shop"}} {
		command := exec.Command(build[0], build[1:]...) // a compiler without a cache takes minutes
		command.Dir = root
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", build, err, out)
		}
	}
	demo := exec.Command("make", "run")
	demo.Dir = root
	demo.Env = append(os.Environ(), "GATEPOST_ENVOY="+envoytest.Require(t))
	demo.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log := new(testlog.Buffer)
	demo.Stdout, demo.Stderr = log, log
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = demo.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-demo.Process.Pid, syscall.SIGINT) // as Ctrl-C does
		select {
		case <-ended:
		case <-time.After(envoytest.Deadline):
			_ = syscall.Kill(-demo.Process.Pid, syscall.SIGKILL)
			t.Error("make run did not end on SIGINT")
		}
		if t.Failed() {
			t.Logf("output of make run:\n%s", log.Tail(10_000))
		}
	})
	ready := &gateway{t: t, Admin: "127.0.0.1:18002", exited: ended, command: demo}
	ready.AwaitReady()
	envoytest.Eventually(t, "the shop", func() bool {
		answer, err := http.Get("http://127.0.0.1:5500/items")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})

	steps := readmeSession(t, filepath.Join(root, "README.md"))
	shell := exec.Command("bash", "-c", script(steps))
	var out, problems bytes.Buffer
	shell.Stdout, shell.Stderr = &out, &problems
	if err := shell.Run(); err != nil {
		t.Fatalf("running the README's commands: %v\n%s", err, problems.String())
	}
	answers := strings.Split(out.String(), "\n"+marker+"\n")
	for i, s := range steps {
		compare(t, s, answers[i])
	}
}
