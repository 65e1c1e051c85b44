// Package envoytest gives tests a real Envoy: it starts one with a static configuration or under a control
// plane, with upstreams that record what reaches them and clients that send what no proper client would.
package envoytest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/proto"
)

// Deadline is how long this kit waits for what must happen. It is generous: a loaded machine is no bug.
const Deadline = 2 * time.Minute

// Options say which Envoy a test needs.
type Options struct {
	// GRPC and HTTP are where Gatepost's servers are, host:port or unix:/path: the clusters gatepost-grpc (ADS
	// and ext_authz) and gatepost-http. Empty: an address where nobody is.
	GRPC, HTTP string
	// Resources are listeners, route configurations and clusters that Envoy is to have from the start. With
	// them the configuration is static, and there is no ADS.
	Resources []proto.Message
	// Bootstrap, if set, is all of the configuration, and the fields above do not count.
	Bootstrap *bootstrapv3.Bootstrap
	// NodeID is the name by which this Envoy shows itself. Empty: envoy.DefaultNodeID.
	NodeID string
	// NameServer is the address (ip:port) of the only name server that Envoy asks. Empty: those of this machine.
	NameServer string
	// Listen are addresses (host:port) that must accept before Start returns, beside those of Resources.
	Listen []string
	// NotReady has Start return as soon as the admin interface answers, for an Envoy that is not to become ready.
	NotReady bool
	// Concurrency is the number of worker threads. Zero: one, which is what a test needs.
	Concurrency int
	// Drain is how long requests under way may go on at the end. Zero: a second.
	Drain time.Duration
}

// Envoy is a running Envoy. Where it dies, it is started again, as in production.
type Envoy struct {
	t    testing.TB
	stop func()
	dir  envoy.Dir
	logs *buffer

	mu   sync.Mutex
	pids []int
}

// Require returns the path of the Envoy to test with: GATEPOST_ENVOY, else as envoy.Find finds it. Where there
// is none the test is skipped, but fails with CI=true: there, nothing may be left untested in silence.
func Require(t testing.TB) string {
	t.Helper()
	path, err := envoy.Find(os.Getenv("GATEPOST_ENVOY"))
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test needs a real Envoy: %v", err)
	}
	t.Skip("this test needs a real Envoy: make tools")
	return ""
}

// Start starts an Envoy and waits until it is ready. It ends with the test; its log is shown where the test failed.
func Start(t testing.TB, opts Options) *Envoy {
	t.Helper()
	path := Require(t)
	bootstrap := opts.Bootstrap
	if bootstrap == nil {
		bootstrap = Bootstrap(t, opts)
	}
	dir, err := envoy.PrivateDir()
	if err != nil {
		t.Fatal(err)
	}
	e := &Envoy{t: t, dir: dir, logs: new(buffer)}
	runner := &envoy.Runner{
		Path:        path,
		Bootstrap:   bootstrap,
		Dir:         dir,
		Concurrency: max(opts.Concurrency, 1),
		Drain:       max(opts.Drain, time.Second),
		Log:         slog.New(slog.NewTextHandler(e.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		OnStart:     e.started,
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(ctx) }()
	e.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("running Envoy: %v", err)
		}
	})
	t.Cleanup(func() {
		e.stop()
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", e.logs.tail())
		}
		if err := dir.Remove(); err != nil {
			t.Error(err)
		}
	})
	wait := append(listenAddresses(bootstrap), opts.Listen...)
	if !e.await(func() bool { return e.up(opts.NotReady, wait) }, ended) {
		t.Fatalf("Envoy did not get ready; its log:\n%s", e.logs.tail())
	}
	return e
}

// await polls until ok or Envoy cannot be started.
func (e *Envoy) await(ok func() bool, ended chan error) bool {
	for end := time.Now().Add(Deadline); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- err // for stop
			return false
		default:
		}
		if ok() {
			return true
		}
	}
	return false
}

func (e *Envoy) up(notReady bool, listen []string) bool {
	status, _, err := e.admin(http.MethodGet, "/ready")
	if err != nil || (status != http.StatusOK && !notReady) {
		return false
	}
	for _, addr := range listen {
		if !Accepts(addr) {
			return false
		}
	}
	return true
}

func (e *Envoy) started(pid int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pids = append(e.pids, pid)
}

// PID returns the process id of the Envoy that runs now or ran last.
func (e *Envoy) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.pids) == 0 {
		return 0
	}
	return e.pids[len(e.pids)-1]
}

// Starts returns how many times Envoy was started.
func (e *Envoy) Starts() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.pids)
}

// Stop ends Envoy as `gatepost run` does, gracefully, and returns when it is gone. The test's end calls it too.
func (e *Envoy) Stop() { e.stop() }

// Kill kills Envoy without a warning (SIGKILL). It then comes back by itself.
func (e *Envoy) Kill() {
	e.t.Helper()
	if err := syscall.Kill(e.PID(), syscall.SIGKILL); err != nil {
		e.t.Fatalf("killing Envoy: %v", err)
	}
}

// Log returns what Envoy has written so far.
func (e *Envoy) Log() string { return e.logs.String() }

// Ready says whether Envoy calls itself ready (LIVE).
func (e *Envoy) Ready() bool {
	status, _, err := e.admin(http.MethodGet, "/ready")
	return err == nil && status == http.StatusOK
}

// Admin returns what the admin interface answers to a GET, which must be a 200.
func (e *Envoy) Admin(path string) string {
	e.t.Helper()
	status, body, err := e.admin(http.MethodGet, path)
	if err != nil || status != http.StatusOK {
		e.t.Fatalf("asking Envoy for %s: status %d, error %v: %s", path, status, err, body)
	}
	return body
}

func (e *Envoy) admin(method, path string) (status int, body string, err error) {
	socket := strings.TrimPrefix(e.dir.Admin(), "unix:")
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	client := &http.Client{Transport: transport, Timeout: Deadline}
	req, err := http.NewRequest(method, "http://envoy"+path, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	return res.StatusCode, string(out), err
}

// Stats returns the counters and gauges whose names match a regular expression (RE2).
func (e *Envoy) Stats(match string) map[string]int {
	e.t.Helper()
	stats := map[string]int{}
	lines := bufio.NewScanner(strings.NewReader(e.Admin("/stats?filter=" + url.QueryEscape(match))))
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), ": ")
		if value, err := strconv.Atoi(text); err == nil { // a histogram is no number
			stats[name] = value
		}
	}
	return stats
}

// Stat returns one counter or gauge, and 0 where Envoy has none of this name.
func (e *Envoy) Stat(name string) int {
	e.t.Helper()
	return e.Stats("^" + name + "$")[name]
}

// Eventually polls until ok holds, and fails the test where it does not within Deadline.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Deadline); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited %v in vain: %s", Deadline, what)
}

// buffer holds what was logged; it may be written and read at once.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// tail returns the end of what was logged, as much as a reader of a failed test wants.
func (b *buffer) tail() string {
	const most = 16 << 10
	s := b.String()
	if len(s) > most {
		return fmt.Sprintf("[%d bytes left out]\n%s", len(s)-most, s[len(s)-most:])
	}
	return s
}
