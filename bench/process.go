package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Deadlines for events. They are generous, because a slow machine is not an error.
const (
	readyWithin = 2 * time.Minute
	endWithin   = 15 * time.Second
)

// process is a program that the bench started, with all its children.
type process struct {
	name    string
	logFile string
	command *exec.Cmd
	done    chan struct{}
}

// start starts a program. Its output goes to a file in the run's folder.
func (l *lab) start(name, program string, args ...string) (*process, error) {
	p := &process{name: name, logFile: filepath.Join(l.dir, name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.logFile)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	defer out.Close()
	p.command = exec.Command(program, args...)
	p.command.Stdout, p.command.Stderr, p.command.Dir = out, out, l.dir
	p.command.SysProcAttr = endsWithParent()
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		_ = p.command.Wait()
		close(p.done)
	}()
	l.processes = append(l.processes, p)
	return p, nil
}

// awaitListening waits until an address accepts connections.
func (p *process) awaitListening(ctx context.Context, address string) error {
	return p.await(ctx, "to listen on "+address, func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// await polls until ok returns true. It returns an error if the process ends first or the deadline
// passes.
func (p *process) await(ctx context.Context, what string, ok func() bool) error {
	for end := time.Now().Add(readyWithin); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %v\n%s", p.name, p.command.ProcessState, p.tail())
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
	}
	return fmt.Errorf("waiting for %s %s\n%s", p.name, what, p.tail())
}

// tail returns the end of the process's output.
func (p *process) tail() string {
	data, _ := os.ReadFile(p.logFile)
	return string(data[max(0, len(data)-3000):])
}

// stop ends the process gracefully, or kills it if that takes too long.
func (p *process) stop() {
	_ = p.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(endWithin):
		_ = p.command.Process.Kill()
		<-p.done
	}
}

// pid returns the process id.
func (p *process) pid() int { return p.command.Process.Pid }

// freePort returns an unused port of loopback.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("finding a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// errMissing means that a program is not installed.
var errMissing = errors.New("not installed")

// find finds a program on PATH. If it is missing, the error has the remedy.
func find(program, remedy string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s is %w; on Debian and Ubuntu: %s", program, errMissing, remedy)
	}
	return path, nil
}
