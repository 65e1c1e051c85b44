//go:build linux

package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// manager is the datagram socket of a service manager.
type manager struct {
	t  *testing.T
	fd int
}

// listen makes the socket and sets NOTIFY_SOCKET, as systemd does for a unit.
func listen(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "gatepost-notify-") // t.TempDir is too long for a socket path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	path := filepath.Join(dir, "socket")
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "")
	t.Setenv("WATCHDOG_PID", "")
	return &manager{t, fd}
}

// wants checks that exactly these messages have arrived.
func (m *manager) wants(want ...string) {
	m.t.Helper()
	var got []string
	buffer := make([]byte, 4096)
	for {
		n, _, err := syscall.Recvfrom(m.fd, buffer, 0)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		if err != nil {
			m.t.Fatal(err)
		}
		got = append(got, string(buffer[:n]))
	}
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		m.t.Errorf("systemd has received %q, want %q", got, want)
	}
}

func yes(context.Context) error { return nil }

// verdict is the result of a check that changes while a Reporter runs.
type verdict struct{ reason atomic.Pointer[error] }

func (v *verdict) set(err error) { v.reason.Store(&err) }

func (v *verdict) check(context.Context) error { return *v.reason.Load() }

func newReporter(t *testing.T) *Reporter {
	return New(Config{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
}

func TestReadyIsReportedOnceTheProcessIsReady(t *testing.T) {
	m := listen(t)
	synctest.Test(t, func(t *testing.T) {
		var state verdict
		state.set(errors.New("envoy: none\nis connected"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go newReporter(t).Run(ctx, state.check, yes)
		synctest.Wait()
		m.wants("STATUS=not ready: envoy: none is connected")
		time.Sleep(time.Minute)
		m.wants()
		state.set(nil)
		time.Sleep(pollReady)
		synctest.Wait()
		m.wants("READY=1\nSTATUS=started")
		time.Sleep(time.Hour)
		m.wants() // no watchdog was asked for
	})
}

func TestWatchdogIsReportedWhileTheProcessIsAlive(t *testing.T) {
	m := listen(t)
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	synctest.Test(t, func(t *testing.T) {
		var state verdict
		state.set(nil)
		ctx, cancel := context.WithCancel(t.Context())
		go newReporter(t).Run(ctx, yes, state.check)
		synctest.Wait()
		m.wants("READY=1\nSTATUS=started", "WATCHDOG=1")
		time.Sleep(20 * time.Second)
		synctest.Wait()
		m.wants("WATCHDOG=1", "WATCHDOG=1")
		state.set(errors.New("it hangs"))
		time.Sleep(time.Minute)
		synctest.Wait()
		m.wants()
		state.set(nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		m.wants("WATCHDOG=1")
		cancel()
		time.Sleep(time.Minute)
		m.wants()
	})
}

func TestWatchdogOfAnotherProcessIsNotReported(t *testing.T) {
	m := listen(t)
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", "1")
	newReporter(t).Run(t.Context(), yes, yes)
	m.wants("READY=1\nSTATUS=started")
}

func TestAReloadIsReported(t *testing.T) {
	m := listen(t)
	r := newReporter(t)
	r.Run(t.Context(), yes, yes)
	m.wants("READY=1\nSTATUS=started")
	r.Reload(func() string {
		m.wants("RELOADING=1")
		return "reloading failed: " + strings.Repeat("ä", maxStatus)
	})
	m.wants("READY=1\nSTATUS=reloading failed: " + strings.Repeat("ä", (maxStatus-len("reloading failed: "))/2) + "…")
}

// RELOADING=1 and READY=1 would end the start or take back the stop.
func TestAReloadIsOnlyReportedWhileReady(t *testing.T) {
	m := listen(t)
	r := newReporter(t)
	calls := 0
	reload := func() string { calls++; return "reloaded" }
	r.Reload(reload)
	m.wants()
	r.Run(t.Context(), yes, yes)
	m.wants("READY=1\nSTATUS=started")
	r.Reload(func() string { r.Stopping(); return reload() })
	m.wants("RELOADING=1", "STOPPING=1")
	r.Reload(reload)
	m.wants()
	if calls != 3 {
		t.Errorf("the definitions were read %d times, want 3", calls)
	}
}

func TestStoppingIsReportedOnceAndLast(t *testing.T) {
	m := listen(t)
	r := newReporter(t)
	r.Stopping()
	r.Stopping()
	r.Run(t.Context(), yes, yes)
	m.wants("STOPPING=1")
}

func TestNothingIsReportedWithoutASocket(t *testing.T) {
	m := listen(t)
	os.Unsetenv("NOTIFY_SOCKET")
	r := newReporter(t)
	if r != nil {
		t.Fatal("there is a Reporter without NOTIFY_SOCKET")
	}
	reloaded := false
	r.Run(t.Context(), yes, yes)
	r.Reload(func() string { reloaded = true; return "" })
	r.Stopping()
	m.wants()
	if !reloaded {
		t.Error("the definitions were not read")
	}
}

func TestAbstractSocket(t *testing.T) {
	listen(t)
	name := fmt.Sprintf("@gatepost-notify-%d", os.Getpid())
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	newReporter(t).Stopping()
	buffer := make([]byte, 100)
	if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != "STOPPING=1" {
		t.Errorf("systemd has received %q, %v", buffer[:n], err)
	}
}

// A socket that is gone, or a value that is none, stops nothing.
func TestFailuresAreLogged(t *testing.T) {
	listen(t)
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	t.Setenv("WATCHDOG_USEC", "soon")
	var log strings.Builder
	r := New(Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	r.Run(t.Context(), yes, yes)
	for _, want := range []string{"reading WATCHDOG_USEC failed", "reporting to systemd failed", `message="READY=1"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, &log)
		}
	}
}
