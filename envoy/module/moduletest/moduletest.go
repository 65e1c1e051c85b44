// Package moduletest gives tests a module that a real Envoy can load, and a table that the test
// writes.
package moduletest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
)

var compiling sync.Mutex

// Compile builds a target of tools/module ("library", "driver", "plain" or "arm64") with
// preprocessor definitions and returns its path. It compiles equal sources only once. Without a C
// compiler the test is skipped.
func Compile(t testing.TB, kind string, defines ...string) string {
	t.Helper()
	compiler := "gcc"
	if kind == "arm64" {
		compiler = "aarch64-linux-gnu-gcc"
	}
	if _, err := exec.LookPath(compiler); err != nil {
		t.Skipf("no %s: the module cannot be tested", compiler)
	}
	_, here, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(here), "../../..")
	named := sha256.New()
	fmt.Fprintln(named, kind, defines)
	for _, source := range []string{"envoy/module/driver.c", "envoy/module/module.c", "envoy/module/table.h", "tools/module"} {
		text, err := os.ReadFile(filepath.Join(root, source))
		if err != nil {
			t.Fatal(err)
		}
		named.Write(text)
	}
	compiling.Lock()
	defer compiling.Unlock()
	path := filepath.Join(os.TempDir(), fmt.Sprintf("gatepost-%s-%d-%x", kind, os.Getuid(), named.Sum(nil)[:8]))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	beside := fmt.Sprintf("%s.%d", path, os.Getpid())
	command := exec.Command(filepath.Join(root, "tools/module"), kind, beside)
	command.Env = append(os.Environ(), "DEFINES="+strings.Join(defines, " "))
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("compiling the module: %v\n%s", err, out)
	}
	if err := os.Rename(beside, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Module is a module for a real Envoy and its table of decisions. It records the decisions of an
// authz.Server.
type Module struct {
	// Library and TablePath are the file paths for xds.Options.
	Library, TablePath string
	Table              *table.Table
}

// Start creates a module whose table is valid until the test ends.
func Start(t testing.TB) *Module {
	t.Helper()
	m := &Module{Library: Compile(t, "library"), TablePath: filepath.Join(t.TempDir(), "decisions")}
	var err error
	if m.Table, err = table.Create(m.TablePath, 4096, nil); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			m.Table.Extend(table.Now().Add(1900 * time.Millisecond))
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		_ = m.Table.Close()
	})
	return m
}

// Ticket implements authz.Decisions.
func (*Module) Ticket(tokens.Hash) table.Ticket { return table.Ticket{} }

// Hits implements authz.Decisions.
func (m *Module) Hits() (of func(service string) uint64) { return m.Table.Hits().Of }

// Grant implements authz.Decisions.
func (m *Module) Grant(_ table.Ticket, e table.Entry) { m.Table.Put(0, &e) }
