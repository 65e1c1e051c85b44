package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"gatepost/envoy"
)

// lab is one run of the bench: its settings, its folder, and the processes that it started.
type lab struct {
	count     int           // number of rounds
	during    time.Duration // how long a design is measured in a round
	patience  time.Duration // how long to wait until other load ends
	tolerance float64       // the share of the machine that other processes may use
	force     bool          // measure even under other load, and report that
	progress  io.Writer

	root, dir, bin string // the project, the run's folder, the built programs
	envoy          string
	processes      []*process
	mostForeign    float64
	ends           time.Time // when the run ends, by estimate
	kept           []kept
	counts         *counts

	// stack is what several goals share. It is started on first use.
	stack stack
}

// programs are the programs that the bench builds, by the folder of their module: gatepost as
// released, and its Go peers.
var programs = map[string][]string{
	".":     {"./cmd/gatepost"},
	"bench": {"./peers/alwaysok", "./peers/redisget", "./peers/oneroute"},
}

// needs are the required programs that the bench does not build, and how to install them on Debian
// and Ubuntu.
var needs = []struct{ program, remedy string }{
	{"wrk", "apt-get install wrk"},
	{"redis-server", "apt-get install redis-server"},
	{"nginx", "apt-get install nginx-light"},
}

// open finds and builds what every measurement needs.
func (l *lab) open(ctx context.Context) error {
	var err error
	for _, need := range needs {
		if _, err := find(need.program, need.remedy); err != nil {
			return err
		}
	}
	if l.dir, err = os.MkdirTemp("", "gatepost-bench-"); err != nil {
		return fmt.Errorf("making a folder for the run: %w", err)
	}
	if err := os.Chmod(l.dir, 0o755); err != nil { // nginx's workers can run as another user
		return err
	}
	l.bin = filepath.Join(l.dir, "bin")
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "gatepost").Output()
	if err != nil {
		return fmt.Errorf("finding the project's folder: %w", err)
	}
	l.root = strings.TrimSpace(string(root))
	l.envoy, err = envoy.Find(os.Getenv("GATEPOST_ENVOY"))
	if errors.Is(err, envoy.ErrNotFound) {
		l.envoy = filepath.Join(l.root, envoy.Pin) // which Find seeks in the module of the bench
		_, err = os.Stat(l.envoy)
	}
	if err != nil {
		return fmt.Errorf("finding Envoy (make tools): %w", err)
	}
	l.say("building gatepost and its peers")
	if err := os.Mkdir(l.bin, 0o755); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, filepath.Join(l.root, "tools", "module"), "build").CombinedOutput(); err != nil {
		return fmt.Errorf("compiling the module: %w\n%s", err, out)
	}
	for module, packages := range programs {
		if err := l.build(ctx, module, l.bin+string(filepath.Separator), packages...); err != nil {
			return err
		}
	}
	return nil
}

// build runs `go build` in the folder of a module, as the Makefile and the image do.
func (l *lab) build(ctx context.Context, module, to string, arguments ...string) error {
	build := exec.CommandContext(ctx, "go", append([]string{"build", "-tags", "grpcnotrace,vtprotobuf", "-o", to}, arguments...)...)
	build.Dir, build.Env = filepath.Join(l.root, module), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", strings.Join(arguments, " "), err, out)
	}
	return nil
}

// close ends all started processes and removes the run's folder.
func (l *lab) close() {
	var ending sync.WaitGroup
	for _, p := range l.processes {
		ending.Go(p.stop)
	}
	ending.Wait()
	l.processes = nil
	if l.dir != "" {
		_ = os.RemoveAll(l.dir)
	}
}

// end ends one process before the run does.
func (l *lab) end(p *process) {
	p.stop()
	l.processes = slices.DeleteFunc(l.processes, func(one *process) bool { return one == p })
}

func (l *lab) say(format string, args ...any) { fmt.Fprintf(l.progress, format+"\n", args...) }

// left formats the estimate of the remaining time.
func (l *lab) left() string {
	return fmt.Sprintf("about %v left on an idle machine", max(0, time.Until(l.ends)).Round(10*time.Second))
}

// program returns the path of a built program.
func (l *lab) program(name string) string { return filepath.Join(l.bin, name) }

// folder creates a folder in the run's folder.
func (l *lab) folder(name string) (string, error) {
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return "", fmt.Errorf("making a folder: %w", err)
	}
	return path, os.Chmod(path, 0o777)
}

// ownCPU returns the CPU time of the bench itself.
func ownCPU() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// byProcess formats the CPU time of each process, the largest first.
func byProcess(by map[string]float64) string {
	names := slices.SortedFunc(maps.Keys(by), func(a, b string) int { return int(by[b]*10) - int(by[a]*10) })
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, " %s %.1f", name, by[name])
	}
	return strings.TrimSpace(b.String())
}
