package main

import (
	"context"
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

// lab is one run of the bench: its settings, its folder, and the processes that it has started.
type lab struct {
	count     int           // of rounds
	during    time.Duration // of one measurement
	patience  time.Duration // for how long other load is waited out
	tolerance float64       // the share of the machine that others may use
	force     bool          // measure under other load too, and say so
	progress  io.Writer

	root, dir, bin string // the project, the run's folder, the programs that were built for it
	envoy          string
	processes      []*process
	mostForeign    float64
	kept           []kept

	// What several goals share is started once, when it is first needed.
	stack stack
}

// programs are what the bench builds, by the folder of their module: gatepost as it is shipped, and its peers in Go.
var programs = map[string][]string{
	".":     {"./cmd/gatepost"},
	"bench": {"./peers/alwaysok", "./peers/redisget", "./peers/oneroute"},
}

// needs are the programs that the bench does not bring, and how to come by them on Debian and Ubuntu.
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
	if l.envoy, err = envoy.Find(os.Getenv("GATEPOST_ENVOY")); err != nil {
		return err
	}
	if l.dir, err = os.MkdirTemp("", "gatepost-bench-"); err != nil {
		return fmt.Errorf("making a folder for the run: %w", err)
	}
	if err := os.Chmod(l.dir, 0o755); err != nil { // nginx's workers may be another user
		return err
	}
	l.bin = filepath.Join(l.dir, "bin")
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "gatepost").Output()
	if err != nil {
		return fmt.Errorf("finding the project's folder: %w", err)
	}
	l.root = strings.TrimSpace(string(root))
	l.say("building gatepost and its peers")
	if err := os.Mkdir(l.bin, 0o755); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, filepath.Join(l.root, "tools", "module"), "build").CombinedOutput(); err != nil {
		return fmt.Errorf("compiling the module: %w\n%s", err, out)
	}
	for module, packages := range programs {
		build := exec.CommandContext(ctx, "go", append([]string{"build", "-tags", "grpcnotrace,vtprotobuf", "-o", l.bin + string(filepath.Separator)}, packages...)...)
		build.Dir, build.Env = filepath.Join(l.root, module), append(os.Environ(), "CGO_ENABLED=0") // as the Makefile and the image do
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", strings.Join(packages, " "), err, out)
		}
	}
	return nil
}

// close ends every process that was started, and removes the run's folder.
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

// program is the path of one that was built.
func (l *lab) program(name string) string { return filepath.Join(l.bin, name) }

// folder makes a folder in that of the run.
func (l *lab) folder(name string) (string, error) {
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return "", fmt.Errorf("making a folder: %w", err)
	}
	return path, os.Chmod(path, 0o777)
}

// ownCPU is what the bench itself has used.
func ownCPU() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// byProcess writes the CPU time of each process, the largest first.
func byProcess(by map[string]float64) string {
	names := slices.SortedFunc(maps.Keys(by), func(a, b string) int { return int(by[b]*10) - int(by[a]*10) })
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, " %s %.1f", name, by[name])
	}
	return strings.TrimSpace(b.String())
}
