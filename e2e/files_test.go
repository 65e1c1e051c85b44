package e2e

import (
	"net/http"
	"os"
	"syscall"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

func TestDefinitionsFileThatBecomesAPipeBlocksNothing(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	broken := `is a pipe, not a regular file`
	becomesAPipe := func(times int) {
		t.Helper()
		if err := os.Remove(shop.File); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mkfifo(shop.File, 0o600); err != nil {
			t.Fatal(err)
		}
		envoytest.Eventually(t, "the pipe to be reported", func() bool { return len(lines(shop.Log(), broken)) == times })
	}
	becomesAPipe(1)
	want(t, "a request", shop.Do("GET", "/items", ""), http.StatusOK, "")
	shop.Signal(syscall.SIGHUP)
	envoytest.Eventually(t, "SIGHUP to read the file again", func() bool { return len(lines(shop.Log(), broken)) == 2 })

	shop.Define(shop.definitions(`  - {name: later, path: /later, authenticate: false, upstreams: ["` + shop.items.URL() + `"]}`))
	shop.Await("a service of the file after it", http.StatusOK, "GET", "/later", "")
	becomesAPipe(3)
	shop.Stop()
	if code := shop.ExitCode(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestTwoGatewaysCannotShareADataFolder(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	first := startShop(t, setup{Redis: redis.URL()})
	second := prepare(t, first.definitions(), setup{Redis: redis.URL(), Args: []string{"--data", first.Data}})
	second.Run()
	if code := second.ExitCode(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if want := "locking the data folder " + first.Data + ": another gateway uses it"; len(lines(second.Log(), want, "--data")) != 1 {
		t.Errorf("the log does not contain %q", want)
	}
	first.Kill()
	second.Run() // the kernel releases the lock of a dead process
	second.AwaitReady()
}
