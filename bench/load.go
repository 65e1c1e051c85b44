package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

//go:embed load.lua
var loadScript []byte

// connections is the number of concurrent clients, each with its own keep-alive connection.
const connections = 64

// load describes the requests: all are equal, except that the values of one header alternate.
type load struct {
	method, address, path string
	header                string   // the header with alternating values, or ""
	values                []string // its values
	headers               [][2]string
	body                  string
	connections           int // the default is the constant connections
}

// outcome is the result of a load.
type outcome struct {
	Requests     int   `json:"requests"`
	Microseconds int   `json:"microseconds"`
	BadStatus    int   `json:"bad_status"` // answers of 400 and above
	Broken       int   `json:"broken"`     // no answer
	P50          int   `json:"p50"`        // microseconds
	P99          int   `json:"p99"`
	cpu          usage // of wrk itself
}

// run runs wrk with the load for a time, which ends up to a tenth of a second later. A response other than 2xx is an
// error.
func (l *lab) run(ctx context.Context, what load, during time.Duration) (outcome, error) {
	dir, err := os.MkdirTemp(l.dir, "load-")
	if err != nil {
		return outcome{}, fmt.Errorf("making a folder for wrk: %w", err)
	}
	defer os.RemoveAll(dir)
	file, targets := filepath.Join(dir, "load.lua"), filepath.Join(dir, "targets.lua")
	if err := os.WriteFile(file, loadScript, 0o600); err != nil {
		return outcome{}, fmt.Errorf("writing wrk's script: %w", err)
	}
	if err := os.WriteFile(targets, what.lua(), 0o600); err != nil {
		return outcome{}, fmt.Errorf("writing wrk's requests: %w", err)
	}
	var out bytes.Buffer
	command := exec.CommandContext(ctx, "wrk", "--threads", "1", "--connections", strconv.Itoa(cmp.Or(what.connections, connections)),
		"--duration", "1h", "--timeout", "10s", "--script", file, "http://"+what.address, targets)
	command.Stdout, command.Stderr, command.WaitDelay = &out, &out, time.Second
	if err := command.Start(); err != nil {
		return outcome{}, fmt.Errorf("starting wrk: %w", err)
	}
	// wrk itself measures whole seconds. Interrupted, it reports what it has done until then.
	interrupt := time.AfterFunc(during, func() { _ = command.Process.Signal(os.Interrupt) })
	defer interrupt.Stop()
	if err := command.Wait(); err != nil {
		return outcome{}, fmt.Errorf("running wrk: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	got, err := parseOutcome(out.Bytes())
	if err != nil {
		return outcome{}, err
	}
	got.cpu = usage{"wrk": command.ProcessState.UserTime() + command.ProcessState.SystemTime()}
	return got, got.wrong()
}

func parseOutcome(out []byte) (outcome, error) {
	_, line, found := bytes.Cut(out, []byte("\nRESULT "))
	var got outcome
	if !found {
		return got, fmt.Errorf("reading wrk's result: no result in %q", out)
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	if err := json.Unmarshal(line, &got); err != nil {
		return got, fmt.Errorf("reading wrk's result %q: %w", line, err)
	}
	return got, nil
}

// wrong returns an error if a response was wrong. The measurement is then discarded.
func (o outcome) wrong() error {
	switch {
	case o.Requests == 0:
		return fmt.Errorf("%w: no request got a response", errWrong)
	case o.BadStatus > 0 || o.Broken > 0:
		return fmt.Errorf("%w: of %d requests %d got a status of 400 or above and %d no answer", errWrong, o.Requests, o.BadStatus, o.Broken)
	}
	return nil
}

func (o outcome) rate() float64 { return float64(o.Requests) / float64(o.Microseconds) * 1e6 }

// lua formats the load for the Lua script.
func (w load) lua() []byte {
	var b bytes.Buffer
	values := w.values
	if len(values) == 0 {
		values = []string{""}
	}
	fmt.Fprintf(&b, "return {seed=%d,method=%s,path=%s,header=%s,body=%s,headers={", rand.IntN(1<<30), quote(w.method), quote(w.path), quote(w.header), quote(w.body))
	for _, h := range w.headers {
		fmt.Fprintf(&b, "[%s]=%s,", quote(h[0]), quote(h[1]))
	}
	b.WriteString("},values={")
	for _, v := range values {
		b.WriteString(quote(v))
		b.WriteByte(',')
	}
	b.WriteString("}}\n")
	return b.Bytes()
}

// quote formats a Lua string. Special bytes become decimal escapes, which Go does not have.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			fmt.Fprintf(&b, `\%03d`, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
