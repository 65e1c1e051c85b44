package envoy_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy"
	"gatepost/envoy/envoytest"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
)

// gone reports whether no process has this id.
func gone(pid int) bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// run starts a Runner. The returned function stops it and returns the result of Run.
func run(t *testing.T, r *envoy.Runner) (end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	end = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = end() })
	return end
}

func forward(t *testing.T) (b *bootstrapv3.Bootstrap, addr string, upstream *envoytest.Recorder) {
	t.Helper()
	upstream = envoytest.Upstream(t)
	addr = envoytest.Addr(t)
	return envoytest.Bootstrap(t, envoytest.Options{Resources: envoytest.Forward(t, addr, upstream.Addr())}), addr, upstream
}

func get(t *testing.T, addr string) (status int, err error) {
	t.Helper()
	res, err := envoytest.Client(t).Get("http://" + addr)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

func TestShutdownLeavesNoProcessAndNoFile(t *testing.T) {
	path := envoytest.Require(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	b, addr, _ := forward(t)
	pids := make(chan int, 1)
	end := run(t, &envoy.Runner{Path: path, Bootstrap: b, Concurrency: 1, OnStart: func(pid int) { pids <- pid }})
	pid := <-pids
	envoytest.Eventually(t, "a request succeeds", func() bool { status, _ := get(t, addr); return status == 200 })

	dirs, err := filepath.Glob(filepath.Join(temp, "gatepost-*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("private folders %v, %v; want one", dirs, err)
	}
	if info, err := os.Stat(dirs[0]); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("private folder: %v, %v; want 0700", info.Mode(), err)
	}
	if err := end(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if !gone(pid) {
		t.Errorf("Envoy (pid %d) outlives Run", pid)
	}
	if _, err := os.Stat(dirs[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the private folder outlives Run: %v", err)
	}
}

func TestActiveRequestFinishesBeforeEnvoyExits(t *testing.T) {
	t.Parallel()
	addr := envoytest.Addr(t)
	upstream := envoytest.Upstream(t)
	e := envoytest.Start(t, envoytest.Options{Resources: envoytest.Forward(t, addr, upstream.Addr()), Drain: envoytest.Deadline})
	release := make(chan struct{})
	upstream.SetHandler(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		w.WriteHeader(http.StatusNoContent)
	})
	type answer struct {
		status int
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		status, err := get(t, addr)
		answers <- answer{status, err}
	}()
	envoytest.Eventually(t, "the request is at the upstream", func() bool { return len(upstream.Requests()) == 1 })

	stopped := make(chan struct{})
	go func() { defer close(stopped); e.Stop() }()
	envoytest.Eventually(t, "no new connection is taken", func() bool { return !envoytest.Accepts(addr) })
	select {
	case <-stopped:
		t.Error("Envoy ended while a request was under way")
	default:
	}
	close(release)
	if got := <-answers; got.err != nil || got.status != http.StatusNoContent {
		t.Errorf("the request under way got %d, %v; want 204", got.status, got.err)
	}
	<-stopped
	if !gone(e.PID()) {
		t.Error("Envoy is still there")
	}
	if !strings.Contains(e.Log(), "reason=drained") {
		t.Errorf("the log does not report the drain:\n%s", e.Log())
	}
}

func TestDrainTimeoutEndsAnActiveRequest(t *testing.T) {
	t.Parallel()
	addr := envoytest.Addr(t)
	upstream := envoytest.Upstream(t)
	e := envoytest.Start(t, envoytest.Options{Resources: envoytest.Forward(t, addr, upstream.Addr())})
	upstream.SetHandler(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	refused := make(chan error, 1)
	go func() {
		_, err := get(t, addr)
		refused <- err
	}()
	envoytest.Eventually(t, "the request is at the upstream", func() bool { return len(upstream.Requests()) == 1 })
	e.Stop()
	if err := <-refused; err == nil {
		t.Error("the request got a response")
	}
	if want := "1 requests did not end in time"; !strings.Contains(e.Log(), want) {
		t.Errorf("the log does not contain %q:\n%s", want, e.Log())
	}
}

func TestHangingEnvoyIsKilled(t *testing.T) {
	t.Parallel()
	b, addr, _ := forward(t)
	pids := make(chan int, 1)
	end := run(t, &envoy.Runner{Path: envoytest.Require(t), Bootstrap: b, Drain: 100 * time.Millisecond, OnStart: func(pid int) { pids <- pid }})
	pid := <-pids
	envoytest.Eventually(t, "Envoy serves", func() bool { return envoytest.Accepts(addr) })
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil { // it now responds to nothing, and SIGTERM stays pending
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if !gone(pid) {
		t.Error("Envoy is still there")
	}
}

func TestKilledEnvoyIsRestarted(t *testing.T) {
	t.Parallel()
	addr := envoytest.Addr(t)
	upstream := envoytest.Upstream(t)
	e := envoytest.Start(t, envoytest.Options{Resources: envoytest.Forward(t, addr, upstream.Addr())})
	first := e.PID()
	for starts := range 3 {
		e.Kill()
		envoytest.Eventually(t, "Envoy is started again", func() bool { return e.Starts() == starts+2 })
		envoytest.Eventually(t, "a request succeeds", func() bool { status, _ := get(t, addr); return status == 200 })
	}
	if !gone(first) {
		t.Error("the first Envoy is still there")
	}
	if want := `reason="signal: killed"`; !strings.Contains(e.Log(), want) {
		t.Errorf("the log does not contain %s:\n%s", want, e.Log())
	}
}

func TestEachUnexpectedExitIsReported(t *testing.T) {
	t.Parallel()
	// It acts as an Envoy that accepts its bootstrap and exits as soon as it should serve.
	fake := script(t, filepath.Join(t.TempDir(), "envoy"), `case "$*" in
--version) echo "envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL" ;;
--mode*) ;;
*) exit 7 ;;
esac`)
	b, _, _ := forward(t)
	exits := make(chan error, 10)
	end := run(t, &envoy.Runner{Path: fake, Bootstrap: b, OnExit: func(err error) { exits <- err }})
	for range 3 {
		var status *exec.ExitError
		if err := <-exits; !errors.As(err, &status) || status.ExitCode() != 7 {
			t.Errorf("OnExit got %v, want exit status 7", err)
		}
	}
	if err := end(); err != nil {
		t.Errorf("Run = %v", err)
	}
	if len(exits) > 1 { // at most the exit before end
		t.Errorf("%d more exits were reported", len(exits))
	}
}

func TestRunFailsIfEnvoyCannotServe(t *testing.T) {
	t.Parallel()
	b, _, _ := forward(t)
	t.Run("an Envoy that is too old", func(t *testing.T) {
		old := script(t, filepath.Join(t.TempDir(), "envoy"), `echo "envoy  version: abc/1.38.2/Clean/RELEASE/BoringSSL"`)
		if err := (&envoy.Runner{Path: old, Bootstrap: b}).Run(t.Context()); !errors.Is(err, envoy.ErrTooOld) {
			t.Errorf("Run = %v, want ErrTooOld", err)
		}
	})
	t.Run("a bootstrap that Envoy refuses", func(t *testing.T) {
		resources := envoytest.Forward(t, envoytest.Addr(t), "127.0.0.1:1")
		broken := envoytest.Bootstrap(t, envoytest.Options{Resources: resources[:1]})
		err := (&envoy.Runner{Path: envoytest.Require(t), Bootstrap: broken}).Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), "unknown cluster 'upstream'") {
			t.Errorf("Run = %v, want Envoy's own message", err)
		}
	})
}

func TestHangingValidationIsAnError(t *testing.T) {
	t.Parallel()
	fake := script(t, filepath.Join(t.TempDir(), "envoy"), `case "$*" in
--version) echo "envoy  version: abc/1.40.0/Clean/RELEASE/BoringSSL" ;;
*) exec tail -f /dev/null ;;
esac`)
	b, _, _ := forward(t)
	err := (&envoy.Runner{Path: fake, Bootstrap: b, ValidateTimeout: 100 * time.Millisecond}).Run(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "--mode validate has not ended") {
		t.Errorf("Run = %v, want that the check has not ended", err)
	}
}

// The test runs its own binary as the Gatepost that is then killed.
const actAsGatepost = "GATEPOST_TEST_RUN_ENVOY"

func TestEnvoyDiesWithAKilledGatepost(t *testing.T) {
	t.Parallel()
	path := envoytest.Require(t)
	if os.Getenv(actAsGatepost) != "" {
		b, addr, _ := forward(t)
		err := (&envoy.Runner{Path: path, Bootstrap: b, OnStart: func(pid int) { println("envoy", pid, addr) }}).Run(context.Background())
		t.Fatal(err)
	}
	gatepost := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	gatepost.Env = append(os.Environ(), actAsGatepost+"=1", "TMPDIR="+t.TempDir())
	stderr, err := gatepost.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := gatepost.Start(); err != nil {
		t.Fatal(err)
	}
	pid, addr := 0, ""
	for lines := bufio.NewScanner(stderr); pid == 0 && lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "envoy" {
			pid, _ = strconv.Atoi(f[1])
			addr = f[2]
		}
	}
	if pid == 0 {
		t.Fatal("no Envoy was started")
	}
	envoytest.Eventually(t, "Envoy serves", func() bool { return envoytest.Accepts(addr) })
	if err := gatepost.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = gatepost.Wait() // it was killed
	envoytest.Eventually(t, "Envoy has exited", func() bool { return gone(pid) })
}

func TestChildHasItsOwnProcessGroupAndFileLimit(t *testing.T) {
	t.Parallel()
	addr := envoytest.Addr(t)
	e := envoytest.Start(t, envoytest.Options{Resources: envoytest.Forward(t, addr, "127.0.0.1:1")})
	if pgid, err := syscall.Getpgid(e.PID()); err != nil || pgid != e.PID() {
		t.Errorf("process group %d, %v; want its own, %d: Ctrl-C would end it before it drained", pgid, err, e.PID())
	}
	limits, err := os.ReadFile("/proc/" + strconv.Itoa(e.PID()) + "/limits")
	if err != nil {
		t.Skipf("the limit on files can be read on Linux alone: %v", err)
	}
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			if f := strings.Fields(rest); f[0] != f[1] {
				t.Errorf("Envoy may open %s files, and could have %s", f[0], f[1])
			}
			return
		}
	}
	t.Error("no limit on files found")
}
