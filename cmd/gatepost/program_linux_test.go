package main

import (
	"strings"
	"testing"
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
