// Package redistest decides how tests run real Redis servers: it starts, kills, freezes, restarts
// and fills them.
package redistest

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatepost/testport"
)

// deadline is how long a server may take on a busy machine.
const deadline = 2 * time.Minute

// Server is one redis-server process on loopback. It stops at the end of its test.
type Server struct {
	// Addr is its listening address, as host:port. [Server.Restart] keeps it.
	Addr string
	// Dir is its folder, with its data and its log.
	Dir string

	t       testing.TB
	program string
	args    []string
	tls     *tls.Config // nil: plain TCP
	busPort string      // of a node of a cluster
	elected time.Time   // when it was last promoted by an election of a cluster
	process *process    // nil: killed
}

// process is a running redis-server. done is closed when it has ended.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a server on a free port with its own empty folder and without persistence. args are
// arguments of redis-server, such as "--appendonly", "yes". If redis-server is not installed, the
// test is skipped; with CI=true it fails.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, nil, args)
}

// StartWithPassword starts a server with a password for the default user.
func StartWithPassword(t testing.TB, password string, args ...string) *Server {
	t.Helper()
	return start(t, nil, append([]string{"--requirepass", password}, args...))
}

func start(t testing.TB, secured *tls.Config, args []string) *Server {
	t.Helper()
	s := &Server{Dir: t.TempDir(), t: t, program: binary(t), tls: secured}
	t.Cleanup(s.Kill)
	s.Addr = testport.Addr(t)
	s.args = append(s.command(), args...)
	if err := s.launch(s.answers); err != nil {
		t.Fatalf("starting redis-server: %v\n%s", err, s.log())
	}
	return s
}

// binary finds redis-server.
func binary(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("redis-server is not installed: apt-get install redis-server")
	}
	t.Skip("needs redis-server: apt-get install redis-server")
	return ""
}

// command returns the default arguments. Later arguments override them.
func (s *Server) command() []string {
	host, port, _ := net.SplitHostPort(s.Addr)
	listen := "--port"
	plain := []string{}
	if s.tls != nil {
		listen, plain = "--tls-port", []string{"--port", "0"}
	}
	return append([]string{listen, port, "--bind", host, "--dir", s.Dir, "--logfile", filepath.Join(s.Dir, "redis.log"),
		"--daemonize", "no", "--save", "", "--appendonly", "no", "--protected-mode", "no", "--databases", "4"}, plain...)
}

// launch starts the process and waits until ready returns true.
func (s *Server) launch(ready func() bool) error {
	cmd := exec.Command(s.program, s.args...)
	cmd.SysProcAttr = processGroup()
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &process{cmd, make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	s.process = p
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		select {
		case <-p.done:
			s.process = nil
			return errors.New("it ended at once")
		default:
		}
		if ready() {
			return nil
		}
	}
	s.Kill()
	return errors.New("it does not answer")
}

// answers reports whether the server accepts commands. An error reply counts, except -LOADING.
func (s *Server) answers() bool {
	reply, err := s.raw("PING")
	return err == nil && !strings.HasPrefix(reply, "-LOADING")
}

// isLoading reports whether the server is still loading.
func (s *Server) isLoading() bool {
	reply, err := s.raw("PING")
	return err == nil && strings.HasPrefix(reply, "-LOADING")
}

// raw sends one inline command on a new connection and returns the first line of the reply.
func (s *Server) raw(command string) (string, error) {
	conn, err := s.dial()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
		return "", err
	}
	return bufio.NewReader(conn).ReadString('\n')
}

func (s *Server) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var dialer interface {
		DialContext(context.Context, string, string) (net.Conn, error)
	} = &net.Dialer{}
	if s.tls != nil {
		dialer = &tls.Dialer{Config: s.tls}
	}
	conn, err := dialer.DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(time.Second))
}

// Port returns its port.
func (s *Server) Port() string {
	_, port, _ := net.SplitHostPort(s.Addr)
	return port
}

// URL returns the server's redis:// URL, without a password.
func (s *Server) URL() string { return "redis://" + s.Addr + "/0" }

