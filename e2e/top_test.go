package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"

	"gatepost/envoy/envoytest"
)

// TestTopOnATerminalAndElsewhere: on a terminal it goes on with rates until it is interrupted, and elsewhere it is one
// text without control characters.
func TestTopOnATerminalAndElsewhere(t *testing.T) {
	t.Parallel()
	g := start(t, fmt.Sprintf("services: [{name: orders, path: /orders, authenticate: false, upstreams: [%q]}]", envoytest.Upstream(t).URL()), setup{})
	g.Do("GET", "/orders", "")
	out, code := gatepost(t, os.Environ(), "top", "--admin", g.Admin)
	if code != 0 || strings.Contains(out, "\x1b") || !regexp.MustCompile(`orders +/orders +served +1 unchecked +1 +0`).MatchString(out) {
		t.Errorf("without a terminal: exit code %d and\n%q", code, out)
	}

	screen, terminal, err := pty.Open()
	must(t, err)
	defer screen.Close()
	must(t, pty.Setsize(terminal, &pty.Winsize{Rows: 24, Cols: 80}))
	top := exec.Command(binary, "top", "--admin", g.Admin)
	top.Stdout, top.Stderr = terminal, terminal
	must(t, top.Start())
	must(t, terminal.Close())
	screens := bufio.NewScanner(screen)
	screens.Split(func(data []byte, _ bool) (int, []byte, error) {
		if end := bytes.Index(data, []byte("\x1b[H\x1b[2J")); end >= 0 {
			return end + len("\x1b[H\x1b[2J"), data[:end], nil
		}
		return 0, nil, nil
	})
	want := []*regexp.Regexp{
		regexp.MustCompile(`^\x1b\[\?7l$`), regexp.MustCompile(`allow \d+, (?s:.*)orders +/orders +served`),
		regexp.MustCompile(`allow \d+\.\d/s, (?s:.*)orders +/orders +served +1 unchecked +0\.0/s`),
	}
	for i, one := range want {
		if !screens.Scan() || !one.Match(screens.Bytes()) {
			t.Fatalf("screen %d is %q, %v; want %s", i, screens.Bytes(), screens.Err(), one)
		}
	}
	must(t, top.Process.Signal(syscall.SIGINT))
	rest := make(chan string, 1)
	go func() {
		var last bytes.Buffer
		_, _ = last.ReadFrom(screen) // ends with an error if the terminal has no process any more
		rest <- last.String()
	}()
	if err := top.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	if end := <-rest; !strings.HasSuffix(end, "\x1b[?7h") {
		t.Errorf("at the end: %q, want that lines wrap again", end)
	}
}
