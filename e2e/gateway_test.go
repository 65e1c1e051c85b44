package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/testlog"
	"gatepost/testport"
)

// gateway is a running `gatepost run`: the sidecar and its Envoy.
type gateway struct {
	// Addr is the address of its Envoy, and URL the same with http:// before it. Admin is the
	// sidecar's admin address.
	Addr, URL, Admin string
	// File is the definitions file and Data the data directory. Tests may write to both.
	File, Data string

	// client sends requests that HTTP allows, and tls is the client's side of TLS. It is nil without TLS.
	client *http.Client
	tls    *tls.Config

	t       testing.TB
	program string // empty: binary
	dir     string // working directory; empty means the current one
	args    []string
	env     []string
	stderr  *os.File  // nil: log
	stdout  io.Writer // nil: log
	command *exec.Cmd
	exited  chan struct{}
	log     *testlog.Buffer
}

// setup are the options of a gateway under test.
type setup struct {
	// Redis is the URL of the token store. If it is empty, the embedded store is used.
	Redis string
	// Args are more arguments of `gatepost run`.
	Args []string
	// Env are more environment variables, NAME=value.
	Env []string
	// Program is the gatepost to run. If it is empty, it is the usual one.
	Program string
	// Stderr is the standard error of the process. If it is nil, the test reads it as the log.
	Stderr *os.File
	// Stdout receives the standard output of the process: the access log. If it is nil, it goes to the log.
	Stdout io.Writer
}

// start writes the definitions, prefixed with a free listen address, and runs a gateway with them.
// It returns when the gateway is ready. The gateway stops with the test.
func start(t testing.TB, definitions string, s setup) *gateway {
	t.Helper()
	g := prepare(t, definitions, s)
	g.Run()
	g.AwaitReady()
	return g
}

// prepare is start without starting the process.
func prepare(t testing.TB, definitions string, s setup) *gateway {
	t.Helper()
	addr, dir := envoytest.Addr(t), t.TempDir()
	g := &gateway{
		client: client, t: t, Addr: addr, URL: "http://" + addr, Admin: envoytest.Addr(t), Data: filepath.Join(dir, "data"),
		File: filepath.Join(dir, "definitions", "gatepost.yaml"), log: new(testlog.Buffer),
	}
	if err := os.Mkdir(filepath.Dir(g.File), 0o755); err != nil {
		t.Fatal(err)
	}
	g.Define(definitions)
	g.args = []string{
		"run", "--config", g.File, "--data", g.Data, "--admin", g.Admin,
		"--envoy", envoytest.Require(t), "--log-format", "json", "--log-level", "info",
	}
	if s.Redis != "" {
		g.args = append(g.args, "--redis", s.Redis)
	}
	g.args = append(g.args, s.Args...)
	g.program, g.env, g.stderr, g.stdout = s.Program, append(os.Environ(), s.Env...), s.Stderr, s.Stdout
	t.Cleanup(func() {
		g.Stop()
		if t.Failed() {
			t.Logf("the log of gatepost:\n%s", g.log.Tail(20_000))
		}
	})
	return g
}

// Define replaces the definitions file atomically by a rename. The listen address is prefixed.
func (g *gateway) Define(definitions string) {
	g.t.Helper()
	g.DefineExactly("listen: " + g.Addr + "\n" + definitions)
}

// DefineExactly is Define without the listen address.
func (g *gateway) DefineExactly(definitions string) {
	g.t.Helper()
	next := g.File + ".next"
	if err := os.WriteFile(next, []byte(definitions), 0o644); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(next, g.File); err != nil {
		g.t.Fatal(err)
	}
}

// Run starts the process and does not wait until it is ready.
func (g *gateway) Run() {
	g.t.Helper()
	g.command = exec.Command(cmp.Or(g.program, binary), g.args...)
	g.command.Env, g.command.Dir = g.env, g.dir
	g.command.Stdout, g.command.Stderr = g.log, g.log
	if g.stderr != nil {
		g.command.Stderr = g.stderr
	}
	if g.stdout != nil {
		g.command.Stdout = g.stdout
	}
	if err := g.command.Start(); err != nil {
		g.t.Fatalf("starting gatepost: %v", err)
	}
	command, exited := g.command, make(chan struct{})
	g.exited = exited
	go func() {
		_ = command.Wait()
		close(exited)
	}()
}

