package envoytest

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
)

var rssAnon = regexp.MustCompile(`RssAnon:\s+(\d+) kB`)

// AnonymousMemory returns the memory of a process that is no file's, in bytes. Envoy's own account, /memory, leaves out
// what its allocator does not see, such as the state of a script.
func AnonymousMemory(t testing.TB, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := rssAnon.FindSubmatch(status)
	if found == nil {
		t.Fatalf("no RssAnon in the status of %d", pid)
	}
	kib, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib * 1024
}
