package compose

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
)

// engine is a Docker engine and its client program.
type engine struct {
	docker  string   // the path of the docker client
	env     []string // extra environment variables of the client
	private bool     // started and removed by this test
}

// findEngine returns the engine that this user can reach, or else a private one. If neither is
// possible, it ends the test.
func findEngine(t *testing.T) *engine {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin") // a user's PATH often lacks the folders of dockerd and iptables
	docker, err := exec.LookPath("docker")
	if err != nil {
		missing(t, "no docker: install it (Debian: apt-get install docker.io iptables)")
	}
	own := &engine{docker: docker}
	if own.answers(t.Context()) {
		return own
	}
	if _, err := exec.LookPath("dockerd"); err != nil || os.Geteuid() != 0 {
		missing(t, "no Docker engine is running, and starting one needs root and dockerd: start Docker")
	}
	return startEngine(t, docker)
}

// startEngine starts a private engine, and removes everything that it leaves on the machine.
func startEngine(t *testing.T, docker string) *engine {
	t.Helper()
	// Not t.TempDir: a socket's path is limited to 107 bytes, and the folder can be removed only
	// after its mounts.
	dir, err := os.MkdirTemp("", "gatepost-docker-")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{docker: docker, env: []string{"DOCKER_HOST=unix://" + dir + "/docker.sock", "DOCKER_CONFIG=" + dir}, private: true}
	log, err := os.Create(filepath.Join(dir, "dockerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	t.Cleanup(func() { removeEngineDir(t, dir) })
	t.Cleanup(restoreNetwork(t))

	daemon := exec.Command("dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/run",
		"--pidfile", dir+"/dockerd.pid", "--host", "unix://"+dir+"/docker.sock")
	daemon.Stdout, daemon.Stderr = log, log
	// The engine ends with the test in any case. Its own process group keeps Ctrl-C away from it.
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		runtime.LockOSThread() // Pdeathsig refers to the thread that started the process
		defer runtime.UnlockOSThread()
		err := daemon.Start()
		started <- err
		if err == nil {
			_ = daemon.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		t.Fatalf("starting dockerd: %v", err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(envoytest.Deadline):
			t.Error("dockerd did not end on SIGTERM")
			_ = daemon.Process.Kill()
			<-ended
		}
	})

	deadline := time.Now().Add(envoytest.Deadline)
	for !e.answers(t.Context()) {
		select {
		case <-ended:
			missing(t, "this machine cannot run a Docker engine: "+lastLine(log.Name()))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			missing(t, "the Docker engine does not answer: "+lastLine(log.Name()))
		}
	}
	return e
}

func (e *engine) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return e.command(ctx, "info").Run() == nil
}

// command returns a call of the docker client.
func (e *engine) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, e.docker, args...)
	c.Env = append(os.Environ(), e.env...)
	c.WaitDelay = 10 * time.Second
	return c
}

// run calls the docker client and returns its output.
func (e *engine) run(t *testing.T, args ...string) string {
	t.Helper()
	return output(t, e.command(t.Context(), args...))
}

// output runs a command and returns its standard output. It ends the test if the command fails.
func output(t *testing.T, c *exec.Cmd) string {
	t.Helper()
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(c.Args, " "), err, out, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// emptyTables is the packet filter of a machine without rules.
const emptyTables = `*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
`

// restoreNetwork saves the packet filter and the links, and returns a function that restores them.
// An engine leaves its chains, a FORWARD policy of DROP and its bridges behind.
func restoreNetwork(t *testing.T) func() {
	t.Helper()
	rules, err := exec.Command("iptables-save").Output()
	if err != nil {
		missing(t, "no iptables, which a Docker engine needs: install it (Debian: apt-get install iptables)")
	}
	for _, table := range []string{"*filter", "*nat"} {
		if !bytes.Contains(rules, []byte(table)) {
			_, rest, _ := strings.Cut(emptyTables, table)
			body, _, _ := strings.Cut(rest, "COMMIT\n")
			rules = fmt.Appendf(rules, "%s%sCOMMIT\n", table, body)
		}
	}
	links := linkNames(t)
	return func() {
		restore := exec.Command("iptables-restore")
		restore.Stdin = bytes.NewReader(rules)
		if out, err := restore.CombinedOutput(); err != nil {
			t.Errorf("putting the packet filter back: %v\n%s", err, out)
		}
		for _, name := range linkNames(t) {
			if engineLink.MatchString(name) && !slices.Contains(links, name) {
				if out, err := exec.Command("ip", "link", "delete", name).CombinedOutput(); err != nil {
					t.Errorf("deleting the link %s: %v\n%s", name, err, out)
				}
			}
		}
	}
}

// engineLink matches the bridges of an engine.
var engineLink = regexp.MustCompile(`^(docker0|br-[0-9a-f]{12})$`)

func linkNames(t *testing.T) []string {
	t.Helper()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names
}

// removeEngineDir deletes the folder of a stopped engine, including its mounts.
func removeEngineDir(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range slices.Backward(strings.Split(string(mounts), "\n")) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			if err := syscall.Unmount(fields[1], syscall.MNT_DETACH); err != nil {
				t.Errorf("unmounting %s: %v", fields[1], err)
				return // do not delete what may belong to something else
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

func lastLine(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return lines[len(lines)-1]
}

// missing skips the test, because something is missing on this machine. In CI it fails the test.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}
