package main

import (
	"strings"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/testlog"
)

func TestProgressIsOneLineOnATerminalAndFewLinesElsewhere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		terminal bool
		want     string
	}{
		"terminal": {true, "\r\x1b[Kwaiting (1 s)\r\x1b[Kwaiting (2 s)\r\x1b[K" + strings.Repeat("é", 78) + "…\r\x1b[K"},
		"file":     {false, "waiting (11 s)\n"},
	} {
		var out strings.Builder
		now := time.Unix(1000, 0)
		p := progressAt(&out, c.terminal, func() time.Time { return now })
		for range 15 { // as often as the state is looked at
			p.show("waiting")
			now = now.Add(100 * time.Millisecond)
		}
		now = now.Add(500 * time.Millisecond)
		p.show("waiting")
		now = now.Add(9 * time.Second)
		if c.terminal {
			p.show(strings.Repeat("é", 100))
		} else {
			p.show("waiting")
		}
		p.end()
		p.end()
		if out.String() != c.want {
			t.Errorf("on a %s: %q, want %q", name, out.String(), c.want)
		}
	}
}

func TestACallThatIsWaitedForShowsProgress(t *testing.T) {
	t.Parallel()
	var out testlog.Buffer
	now := time.Unix(1000, 0)
	stop := waiting(progressAt(&out, true, func() time.Time { now = now.Add(time.Second); return now }), "waiting for it")
	envoytest.Eventually(t, "the progress", func() bool { return strings.Contains(out.String(), "waiting for it (") })
	stop()
	if !strings.HasSuffix(out.String(), "\r\x1b[K") {
		t.Errorf("the line stays: %q", out.String())
	}
}
