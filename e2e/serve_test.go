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

// unavailable is Envoy's body if authorization is unavailable.
const unavailable = `"The gateway cannot tell at the moment whether this request may pass. Please try again."`

// served is a gateway in two processes: `gatepost serve`, and an Envoy that outlives it.
type served struct {
	*gateway
	Envoy *envoytest.Envoy
	// GRPC and HTTP are gatepost's addresses for Envoys.
	GRPC, HTTP string
}

// overTCP and overSockets return gatepost's addresses of each kind.
func overTCP(t *testing.T) (grpc, http string) { return envoytest.Addr(t), envoytest.Addr(t) }

func overSockets(t *testing.T) (grpc, http string) {
	dir, err := os.MkdirTemp("", "gatepost-sockets-") // t.TempDir is too long for a socket path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return "unix:" + dir + "/grpc", "unix:" + dir + "/http"
}

// serve is start with two processes that communicate over TCP.
func serve(t *testing.T, definitions string, s setup) *served {
	t.Helper()
	g := prepareServed(t, definitions, s, overTCP)
	g.Run()
	g.StartEnvoy(envoytest.Options{})
	g.AwaitReady()
	return g
}

// prepareServed is serve without starting the processes.
func prepareServed(t *testing.T, definitions string, s setup, over func(*testing.T) (grpc, http string)) *served {
	t.Helper()
	g := &served{gateway: prepare(t, definitions, s)}
	g.GRPC, g.HTTP = over(t)
	g.args[0] = "serve"
	g.args = append(g.args, "--grpc", g.GRPC, "--http", g.HTTP)
	return g
}

// StartEnvoy starts an Envoy for this gateway and stores it in Envoy.
func (g *served) StartEnvoy(options envoytest.Options) *envoytest.Envoy {
	g.t.Helper()
	options.GRPC, options.HTTP = g.GRPC, g.HTTP
	g.Envoy = envoytest.Start(g.t, options)
	return g.Envoy
}

// Status returns the status of the admin API.
func (g *gateway) Status() *gatewayv1.Status {
	g.t.Helper()
	status, err := g.tryStatus()
	if err != nil {
		g.t.Fatalf("getting the status: %v", err)
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

// Settled reports whether all connected Envoys, at least one, serve the published version.
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

// AwaitChange waits until another version than from is verified, and returns it.
func (g *gateway) AwaitChange(from string) string {
	g.t.Helper()
	version := from
	envoytest.Eventually(g.t, "a version after "+from+" to be verified", func() bool {
		status, err := g.tryStatus()
		if err != nil || status.GetVersion() == from {
			return false
		}
		version = status.GetVersion()
		return g.Settled()
	})
	return version
}

// Await repeats a request until it has this status.
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

// refuses503 checks that a response is the 503 for unavailable authorization: readable by a page,
// and with Retry-After.
func refuses503(t *testing.T, what string, got answer) {
	t.Helper()
	want(t, what, got, http.StatusServiceUnavailable, unavailable)
	wantHeader(t, what, got, "Content-Type", "application/json")
	wantHeader(t, what, got, "Access-Control-Allow-Origin", "https://app.example")
	if got.Header.Get("Retry-After") == "" {
		t.Errorf("%s: no Retry-After in %v", what, got.Header)
	}
}

// gatepost runs one command in an empty folder and returns its output and exit code. env is the
// whole environment.
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

// ExitCode waits for the process and returns its exit code.
func (g *gateway) ExitCode() int {
	g.t.Helper()
	select {
	case <-g.exited:
	case <-time.After(envoytest.Deadline):
		g.t.Fatal("gatepost does not end")
	}
	return g.command.ProcessState.ExitCode()
}

// gone reports whether the process has exited.
func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// lines returns the lines of a log that contain all of the words.
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
