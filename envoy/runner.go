// Package envoy decides how Envoy is found, given its bootstrap and run as a child.
//
// Find says where the program is, Bootstrap builds the static configuration with which it finds Gatepost, and
// a Runner keeps one running. envoytest starts a real one for tests.
package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/proto"
)

// FirstFile is the descriptor of the first of a Runner's Files in the child.
const FirstFile = 3

// DefaultDrain is how long a Runner's Envoy may take to answer the requests that it has when it is to end.
const DefaultDrain = 10 * time.Second

// DefaultValidateTimeout is how long an Envoy may take to check the bootstrap: far more than a slow disk needs.
const DefaultValidateTimeout = 30 * time.Second

// How long an Envoy that died stays away: doubled each time, from the first again once one ran for steady.
const (
	firstBackOff = 100 * time.Millisecond
	lastBackOff  = 10 * time.Second
	steady       = time.Minute
)

// killAfter is how long an Envoy that was told to end may take to do so: it has nothing left to do then.
const killAfter = 5 * time.Second

// Runner runs Envoy as a child process until a context ends, and starts it again where it dies. The child
// never outlives Gatepost on Linux, however Gatepost ends. A Runner is used once.
type Runner struct {
	// Path is the Envoy to run, as Find returns it. Required.
	Path string
	// Bootstrap is what it starts with. Its admin interface is replaced by a unix socket in Dir. Required.
	Bootstrap *bootstrapv3.Bootstrap
	// Dir is the private folder for the bootstrap and the sockets. Empty: one is made, and removed at the end.
	Dir Dir
	// Files are open in the child too, as descriptors FirstFile, FirstFile+1 and so on.
	Files []*os.File
	// Concurrency is the number of Envoy's worker threads. Zero: one per CPU, Envoy's own default.
	Concurrency int
	// Drain is how long requests under way may go on when Envoy is to end. Zero: DefaultDrain.
	Drain time.Duration
	// ValidateTimeout bounds the check of the bootstrap before the first start. Zero: DefaultValidateTimeout.
	ValidateTimeout time.Duration
	// Log is told of starts and ends, and gets every line that Envoy writes. Nil: nobody is told.
	Log *slog.Logger
	// OnStart, if set, is called after each start with the child's process id. It must not block.
	OnStart func(pid int)
	// OnExit, if set, is called after each end that was not asked for, with how it ended. It must not block.
	OnExit func(err error)
}

// Run starts Envoy and blocks until ctx has ended and Envoy with it, which is no error: Envoy then takes no
// more connections, answers what it has, and exits. An Envoy that dies is started again, with back-off. It is
// an error where the first start is not possible: Envoy is missing, too old, or refuses its bootstrap.
func (r *Runner) Run(ctx context.Context) error {
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	version, err := CheckVersion(ctx, r.Path)
	if err != nil {
		return err
	}
	if r.Dir == "" {
		if r.Dir, err = PrivateDir(); err != nil {
			return err
		}
		defer r.Dir.Remove()
	}
	file, err := r.writeBootstrap()
	if err != nil {
		return err
	}
	if err := r.validate(ctx, file); err != nil {
		return err
	}
	r.Log.Info("running Envoy", "path", r.Path, "envoy_version", version.String())
	r.keepRunning(ctx, file)
	return nil
}

