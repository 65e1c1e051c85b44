package xds

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatepost/envoy/envoytest"
)

// confinedEnvoy is the variable with the path of the Envoy that this program becomes.
const confinedEnvoy = "GATEPOST_TEST_CONFINED_ENVOY"

// confine becomes an Envoy that gets no memory that was writable and is executable.
func confine(path string) {
	err := unix.Prctl(unix.PR_SET_MDWE, unix.PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
	if err == nil {
		err = syscall.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// TestEnvoyCompilesNothing: gatepost-run.service has MemoryDenyWriteExecute.
func TestEnvoyCompilesNothing(t *testing.T) {
	long(t)
	if err := unix.Prctl(unix.PR_GET_MDWE, 0, 0, 0, 0); err != nil {
		t.Skipf("this test needs Linux 6.3: %v", err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(confinedEnvoy, envoytest.Require(t))
	t.Setenv("GATEPOST_ENVOY", program)
	d := startDeciding(t, decidingShop, 1)
	token := "authorization: Bearer " + d.login("u", time.Hour)
	d.get("/orders", token)
	if !d.get("/orders", token) {
		t.Error("the module does not work")
	}
	for range 200 { // LuaJIT compiles what runs often
		d.get("/PARTS", token)
	}
}
