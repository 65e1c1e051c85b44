package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

// TestPortsBelow1024: a gateway without root listens on 80 if its file has the capability. Otherwise its log names the
// remedies. The address of loopback is of this test alone.
func TestPortsBelow1024(t *testing.T) {
	t.Parallel()
	needPrograms(t, "setcap", "setpriv")
	if os.Getuid() != 0 {
		t.Skip("this test needs root, to become another user")
	}
	if first, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err != nil || len(strings.TrimSpace(string(first))) < 3 {
		t.Skipf("every user of this machine may listen on 80 (%s, %v)", first, err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "gatepost")
	runTool(t, "cp", binary, program)
	readable(t, dir)
	g := prepare(t, "", setup{Program: asNobody(t, program)})
	readable(t, filepath.Dir(g.File))
	must(t, os.Mkdir(g.Data, 0o700))
	must(t, os.Chown(g.Data, nobody, nobody))
	g.Addr = "127.0.99.1:80"
	g.Define("services: []\n")

	g.Run()
	envoytest.Eventually(t, "the remedy in the log", func() bool {
		return strings.Contains(g.Log(), "Permission denied (allow ports below 1024: setcap")
	})
	g.Stop()

	runTool(t, "setcap", "cap_net_bind_service=+ep", program)
	g.Run()
	g.AwaitReady()
	response, err := http.Get("http://" + g.Addr + "/")
	must(t, err)
	response.Body.Close()
	if response.StatusCode != http.StatusNotFound {
		t.Errorf("port 80: %s", response.Status)
	}
}

// nobody is a user without rights.
const nobody = 65534

// asNobody writes a program that runs another one as nobody, without capabilities, and returns its path.
func asNobody(t *testing.T, program string) string {
	t.Helper()
	setpriv, err := exec.LookPath("setpriv")
	must(t, err)
	script := filepath.Join(t.TempDir(), "as-nobody")
	text := "#!/bin/sh\nexec " + setpriv + " --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all " + program + ` "$@"` + "\n"
	must(t, os.WriteFile(script, []byte(text), 0o700))
	return script
}

// readable lets every user enter a folder of this test and those above it. (Some set a umask for them.)
func readable(t *testing.T, dir string) {
	t.Helper()
	for ; dir != filepath.Clean(os.TempDir()) && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
}
