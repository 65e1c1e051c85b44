package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
)

// notifySocket is the socket on which systemd receives the state of a service.
type notifySocket struct {
	t    testing.TB
	conn *net.UnixConn
}

// listenNotify makes the socket at path. Every user may send to it.
func listenNotify(t testing.TB, path string) *notifySocket {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	return &notifySocket{t, conn}
}

// Wants waits for the next message that is no WATCHDOG=1, which must begin with want.
func (n *notifySocket) Wants(want string) {
	n.t.Helper()
	got := n.next()
	for got == "WATCHDOG=1" {
		got = n.next()
	}
	if !strings.HasPrefix(got, want) {
		n.t.Fatalf("systemd received %q, want %q", got, want)
	}
}

// Skip waits for a message and skips all others before it.
func (n *notifySocket) Skip(until string) {
	n.t.Helper()
	for n.next() != until {
	}
}

func (n *notifySocket) next() string {
	n.t.Helper()
	if err := n.conn.SetReadDeadline(time.Now().Add(envoytest.Deadline)); err != nil {
		n.t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	size, err := n.conn.Read(buffer)
	if err != nil {
		n.t.Fatalf("waiting for a message to systemd: %v", err)
	}
	return string(buffer[:size])
}

// systemd learns what /readyz knows, and a reload ends when clients get its result.
func TestSystemdIsNotified(t *testing.T) {
	t.Parallel()
	orders := envoytest.Upstream(t)
	service := fmt.Sprintf("  - {name: %%[1]s, path: /%%[1]s, authenticate: false, upstreams: [%q]}\n", orders.URL())
	grpc, http1 := overSockets(t)
	path := filepath.Join(filepath.Dir(strings.TrimPrefix(grpc, "unix:")), "notify")
	systemd := listenNotify(t, path)
	g := prepareServed(t, "services:\n"+fmt.Sprintf(service, "orders"), setup{Env: []string{
		"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=3000000",
	}}, func(*testing.T) (string, string) { return grpc, http1 })
	g.Run()
	systemd.Wants("STATUS=not ready: envoy: no connected Envoy has acknowledged")
	g.StartEnvoy(envoytest.Options{})
	systemd.Wants("READY=1\nSTATUS=started")
	systemd.Skip("WATCHDOG=1")
	want(t, "when it is ready", g.Do("GET", "/orders", ""), http.StatusOK, "")

	g.Define("services:\n" + fmt.Sprintf(service, "orders") + fmt.Sprintf(service, "items"))
	g.Signal(syscall.SIGHUP)
	systemd.Wants("RELOADING=1")
	systemd.Wants("READY=1\nSTATUS=reloaded")
	want(t, "the new service after the reload", g.Do("GET", "/items", ""), http.StatusOK, "")

	g.Define("services: 1\n")
	g.Signal(syscall.SIGHUP)
	systemd.Wants("RELOADING=1")
	systemd.Wants("READY=1\nSTATUS=reloading failed: serving the previous version: ")

	g.Signal(syscall.SIGTERM)
	systemd.Wants("STOPPING=1")
	if code := g.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