// AwaitReady waits until /readyz returns 200.
func (g *gateway) AwaitReady() {
	g.t.Helper()
	envoytest.Eventually(g.t, "the gateway to be ready", func() bool {
		select {
		case <-g.exited:
			g.t.Fatalf("gatepost ended: %v", g.command.ProcessState)
		default:
		}
		answer, err := http.Get("http://" + g.Admin + "/readyz")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
}

// Stop sends SIGTERM and returns when the process has exited. It may be called again.
func (g *gateway) Stop() { g.end(syscall.SIGTERM) }

// Kill sends SIGKILL; the Envoy dies too.
func (g *gateway) Kill() { g.end(syscall.SIGKILL) }

func (g *gateway) end(signal syscall.Signal) {
	if g.command == nil || g.command.Process == nil {
		return
	}
	_ = g.command.Process.Signal(signal)
	select {
	case <-g.exited:
	case <-time.After(envoytest.Deadline):
		_ = g.command.Process.Kill()
		<-g.exited
		g.t.Errorf("gatepost did not end on %v", signal)
	}
}

// Signal sends the gateway's process a signal.
func (g *gateway) Signal(signal syscall.Signal) {
	g.t.Helper()
	if err := g.command.Process.Signal(signal); err != nil {
		g.t.Fatal(err)
	}
}

// Freeze stops the process, and waits until each of its threads has stopped: on a busy machine, one can answer after
// the signal was sent. SIGCONT resumes it.
func (g *gateway) Freeze() {
	g.t.Helper()
	g.Signal(syscall.SIGSTOP)
	envoytest.Eventually(g.t, "all threads of gatepost to stop", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", g.command.Process.Pid))
		for _, thread := range threads {
			stat, err := os.ReadFile(thread)
			if err == nil && !bytes.Contains(stat, []byte(") T ")) {
				return false
			}
		}
		return err == nil && len(threads) > 0
	})
}

// Log returns the gateway's log so far. An event may be logged a moment after it has taken effect.
func (g *gateway) Log() string { return g.log.String() }

// Logged waits for the lines of the log that contain each word, and returns them. There must be n.
func (g *gateway) Logged(n int, words ...string) (found []string) {
	g.t.Helper()
	envoytest.Eventually(g.t, fmt.Sprintf("%d lines in the log with %q", n, words), func() bool {
		found = lines(g.Log(), words...)
		return len(found) >= n
	})
	if len(found) > n {
		g.t.Errorf("%d lines of the log have %q, want %d:\n%s", len(found), words, n, strings.Join(found, "\n"))
	}
	return found
}

// Metric returns the sum of the samples whose line starts with prefix.
func (g *gateway) Metric(prefix string) float64 {
	g.t.Helper()
	answer, err := http.Get("http://" + g.Admin + "/metrics")
	if err != nil {
		g.t.Fatalf("reading the metrics: %v", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		g.t.Fatalf("reading the metrics: %v", err)
	}
	sum := 0.0
	for line := range strings.Lines(string(body)) {
		var value float64
		if name, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(name, prefix) {
			if _, err := fmt.Sscan(rest, &value); err == nil {
				sum += value
			}
		}
	}
	return sum
}

// answer is the response that a client received.
type answer = envoytest.Response

// Do sends a request through the gateway. Headers have the form "Name: value"; redirects are not
// followed.
func (g *gateway) Do(method, path, body string, headers ...string) answer {
	g.t.Helper()
	got, err := g.Try(method, path, body, headers...)
	if err != nil {
		g.t.Fatalf("%s %s: %v", method, path, err)
	}
	return got
}

// Try is Do with an error if there is no response.
func (g *gateway) Try(method, path, body string, headers ...string) (answer, error) {
	return g.TryTraced(context.Background(), method, path, body, headers...)
}

// TryTraced is Try with a context, which may have a trace of package httptrace.
func (g *gateway) TryTraced(ctx context.Context, method, path, body string, headers ...string) (answer, error) {
	return envoytest.Send(ctx, g.client, method, g.URL+path, body, headers...)
}

// client is shared, so that connections are kept alive as by real clients.
var client = &http.Client{
	Timeout:       envoytest.Deadline,
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// Login logs a user in and returns the token. On a busy machine the store may respond too late.
func (g *gateway) Login(user string) string {
	g.t.Helper()
	var got answer
	envoytest.Eventually(g.t, "a login with an available store", func() bool {
		got = g.Do("POST", "/token", fmt.Sprintf(`{"username":%q,"password":"right"}`, user))
		return got.Status != http.StatusServiceUnavailable
	})
	token := got.Header.Get("token")
	if got.Status != http.StatusOK || token == "" {
		g.t.Fatalf("logging %s in: %d %v %s", user, got.Status, got.Header, got.Body)
	}
	return token
}

// users is a user service that accepts every user with the password "right". The id equals the user
// name.
func users(t *testing.T) *envoytest.Recorder {
	t.Helper()
	service := envoytest.Upstream(t)
	service.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		var login struct{ Username, Password string }
		if err := json.NewDecoder(r.Body).Decode(&login); err != nil || login.Password != "right" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `"wrong user name or password"`)
			return
		}
		w.Header().Set("userid", login.Username)
	})
	return service
}

// needPorts reserves loopback ports for a test, and waits while a test uses one of them, also one of another process.
// It skips the test if another program uses one; with CI=true it fails.
func needPorts(t *testing.T, ports ...string) {
	t.Helper()
	for _, port := range ports {
		testport.Reserve(t, port)
		switch taken := envoytest.Accepts("127.0.0.1:" + port); {
		case taken && os.Getenv("CI") == "true":
			t.Fatalf("port %s is taken on this machine", port)
		case taken:
			t.Skipf("port %s, which this test needs, is taken on this machine: end what listens there", port)
		}
	}
}