// Kill kills the server with SIGKILL, like a crash, and waits for its end.
func (s *Server) Kill() {
	if s.process == nil {
		return
	}
	group := -s.process.cmd.Process.Pid
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-s.process.done
	s.process = nil
	// A child that is saving writes until it has ended too. (Without a reaper it stays a zombie.)
	for end := time.Now().Add(2 * time.Second); syscall.Kill(group, 0) == nil && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// Shutdown stops the server with SIGTERM, as an operator would, and waits for its end.
func (s *Server) Shutdown() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	select {
	case <-s.process.done:
		s.process = nil
	case <-time.After(deadline):
		s.t.Fatal("redis-server does not end")
	}
}

// Restart starts the server again after Kill or Shutdown, with the same address and data.
func (s *Server) Restart() {
	s.t.Helper()
	if s.process != nil {
		s.Kill()
	}
	if err := s.launch(s.answers); err != nil {
		s.t.Fatalf("restarting redis-server: %v\n%s", err, s.log())
	}
	s.elected = time.Time{} // the new process remembers no election
}

// RestartLoading restarts the server and returns while it isLoading its data and answers every
// command with -LOADING. Loading takes a quarter of a second per key in its RDB file. It fails
// without such keys.
func (s *Server) RestartLoading() {
	s.t.Helper()
	s.Kill()
	args := s.args
	s.args = append(slices.Clip(args), "--key-load-delay", "250000", "--loading-process-events-interval-bytes", "1024")
	defer func() { s.args = args }()
	if err := s.launch(s.isLoading); err != nil {
		s.t.Fatalf("restarting redis-server: %v\n%s", err, s.log())
	}
}

// Freeze stops the process with SIGSTOP. The kernel still accepts connections, but nothing answers.
func (s *Server) Freeze() {
	s.t.Helper()
	s.signal(syscall.SIGSTOP)
}

// Thaw resumes a frozen process.
func (s *Server) Thaw() {
	s.t.Helper()
	s.signal(syscall.SIGCONT)
}

func (s *Server) signal(signal os.Signal) {
	s.t.Helper()
	if s.process == nil {
		s.t.Fatal("redis-server is not running")
	}
	if err := s.process.cmd.Process.Signal(signal); err != nil {
		s.t.Fatalf("signalling redis-server: %v", err)
	}
}

// log returns the server's log, for the report of a failed test.
func (s *Server) log() string {
	data, _ := os.ReadFile(filepath.Join(s.Dir, "redis.log"))
	return string(data)
}

// Eventually polls until ok returns true, and fails the test after a long time.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// Do runs one command as the default user and returns its reply as text, with one line per element
// of an array. An error reply fails the test.
func (s *Server) Do(args ...string) string {
	s.t.Helper()
	reply, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("running %s on redis-server: %v", args[0], err)
	}
	return reply
}

// try is Do that returns the error.
func (s *Server) try(args ...string) (string, error) {
	conn, err := s.dial()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return "", err
	}
	return read(bufio.NewReader(conn))
}

// read reads one RESP2 reply.
func read(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, text := line[0], strings.TrimRight(line[1:], "\r\n")
	switch kind {
	case '-':
		return "", errors.New(text)
	case '$':
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return "", err
		}
		data := make([]byte, n+2)
		_, err = io.ReadFull(in, data)
		return string(data[:n]), err
	case '*':
		n, err := strconv.Atoi(text)
		var lines []string
		for range n {
			var one string
			if one, err = read(in); err != nil {
				return "", err
			}
			lines = append(lines, one)
		}
		return strings.Join(lines, "\n"), err
	}
	return text, nil
}

// CommandStats returns the number of calls per command, by its lower-case name, from INFO.
func (s *Server) CommandStats() map[string]int {
	s.t.Helper()
	calls := map[string]int{}
	for line := range strings.Lines(s.Do("INFO", "commandstats")) {
		name, rest, ok := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		if !ok {
			continue
		}
		count, _, _ := strings.Cut(rest, ",")
		n, err := strconv.Atoi(count)
		if err != nil {
			s.t.Fatalf("reading commandstats: %v", err)
		}
		calls[name] = n
	}
	return calls
}
