// Package envoy decides how Envoy is found, configured and run as a child process.
//
// Find returns the path of the program, Bootstrap builds the static configuration that connects it
// to Gatepost, and a Runner keeps it running. envoytest starts a real Envoy for tests.
package envoy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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

// FirstFile is the descriptor of a Runner's first extra file in the child.
const FirstFile = 3

// DefaultDrain is how long a Runner's Envoy may take for active requests at shutdown.
const DefaultDrain = 10 * time.Second

// DefaultValidateTimeout limits the validation of the bootstrap. It is generous for slow disks.
const DefaultValidateTimeout = 30 * time.Second

// The backoff before a dead Envoy is restarted. It doubles each time, and resets after an Envoy ran
// for steady.
const (
	firstBackOff = 100 * time.Millisecond
	lastBackOff  = 10 * time.Second
	steady       = time.Minute
)

// killAfter is how long a drained Envoy may take to exit before it is killed.
const killAfter = 5 * time.Second

// Runner runs Envoy as a child process until a context is done. It restarts Envoy if it dies. On
// Linux the child never outlives Gatepost, even if Gatepost is killed. A Runner can be used once.
type Runner struct {
	// Path is the Envoy to run, as returned by Find. Required.
	Path string
	// Bootstrap is Envoy's bootstrap. The Runner replaces the admin interface by a Unix socket in
	// Dir. Required.
	Bootstrap *bootstrapv3.Bootstrap
	// Dir is the private folder for the bootstrap and the sockets. If it is empty, a temporary one
	// is used.
	Dir Dir
	// Files are inherited by the child as descriptors FirstFile, FirstFile+1 and so on.
	Files []*os.File
	// Concurrency is the number of Envoy's worker threads. If it is zero, Envoy starts one per CPU.
	Concurrency int
	// Unchecked skips the checks of Path and Bootstrap before the first start, each of which runs Envoy once. If Envoy
	// rejects the bootstrap, it is then restarted endlessly.
	Unchecked bool
	// Drain is how long active requests may take at shutdown. The default is DefaultDrain.
	Drain time.Duration
	// ValidateTimeout limits the validation of the bootstrap before the first start. The default is
	// DefaultValidateTimeout.
	ValidateTimeout time.Duration
	// Logger receives starts, exits and every line that Envoy writes. Nil: nothing is logged.
	Logger *slog.Logger
	// AccessLog, if set, receives what Envoy writes to its standard output, the access log: one Write for each line. It
	// must not block. Nil: these lines are logged too.
	AccessLog io.Writer
	// OnStart, if set, is called after each start with the child's process id. It must not block.
	OnStart func(pid int)
	// OnExit, if set, is called after each unexpected exit with its error. It must not block.
	OnExit func(err error)
}

// Run starts Envoy and blocks until ctx is done and Envoy has exited. It then returns nil. At
// shutdown Envoy accepts no more connections, finishes active requests and exits. If Envoy dies
// earlier, it is restarted with backoff. Run returns an error if the first start is impossible:
// Envoy is missing, too old, or rejects its bootstrap.
func (r *Runner) Run(ctx context.Context) error {
	r.Logger = cmp.Or(r.Logger, slog.New(slog.DiscardHandler))
	version := "unchecked"
	if !r.Unchecked {
		checked, err := CheckVersion(ctx, r.Path)
		if err != nil {
			return err
		}
		version = checked.String()
	}
	if r.Dir == "" {
		dir, err := PrivateDir()
		if err != nil {
			return err
		}
		r.Dir = dir
		defer r.Dir.Remove()
	}
	file, err := r.writeBootstrap()
	if err != nil {
		return err
	}
	if !r.Unchecked {
		if err := r.validate(ctx, file); err != nil {
			return err
		}
	}
	r.Logger.Info("running Envoy", "path", r.Path, "envoy_version", version)
	r.keepRunning(ctx, file)
	return nil
}

