package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// callgrind returns the command that runs a program under callgrind, which counts the instructions of its user code
// while it is asked to.
func (l *lab) callgrind() []string {
	return []string{"valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no",
		"--callgrind-out-file=" + filepath.Join(l.dir, "callgrind.%p")}
}

// countedEnvoy writes a program that runs Envoy with one worker under callgrind. What Gatepost asks of an Envoy
// beforehand is asked of the plain one.
func (l *lab) countedEnvoy() (string, error) {
	path := filepath.Join(l.dir, "counted-envoy")
	script := fmt.Sprintf(`#!/bin/sh
case " $* " in *" --version "* | *" --mode "*) exec '%[1]s' "$@" ;; esac
exec '%[2]s' '%[1]s' "$@" --concurrency 1
`, l.envoy, strings.Join(l.callgrind(), "' '"))
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		return "", fmt.Errorf("writing the program that runs Envoy under callgrind: %w", err)
	}
	return path, nil
}

// counter counts the instructions of a process under callgrind.
type counter struct {
	pid   int
	dumps string // the path of callgrind's files without their number
	count int    // the number of files
}

// counter makes callgrind count from now on. The process is p or a child of it.
func (l *lab) counter(ctx context.Context, p *process) (*counter, error) {
	all, err := readProcesses()
	if err != nil {
		return nil, err
	}
	for _, one := range below(all, p.pid()) {
		if strings.HasPrefix(one.name, "callgrind-") {
			c := &counter{pid: one.pid, dumps: filepath.Join(l.dir, "callgrind."+strconv.Itoa(one.pid))}
			return c, c.control(ctx, "--instr=on")
		}
	}
	return nil, fmt.Errorf("counting the instructions of %s: no process of it runs under callgrind", p.name)
}

func (c *counter) control(ctx context.Context, option string) error {
	out, err := exec.CommandContext(ctx, "callgrind_control", option, strconv.Itoa(c.pid)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("running callgrind_control %s: %w: %s", option, err, bytes.TrimSpace(out))
	}
	return nil
}

// during returns the number of instructions while work runs.
func (c *counter) during(ctx context.Context, work func() error) (int, error) {
	if _, err := c.sinceLast(ctx); err != nil {
		return 0, err
	}
	if err := work(); err != nil {
		return 0, err
	}
	return c.sinceLast(ctx)
}

// totals is the line of a file of callgrind that has the sum.
var totals = regexp.MustCompile(`(?m)^totals: (\d+)$`)

// sinceLast returns the number of instructions since the last call.
func (c *counter) sinceLast(ctx context.Context) (int, error) {
	if err := c.control(ctx, "--dump"); err != nil {
		return 0, err
	}
	c.count++
	path := c.dumps + "." + strconv.Itoa(c.count)
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading callgrind's count: %w", err)
	}
	sum := totals.FindSubmatch(content)
	if sum == nil {
		return 0, fmt.Errorf("reading callgrind's count: %s has no totals", path)
	}
	return strconv.Atoi(string(sum[1]))
}
