package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTheProgramsOwnPagesAreFound(t *testing.T) {
	const smaps = `00400000-01089000 r-xp 00000000 fe:00 10011297                           /bin/gatepost
Rss:               10000 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me 
01089000-01ba5000 r--p 00c89000 fe:00 10011297                           /bin/gatepost
Anonymous:             0 kB
Swap:                  0 kB
01ba5000-01c74000 rw-p 017a5000 fe:00 10011297                           /bin/gatepost
Anonymous:             0 kB
Swap:                  0 kB
01c74000-01c75000 r--p 017a5000 fe:00 10011297                           /bin/gatepost
Anonymous:             4 kB
Swap:                  0 kB
01c75000-01c76000 r--p 017a6000 fe:00 10011297                           /bin/gatepost
Anonymous:             0 kB
Swap:                  4 kB
02000000-02100000 r-xp 00000000 fe:00 10011298                           /lib/not-bin/gatepost
Anonymous:             0 kB
Swap:                  0 kB
02100000-02200000 r-xp 00000000 fe:00 10011298                           /lib/libc.so.6
Anonymous:             0 kB
Swap:                  0 kB
c000000000-c000800000 rw-p 00000000 00:00 0 
Anonymous:          8192 kB
`
	found := programMappings(strings.NewReader(smaps), "/bin/gatepost")
	if len(found) != 2 || found[0] != (mapping{0x400000, 0x1089000}) || found[1] != (mapping{0x1089000, 0x1ba5000}) {
		t.Errorf("found %x", found)
	}
}

// TestWhatTheStartTookIsGivenBackUnderLoadToo has all of the program resident, as after a start, and allocates without a lull.
func TestWhatTheStartTookIsGivenBackUnderLoadToo(t *testing.T) {
	t.Setenv("GOGC", "")
	mappings, before := programResidence(t)
	for _, m := range mappings {
		if _, _, err := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_POPULATE_READ); err != 0 {
			t.Skipf("this kernel makes no pages resident: %v", err)
		}
	}
	_, all := programResidence(t)
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		giveBackInLulls(ctx)
	}()
	defer func() { stop(); <-over }()
	var kept []byte
	for end := time.Now().Add(30 * time.Second); ; {
		kept = make([]byte, idleBytes)
		if _, now := programResidence(t); now < all*3/4 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("%d kB of the program are resident, of %d; %d at first", now, all, before)
		}
	}
	runtime.KeepAlive(kept)
}

// programResidence returns where the program is mapped, and how much of that is resident, in kB.
func programResidence(t *testing.T) (mappings []mapping, resident int) {
	t.Helper()
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	mappings = programMappings(strings.NewReader(string(smaps)), path)
	for _, m := range mappings {
		_, of, _ := strings.Cut(string(smaps), fmt.Sprintf("%08x-%08x ", m.from, m.to))
		_, of, _ = strings.Cut(of, "Rss:")
		var kB int
		if _, err := fmt.Sscan(of, &kB); err != nil {
			t.Fatal(err)
		}
		resident += kB
	}
	return mappings, resident
}
