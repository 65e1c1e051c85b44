// Package envoytest gives tests a real Envoy, with a static configuration or with a control plane.
// It also has upstreams that record requests, and clients that can send malformed requests.
package envoytest

import (
	"bufio"
	"context"
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
	"gatepost/testlog"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/proto"
)

// Deadline is how long this kit waits for an event. It is generous because machines can be loaded.
const Deadline = 5 * time.Minute

// Options configure the Envoy of a test.
type Options struct {
	// GRPC and HTTP are the addresses of Gatepost's servers, host:port or unix:/path: the clusters
	// gatepost-grpc (ADS and ext_authz) and gatepost-http. If they are empty, the addresses are
	// unreachable.
	GRPC, HTTP string
	// Resources are the listeners, route configurations and clusters of a static configuration. If
	// there are any, ADS is not used.
	Resources []proto.Message
	// Bootstrap, if set, is the whole configuration; the fields above are ignored.
	Bootstrap *bootstrapv3.Bootstrap
	// NodeID identifies this Envoy. The default is envoy.DefaultNodeID.
	NodeID string
	// NameServer is the address (ip:port) of the only name server. The default is this machine's
	// name servers.
	NameServer string
	// NameServerTCP is the same for a name server that is asked over TCP, as the project's own bootstrap does.
	NameServerTCP string
	// Listen are addresses (host:port), in addition to those of Resources, that must accept
	// connections before Start returns.
	Listen []string
	// If NotReady is true, Start returns as soon as the admin interface responds.
	NotReady bool
	// Concurrency is the number of worker threads. The default is one.
	Concurrency int
	// Drain is how long active requests may take at shutdown. The default is one second.
	Drain time.Duration
	// AccessLog, if set, receives the lines of the access log.
	AccessLog io.Writer
}

// Envoy is a running Envoy. If it dies, it is restarted, as in production.
type Envoy struct {
	t    testing.TB
	stop func()
	dir  envoy.Dir
	logs *testlog.Buffer

	mu   sync.Mutex
	pids []int
}

// Require returns the path of the Envoy to test with: GATEPOST_ENVOY, or the result of envoy.Find.
// If there is none, the test is skipped; with CI=true it fails, so that a CI run cannot omit tests
// silently.
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

// Start starts an Envoy and waits until it is ready. It stops with the test. If the test fails, its
// log is printed.
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
	e := &Envoy{t: t, dir: dir, logs: new(testlog.Buffer)}
	runner := &envoy.Runner{
		Path:        path,
		Bootstrap:   bootstrap,
		Dir:         dir,
		Concurrency: max(opts.Concurrency, 1),
		Drain:       max(opts.Drain, time.Second),
		Unchecked:   true, // each check would start one more Envoy; TestCheckVersion and Validate are the checks here
		Logger:      slog.New(slog.NewTextHandler(e.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		AccessLog:   opts.AccessLog,
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
			t.Logf("Envoy's log:\n%s", e.logs.Tail(16<<10))
		}
		if err := dir.Remove(); err != nil {
			t.Error(err)
		}
	})
	wait := append(listenAddresses(bootstrap), opts.Listen...)
	if !e.await(func() bool { return e.up(opts.NotReady, wait) }, ended) {
		t.Fatalf("Envoy did not get ready; its log:\n%s", e.logs.Tail(16<<10))
	}
	return e
}

// tries is how often Envoy is started before it is ready. One that exits each time has rejected its bootstrap.
const tries = 5

// await polls until ok returns true. It returns false if Envoy cannot be started.
func (e *Envoy) await(ok func() bool, ended chan error) (ready bool) {
	poll(func() bool {
		select {
		case err := <-ended:
			ended <- err // for stop
			return true
		default:
		}
		ready = ok()
		return ready || e.Starts() > tries
	})
	return ready
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

// PID returns the process id of the current or last Envoy.
func (e *Envoy) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.pids) == 0 {
		return 0
	}
	return e.pids[len(e.pids)-1]
}

// Starts returns how often Envoy was started.
func (e *Envoy) Starts() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.pids)
}

// Stop shuts Envoy down gracefully, as `gatepost run` does, and returns after it has exited. It is
// called at the end of the test.
func (e *Envoy) Stop() { e.stop() }

// Kill sends SIGKILL to Envoy, which is then restarted.
func (e *Envoy) Kill() {
	e.t.Helper()
	if err := syscall.Kill(e.PID(), syscall.SIGKILL); err != nil {
		e.t.Fatalf("killing Envoy: %v", err)
	}
}

// Log returns Envoy's log so far.
func (e *Envoy) Log() string { return e.logs.String() }

// Ready reports whether Envoy's state is LIVE.
func (e *Envoy) Ready() bool {
	status, _, err := e.admin(http.MethodGet, "/ready")
	return err == nil && status == http.StatusOK
}

// Admin returns the body of a GET request to the admin interface. The status must be 200.
func (e *Envoy) Admin(path string) string {
	e.t.Helper()
	status, body, err := e.admin(http.MethodGet, path)
	if err != nil || status != http.StatusOK {
		e.t.Fatalf("reading %s of Envoy's admin interface: status %d, error %v: %s", path, status, err, body)
	}
	return body
}

// AdminAddress returns the address of the admin interface.
func (e *Envoy) AdminAddress() string { return e.dir.Admin() }

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
		if value, err := strconv.Atoi(text); err == nil { // skip histograms
			stats[name] = value
		}
	}
	return stats
}

// Stat returns one counter or gauge, or 0 if it does not exist.
func (e *Envoy) Stat(name string) int {
	e.t.Helper()
	return e.Stats("^" + name + "$")[name]
}

// Eventually polls until ok returns true. It fails the test after Deadline.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !poll(ok) {
		t.Fatalf("waited %v in vain: %s", Deadline, what)
	}
}

// poll calls ok until it returns true, and reports whether it did before Deadline. The pauses grow: a long wait leaves
// the processors to what it waits for.
func poll(ok func() bool) bool {
	pause := time.Millisecond
	for end := time.Now().Add(Deadline); time.Now().Before(end); time.Sleep(pause) {
		if ok() {
			return true
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
	return false
}

// Number returns the number in a variable of the environment, which makes a run longer or repeats it, or another one if
// the variable is not set.
func Number(t testing.TB, name string, otherwise int64) int64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("reading %s: %v", name, err)
	}
	return n
}
