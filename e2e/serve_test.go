package e2e

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"gatepost/envoy/envoytest"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// page is the origin of a page in a browser, as a header.
const page = "Origin: https://app.example"

// unavailable is what Envoy says where nobody can tell whether a request may pass.
const unavailable = `"The gateway cannot tell at the moment whether this request may pass. Please try again."`

// served is a gateway in two processes: `gatepost serve`, and an Envoy that lives on while that is away.
type served struct {
	*gateway
	Envoy *envoytest.Envoy
	// GRPC and HTTP are where its Envoy, or another one, reaches gatepost.
	GRPC, HTTP string
}

// overTCP and overSockets are the two ways in which an Envoy reaches gatepost.
func overTCP(t *testing.T) (grpc, http string) { return envoytest.Addr(t), envoytest.Addr(t) }

func overSockets(t *testing.T) (grpc, http string) {
	dir, err := os.MkdirTemp("", "gatepost-sockets-") // t.TempDir is too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return "unix:" + dir + "/grpc", "unix:" + dir + "/http"
}

// serve is start in two processes that talk over TCP.
func serve(t *testing.T, definitions string, s setup) *served {
	t.Helper()
	g := prepareServed(t, definitions, s, overTCP)
	g.Run()
	g.StartEnvoy(envoytest.Options{})
	g.AwaitReady()
	return g
}

// prepareServed is serve without the starting.
func prepareServed(t *testing.T, definitions string, s setup, over func(*testing.T) (grpc, http string)) *served {
	t.Helper()
	g := &served{gateway: prepare(t, definitions, s)}
	g.GRPC, g.HTTP = over(t)
	g.args[0] = "serve"
	g.args = append(g.args, "--grpc", g.GRPC, "--http", g.HTTP)
	return g
}

// StartEnvoy starts an Envoy for this gateway, which Envoy then is.
func (g *served) StartEnvoy(options envoytest.Options) *envoytest.Envoy {
	g.t.Helper()
	options.GRPC, options.HTTP = g.GRPC, g.HTTP
	g.Envoy = envoytest.Start(g.t, options)
	return g.Envoy
}

// Status is what the admin address tells of the gateway.
func (g *gateway) Status() *gatewayv1.Status {
	g.t.Helper()
	status, err := g.tryStatus()
	if err != nil {
		g.t.Fatalf("asking for the status: %v", err)
	}
	return status
}

func (g *gateway) tryStatus() (*gatewayv1.Status, error) {
	answer, err := http.Get("http://" + g.Admin + "/api/v1/status")
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	status := new(gatewayv1.Status)
	return status, protojson.Unmarshal(body, status)
}

// Settled says whether every connected Envoy, one at the least, serves what is published.
func (g *gateway) Settled() bool {
	status, err := g.tryStatus()
	if err != nil || len(status.GetEnvoys()) == 0 {
		return false
	}
	for _, e := range status.GetEnvoys() {
		if e.GetAcked() != status.GetVersion() || !e.GetProven() {
			return false
		}
	}
	return true
}

// AwaitChange waits until another version than the given one is proven, and returns it.
func (g *gateway) AwaitChange(from string) string {
	g.t.Helper()
	version := from
	envoytest.Eventually(g.t, "a version after "+from+" to be proven", func() bool {
		status, err := g.tryStatus()
		if err != nil || status.GetVersion() == from {
			return false
		}
		version = status.GetVersion()
		return g.Settled()
	})
	return version
}

// Await polls a request until it gets this status.
func (g *gateway) Await(what string, status int, method, path, body string, headers ...string) answer {
	g.t.Helper()
	var last answer
	began := time.Now()
	envoytest.Eventually(g.t, what, func() bool {
		got, err := g.Try(method, path, body, headers...)
		last = got
		return err == nil && got.Status == status
	})
	g.t.Logf("%s: after %v", what, time.Since(began).Round(time.Millisecond))
	return last
}

// refuses503 fails the test where an answer is not the 503 of a gateway that cannot tell: one that a page may
// read, and that says when to try again.
func refuses503(t *testing.T, what string, got answer) {
	t.Helper()
	want(t, what, got, http.StatusServiceUnavailable, unavailable)
	wantHeader(t, what, got, "Content-Type", "application/json")
	wantHeader(t, what, got, "Access-Control-Allow-Origin", "https://app.example")
	if got.Header.Get("Retry-After") == "" {
		t.Errorf("%s: no Retry-After in %v", what, got.Header)
	}
}

// gatepost runs one command to its end, in an empty folder, and returns what it printed and its exit code. env is
// all of its environment.
func gatepost(t testing.TB, env []string, args ...string) (output string, code int) {
	t.Helper()
	var out bytes.Buffer
	command := exec.Command(binary, args...)
	command.Dir, command.Env = t.TempDir(), env
	command.Stdout, command.Stderr = &out, &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(envoytest.Deadline, func() { _ = command.Process.Kill() })
	defer timer.Stop()
	var exit *exec.ExitError
	if err := command.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), command.ProcessState.ExitCode()
}

// ExitCode is how the process ended: it waits for that.
func (g *gateway) ExitCode() int {
	g.t.Helper()
	select {
	case <-g.exited:
	case <-time.After(envoytest.Deadline):
		g.t.Fatal("gatepost does not end")
	}
	return g.command.ProcessState.ExitCode()
}

// gone says whether there is no such process any more.
func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// lines are those lines of a log that have all of the words.
func lines(log string, words ...string) []string {
	var found []string
	for line := range strings.Lines(log) {
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, word)
		}
		if all {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
