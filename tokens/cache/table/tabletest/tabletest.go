// Package tabletest runs the module that Envoy loads (envoy/module) without Envoy, to test how it
// reads a table. It runs the module's own code, compiled with the sanitizers, in a separate process
// (envoy/module/driver.c).
package tabletest

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sort"
	"strings"
	"testing"
	"time"

	"gatepost/envoy/module/moduletest"
	"gatepost/tokens/cache/table"
)

// Driver sends requests to a module. It must not be used concurrently.
type Driver struct {
	t   testing.TB
	in  io.WriteCloser
	out *bufio.Reader
}

// Start starts a driver and stops it at the end of the test. It skips the test without a C
// compiler.
func Start(t testing.TB) *Driver {
	t.Helper()
	return start(t, exec.Command(moduletest.Compile(t, "driver")))
}

// StartUnder starts a driver of a kind of tools/module under another program, such as valgrind. It
// skips the test if the program is not installed.
func StartUnder(t testing.TB, kind, program string, args ...string) *Driver {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
	return start(t, exec.Command(program, append(args, moduletest.Compile(t, kind))...))
}

func start(t testing.TB, cmd *exec.Cmd) *Driver {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil { // the sanitizers report leaks here
			t.Errorf("the driver: %v", err)
		}
	})
	return &Driver{t: t, in: in, out: bufio.NewReader(out)}
}

// Do sends a command of the driver and returns its answer.
func (d *Driver) Do(format string, args ...any) string {
	if _, err := fmt.Fprintf(d.in, format+"\n", args...); err != nil {
		d.t.Fatal(err)
	}
	line, err := d.out.ReadString('\n')
	if err != nil {
		d.t.Fatalf("the driver ended after %q: %v", fmt.Sprintf(format, args...), err)
	}
	return strings.TrimSuffix(line, "\n")
}

// Must is Do for a command that must succeed.
func (d *Driver) Must(format string, args ...any) {
	if answer := d.Do(format, args...); answer != "ok" {
		d.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), answer)
	}
}

// At sets the module's clocks. Before, they are the machine's.
func (d *Driver) At(i table.Instant) { d.Must("clock %d %d", i.Boot, i.Wall.UnixNano()) }

// Route makes all following requests use a route.
func (d *Driver) Route(rule [16]byte, longest time.Duration, flags string) {
	d.Must("route 1 %x %d %s x-user-id %016x", rule, longest.Milliseconds(), flags, table.ServiceID("orders"))
}

// Request sends a request with headers of the form name=value. It returns hit or miss, then the
// resulting headers, sorted.
func (d *Driver) Request(headers ...string) string { return d.send("request", headers) }

// Early returns the headers of a request, sorted, after what the module does before the route is found.
func (d *Driver) Early(headers ...string) string {
	_, after, _ := strings.Cut(d.send("early", headers), " ")
	return after
}

func (d *Driver) send(command string, headers []string) string {
	var line strings.Builder
	line.WriteString(command)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, "=")
		fmt.Fprintf(&line, " %s=%s", name, hex.EncodeToString([]byte(value)))
	}
	fields := strings.Fields(d.Do("%s", line.String()))
	for i, f := range fields[1:] {
		name, value, _ := strings.Cut(f, "=")
		if raw, err := hex.DecodeString(value); err == nil {
			fields[i+1] = name + "=" + string(raw)
		}
	}
	sort.Strings(fields[1:])
	return strings.Join(fields, " ")
}

// Hits reports whether a request with a value of Authorization is a hit.
func (d *Driver) Hits(authorization string) bool {
	return strings.HasPrefix(d.Request("authorization="+authorization), "hit ")
}
