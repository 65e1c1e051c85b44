package table_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

// buildDriver compiles the unit driver (envoy/module/driver.c), once for all tests.
var buildDriver = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "gatepost-driver-")
	if err != nil {
		return "", err
	}
	driverDir = dir
	path := filepath.Join(dir, "driver")
	out, err := exec.Command("../../../tools/module", "driver", path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compiling the unit driver: %w\n%s", err, out)
	}
	return path, nil
})

var driverDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if driverDir != "" {
		_ = os.RemoveAll(driverDir)
	}
	os.Exit(code)
}

// driver is the module as Envoy would run it, in a process of its own, with the clock of a [clock].
type driver struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// clock is the time, as the writer and the module see it.
type clock struct{ table.Instant }

func newClock() *clock {
	return &clock{table.Instant{Boot: 1000 * time.Second, Wall: time.Unix(1_800_000_000, 0)}}
}

func (c *clock) now() table.Instant { return c.Instant }

func startDriver(t testing.TB) *driver {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("no C compiler: the module is not tested")
	}
	path, err := buildDriver()
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{t: t, cmd: exec.Command(path)}
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.out = bufio.NewReader(out)
	d.cmd.Stderr = os.Stderr
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.in.Close()
		if err := d.cmd.Wait(); err != nil { // the sanitizers report leaks here
			t.Errorf("the driver: %v", err)
		}
	})
	return d
}

// do sends a command and returns the answer.
func (d *driver) do(format string, args ...any) string {
	if _, err := fmt.Fprintf(d.in, format+"\n", args...); err != nil {
		d.t.Fatal(err)
	}
	line, err := d.out.ReadString('\n')
	if err != nil {
		d.t.Fatalf("the driver ended after %q: %v", fmt.Sprintf(format, args...), err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (d *driver) must(format string, args ...any) {
	if answer := d.do(format, args...); answer != "ok" {
		d.t.Fatalf("%s: %s", fmt.Sprintf(format, args...), answer)
	}
}

func (d *driver) at(i table.Instant) { d.must("clock %d %d", i.Boot, i.Wall.UnixNano()) }

// request sends a request, and returns what came of it: hit or miss, then the headers that go on, in order.
func (d *driver) request(headers ...string) string {
	d.t.Helper()
	var line strings.Builder
	line.WriteString("request")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, "=")
		fmt.Fprintf(&line, " %s=%s", name, hex.EncodeToString([]byte(value)))
	}
	fields := strings.Fields(d.do("%s", line.String()))
	for i, f := range fields[1:] {
		name, value, _ := strings.Cut(f, "=")
		if raw, err := hex.DecodeString(value); err == nil && name != "hits" {
			fields[i+1] = name + "=" + string(raw)
		}
	}
	sort.Strings(fields[1:])
	return strings.Join(fields, " ")
}

// rule identifies the rule in these tests; route is the configuration of a route with it.
var rule = [16]byte{0: 0xab, 15: 0xcd}

func route(longest time.Duration, flags string) string {
	return fmt.Sprintf("route 1 %x %d %s x-user-id orders", rule, longest.Milliseconds(), flags)
}

func hash(token string) (h tokens.Hash) { return sha256.Sum256([]byte(token)) }

// rig is a table and a module that reads it, with one clock.
type rig struct {
	*driver
	clock *clock
	table *table.Table
	path  string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{driver: startDriver(t), clock: newClock(), path: filepath.Join(t.TempDir(), "table")}
	r.create()
	r.at(r.clock.Instant)
	r.must("config %s", r.path)
	r.must("%s", route(5*time.Minute, "-"))
	return r
}

// create makes a new table, whose lease runs for a second.
func (r *rig) create() {
	r.t.Helper()
	made, err := table.Create(r.path, 1024, r.clock.now)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = made.Close() })
	r.table = made
	r.extend()
}

func (r *rig) extend() { r.table.Extend(r.clock.Add(time.Second)) }

// advance lets time pass, with heartbeats.
func (r *rig) advance(d time.Duration) {
	r.clock.Instant = r.clock.Add(d)
	r.extend()
	r.at(r.clock.Instant)
}

// entry is a decision about alice's token in Authorization, which expires in an hour.
func (r *rig) entry() *table.Entry {
	return &table.Entry{
		Rule: rule, Inputs: [4]string{"Bearer alice-token"}, Token: hash("alice-token"), User: "alice",
		Expires: r.clock.Wall.Add(time.Hour),
	}
}

const alice = "authorization=Bearer alice-token"