// keepRunning runs one child after the other until ctx is done.
func (r *Runner) keepRunning(ctx context.Context, file string) {
	var wait time.Duration
	for ctx.Err() == nil {
		began := time.Now()
		err := r.runOnce(ctx, file)
		if ctx.Err() != nil {
			return
		}
		wait = backoff(wait, time.Since(began))
		r.Logger.Error("Envoy ended by itself; it is started again", "reason", describe(err), "wait_seconds", wait.Seconds())
		if r.OnExit != nil {
			r.OnExit(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// backoff returns how long to wait before the restart of an Envoy that ran for lived. last is the
// previous wait, initially 0.
func backoff(last, lived time.Duration) time.Duration {
	if last == 0 || lived >= steady {
		return firstBackOff
	}
	return min(2*last, lastBackOff)
}

// runOnce starts one child and returns its exit error. It stops the child when ctx is done.
func (r *Runner) runOnce(ctx context.Context, file string) error {
	// A stale socket would prevent the new child from listening.
	if err := os.Remove(r.Dir.adminPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the old admin socket: %w", err)
	}
	logs := newLogWriter(r.Logger)
	defer logs.Close()
	cmd := exec.Command(r.Path, r.arguments(file)...)
	cmd.Stdout, cmd.Stderr = logs, logs
	if r.AccessLog != nil {
		cmd.Stdout = newAccessLogWriter(r.AccessLog) // not closed: a line without its end is no line
	}
	cmd.ExtraFiles = r.Files
	cmd.SysProcAttr = ownGroup()
	cmd.WaitDelay = time.Second // a process started by Envoy could hold the output open

	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel kills the child when the thread that started it exits (PR_SET_PDEATHSIG), so
		// this goroutine keeps its thread while the child runs.
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
	r.Logger.Info("Envoy started", "pid", cmd.Process.Pid)
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

// end drains the child, terminates it, and kills it if it does not exit.
func (r *Runner) end(child *os.Process, ended <-chan error) {
	began := time.Now()
	how := "drained"
	ctx, cancel := context.WithTimeout(context.Background(), orDefault(r.Drain, DefaultDrain))
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- drain(ctx, r.Dir.adminPath()) }()
	select {
	case err := <-ended:
		r.Logger.Warn("Envoy ended while it drained", "reason", describe(err))
		cancel()
		<-drained
		return
	case err := <-drained:
		if err != nil {
			how = "not drained: " + err.Error()
		}
	}
	_ = child.Signal(syscall.SIGTERM) // if it has already exited, ended returns that
	select {
	case <-ended:
	case <-time.After(killAfter):
		how = "killed: it did not end on SIGTERM"
		_ = child.Kill()
		<-ended
	}
	r.Logger.Info("Envoy ended", "reason", how, "seconds", time.Since(began).Round(time.Millisecond).Seconds())
}

// Lines of the access log wait in Envoy for so many milliseconds, or until there are so many KiB of them. By default
// that is ten seconds and 64 KiB. The more are written at once, the less often they wake the process that reads them.
// They must fit into the queue of package logqueue.
const (
	accessLogFlush     = "1000"
	accessLogFlushSize = "256"
)

// arguments returns the child's arguments. Hot restart is disabled, because it would share memory
// with every other Envoy on the machine.
func (r *Runner) arguments(file string) []string {
	args := []string{"-c", file, "--disable-hot-restart", "--log-format", logFormat, "--log-format-escaped", "--log-level", envoyLevel(r.Logger),
		"--file-flush-interval-msec", accessLogFlush, "--file-flush-min-size-kb", accessLogFlushSize}
	if r.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(r.Concurrency))
	}
	return args
}

// writeBootstrap writes the bootstrap with the admin interface on the Runner's socket.
func (r *Runner) writeBootstrap() (file string, err error) {
	b := proto.CloneOf(r.Bootstrap)
	if b.Admin, err = adminInterface("unix:"+r.Dir.adminPath(), privateSocket); err != nil {
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

// validate makes Envoy check its bootstrap, so that a rejected one is an error with Envoy's message
// and not an endless restart loop. If Envoy hangs, it is killed and validate returns an error.
func (r *Runner) validate(ctx context.Context, file string) error {
	bounded, cancel := context.WithTimeout(ctx, orDefault(r.ValidateTimeout, DefaultValidateTimeout))
	defer cancel()
	cmd := exec.CommandContext(bounded, r.Path, "--mode", "validate", "-c", file, "--log-level", "error", "--log-format", "%v")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return nil // shutdown was requested before the start
	}
	if err != nil && bounded.Err() != nil {
		return fmt.Errorf("checking Envoy's bootstrap: %s --mode validate has not ended: %w", r.Path, bounded.Err())
	}
	if err != nil {
		return fmt.Errorf("checking Envoy's bootstrap: %w: %s", err, firstLine(out))
	}
	return nil
}

// describe formats the exit of a process for a log line.
func describe(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}
