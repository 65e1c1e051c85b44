package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"gatepost/envoy/envoytest"
	"gatepost/envoy/module/moduletest"
	"gatepost/tokens/redistest"
)

// clock is a wall clock that a test steps: that of one gateway and of the module in its Envoy. CLOCK_MONOTONIC and
// CLOCK_BOOTTIME are the machine's, because nobody can set them.
type clock struct {
	t             testing.TB
	program, file string
}

// newClock is a clock of a program that withClocks has built.
func newClock(t testing.TB, program string) *clock {
	t.Helper()
	c := &clock{t, program, filepath.Join(t.TempDir(), "clock")}
	c.step(0)
	return c
}

// of returns the setup of a gateway whose clock it is.
func (c *clock) of(s setup) setup {
	s.Program, s.Env = c.program, append(s.Env, "GATEPOST_TEST_CLOCK="+c.file)
	return s
}

// step sets how far the clock is from the machine's. The file is mapped by both processes.
func (c *clock) step(by time.Duration) {
	file, err := os.OpenFile(c.file, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer file.Close()
	if _, err := file.WriteAt((*[8]byte)(unsafe.Pointer(&by))[:], 0); err != nil {
		c.t.Error(err)
	}
}

// withClocks builds a gatepost that has a [clock] wherever a lease is decided: in the packages cache and table, and in
// the module. The expiry of sessions in the store stays that of the machine's clock.
func withClocks(t *testing.T, race string) (program string) {
	t.Helper()
	header := filepath.Join(root(t), "e2e/testdata/stepped_clock.h")
	replaced := map[string]string{
		moduleFile(t): moduletest.Compile(t, "library", "-D_GNU_SOURCE=", "-include", header, "-DGP_CLOCK=stepped_clock"),
	}
	dir := t.TempDir()
	write := func(original, text string) {
		replaced[original] = filepath.Join(dir, strings.ReplaceAll(original, "/", "_"))
		if err := os.WriteFile(replaced[original], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	stepped := read("testdata/stepped_clock.go.txt")
	for _, name := range []string{"cache", "table"} {
		folder := filepath.Join(root(t), map[string]string{"cache": "tokens/cache", "table": "tokens/cache/table"}[name])
		files, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		changed := 0
		for _, file := range files {
			text := read(file)
			if strings.HasSuffix(file, "_test.go") || !strings.Contains(text, "time.Now()") {
				continue
			}
			// The package time stays in use, whatever else of it the file uses.
			write(file, strings.ReplaceAll(text, "time.Now()", "timeNow()")+"\nvar _ time.Time\n")
			changed++
		}
		if changed == 0 {
			t.Fatalf("no file in %s reads the clock", folder)
		}
		write(filepath.Join(folder, "stepped_clock.go"), strings.Replace(stepped, "PACKAGE", name, 1))
	}
	if race == "" {
		return withOverlay(t, replaced)
	}
	return withOverlay(t, replaced, race)
}

// A Gatepost is stopped, and the wall clock is set back or forward at the same time. Its Envoy decides by itself, and
// must not accept a token after a revoke at another gateway has returned.
func TestSteppedClockExtendsNoLease(t *testing.T) {
	t.Parallel()
	program := withClocks(t, "")
	for _, by := range []time.Duration{-30 * time.Minute, 30 * time.Minute} {
		t.Run(by.String(), func(t *testing.T) {
			redis := redistest.Start(t).URL()
			clock := newClock(t, program)
			stopped, other := startShop(t, clock.of(setup{Redis: redis})), startShop(t, setup{Redis: redis})
			token := "Authorization: " + stopped.Login("ann")
			status := func() int { return stopped.Do("GET", "/orders/1", "", token).Status }
			envoytest.Eventually(t, "the module to decide", func() bool {
				return status() == http.StatusOK && stopped.Metric(`gatepost_decisions_total{decision="allow",reason="module"`) > 0
			})
			stopped.Freeze()
			clock.step(by)
			if got := other.Do("POST", "/token/revoke", "", token); got.Status >= 300 {
				t.Errorf("revoking at the other gateway: %d %s", got.Status, got.Body)
			}
			if status() == http.StatusOK {
				t.Error("the token was accepted after the revoke had returned")
			}
			stopped.Signal(syscall.SIGCONT)
			stopped.Await("the revoked token", http.StatusUnauthorized, "GET", "/orders/1", "", token)
			next := "Authorization: " + stopped.Login("bob")
			stopped.Await("a token by the new clock", http.StatusOK, "GET", "/orders/1", "", next)
			clock.step(0)
			stopped.Await("a token by the former clock", http.StatusOK, "GET", "/orders/1", "", next)
		})
	}
}