// keepRunning is the life of the Runner: one child after the other, until ctx ends.
func (r *Runner) keepRunning(ctx context.Context, file string) {
	var wait time.Duration
	for ctx.Err() == nil {
		began := time.Now()
		err := r.runOnce(ctx, file)
		if ctx.Err() != nil {
			return
		}
		wait = backOff(wait, time.Since(began))
		r.Log.Error("Envoy ended by itself; it is started again", "reason", describe(err), "wait_seconds", wait.Seconds())
		if r.OnExit != nil {
			r.OnExit(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// backOff returns how long to wait after an Envoy that lived for so long, when last it was so long (at first: 0).
func backOff(last, lived time.Duration) time.Duration {
	if last == 0 || lived >= steady {
		return firstBackOff
	}
	return min(2*last, lastBackOff)
}

// runOnce starts one child and returns how it ended. It ends the child when ctx ends.
func (r *Runner) runOnce(ctx context.Context, file string) error {
	// An old socket would be in the way of the new child's.
	if err := os.Remove(r.Dir.adminPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the old admin socket: %w", err)
	}
	logs := newLogWriter(r.Log)
	defer logs.Close()
	cmd := exec.Command(r.Path, r.arguments(file)...)
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.ExtraFiles = r.Files
	cmd.SysProcAttr = ownGroup()
	cmd.WaitDelay = time.Second // in case something that Envoy started holds its output open

	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel kills the child when the thread that started it ends (PR_SET_PDEATHSIG), so this
		// goroutine keeps its thread for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting Envoy: %w", err)
	}
	raiseFileLimit(cmd.Process.Pid)
	r.Log.Info("Envoy started", "pid", cmd.Process.Pid)
	if r.OnStart != nil {
		r.OnStart(cmd.Process.Pid)
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		r.end(cmd.Process, ended)
		return nil
	}
}

// end lets the child answer what it has, then ends it, by force where it does not go.
func (r *Runner) end(child *os.Process, ended <-chan error) {
	began := time.Now()
	how := "drained"
	ctx, cancel := context.WithTimeout(context.Background(), orDefault(r.Drain, DefaultDrain))
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- drain(ctx, r.Dir.adminPath()) }()
	select {
	case err := <-ended:
		r.Log.Warn("Envoy ended while it drained", "reason", describe(err))
		cancel()
		<-drained
		return
	case err := <-drained:
		if err != nil {
			how = "not drained: " + err.Error()
		}
	}
	_ = child.Signal(syscall.SIGTERM) // where it is gone already, ended says so
	select {
	case <-ended:
	case <-time.After(killAfter):
		how = "killed: it did not end on SIGTERM"
		_ = child.Kill()
		<-ended
	}
	r.Log.Info("Envoy ended", "reason", how, "seconds", time.Since(began).Round(time.Millisecond).Seconds())
}

// arguments are the child's. Hot restart is off: it would share memory with every other Envoy of the machine.
func (r *Runner) arguments(file string) []string {
	args := []string{"-c", file, "--disable-hot-restart", "--log-format", logFormat, "--log-format-escaped", "--log-level", envoyLevel(r.Log)}
	if r.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(r.Concurrency))
	}
	return args
}

// writeBootstrap writes the bootstrap, with the admin interface on the Runner's own socket.
func (r *Runner) writeBootstrap() (file string, err error) {
	b := proto.CloneOf(r.Bootstrap)
	if b.Admin, err = adminInterface("unix:" + r.Dir.adminPath()); err != nil {
		return "", err
	}
	out, err := YAML(b)
	if err != nil {
		return "", err
	}
	file = filepath.Join(string(r.Dir), "bootstrap.yaml")
	if err := os.WriteFile(file, out, 0o600); err != nil {
		return "", fmt.Errorf("writing Envoy's bootstrap: %w", err)
	}
	return file, nil
}

// validate has Envoy read its bootstrap without serving, so that one that is refused is an error with
// Envoy's own words and not an endless chain of starts. An Envoy that hangs is ended, and an error too.
func (r *Runner) validate(ctx context.Context, file string) error {
	bounded, cancel := context.WithTimeout(ctx, orDefault(r.ValidateTimeout, DefaultValidateTimeout))
	defer cancel()
	cmd := exec.CommandContext(bounded, r.Path, "--mode", "validate", "-c", file, "--log-level", "error", "--log-format", "%v")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return nil // it is to end before it has begun
	}
	if err != nil && bounded.Err() != nil {
		return fmt.Errorf("checking Envoy's bootstrap: %s --mode validate has not ended: %w", r.Path, bounded.Err())
	}
	if err != nil {
		return fmt.Errorf("checking Envoy's bootstrap: %w: %s", err, firstLine(out))
	}
	return nil
}

// describe says how a process ended, in a log line.
func describe(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
