package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc: 1/100 s on every Linux that Go runs on (USER_HZ, proc(5)).
const tick = 10 * time.Millisecond

// stat is what /proc/PID/stat says of a process.
type stat struct {
	pid, parent int
	name        string
	// cpu is its own time in user and kernel mode; reaped that of the children that it has waited for.
	cpu, reaped time.Duration
}

// parseStat reads the content of /proc/PID/stat (proc(5)). The name stands in parentheses and may hold any byte.
func parseStat(content []byte) (stat, error) {
	open, end := bytes.IndexByte(content, '('), bytes.LastIndexByte(content, ')')
	if open < 1 || end < open {
		return stat{}, fmt.Errorf("reading %q: no name in it", content)
	}
	fields := strings.Fields(string(content[end+1:])) // the first is field 3, the state
	if len(fields) < 15 {
		return stat{}, fmt.Errorf("reading %q: too short", content)
	}
	number := func(field int) int {
		n, err := strconv.Atoi(fields[field-3])
		if err != nil {
			return 0 // not of the fields that are read here
		}
		return n
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content[:open])))
	if err != nil {
		return stat{}, fmt.Errorf("reading %q: %w", content, err)
	}
	return stat{
		pid: pid, parent: number(4), name: string(content[open+1 : end]),
		cpu: time.Duration(number(14)+number(15)) * tick, reaped: time.Duration(number(16)+number(17)) * tick,
	}, nil
}

// readProcesses reads the accounts of all processes. :: pid → account
func readProcesses() (map[int]stat, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	all := map[int]stat{}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || len(content) == 0 {
			continue // it has just ended
		}
		if err != nil {
			continue // ESRCH: the same
		}
		one, err := parseStat(content)
		if err != nil {
			return nil, err
		}
		all[one.pid] = one
	}
	if len(all) == 0 {
		return nil, errors.New("reading /proc: there is nothing; the bench needs Linux")
	}
	return all, nil
}

// below returns the process and all that descend from it.
func below(all map[int]stat, pid int) []stat {
	var tree []stat
	if one, ok := all[pid]; ok {
		tree = append(tree, one)
	}
	for _, one := range all {
		if one.parent == pid {
			tree = append(tree, below(all, one.pid)...)
		}
	}
	return tree
}

// usage is the CPU time of a set of processes, by the name of the program. :: name → time
type usage map[string]time.Duration

// used returns what processes and all their children have used since they began, those that are gone included. A
// process that is alone of its program is called by the name that the bench gave it, and a child by its own.
func used(processes []*process) (usage, error) {
	all, err := readProcesses()
	if err != nil {
		return nil, err
	}
	sum := usage{}
	for _, p := range processes {
		for _, one := range below(all, p.pid()) {
			name := p.name
			if one.name == "envoy" && one.pid != p.pid() {
				name = "envoy" // the one that gatepost keeps
			}
			sum[name] += one.cpu + one.reaped
		}
	}
	return sum, nil
}

func (u usage) total() time.Duration {
	var sum time.Duration
	for _, d := range u {
		sum += d
	}
	return sum
}

// since returns what was used after an earlier account.
func (u usage) since(before usage) usage {
	out := usage{}
	for name, d := range u {
		out[name] = d - before[name]
	}
	return out
}

// machine is the time of all CPUs together, by /proc/stat: what was worked, by whomever, and what a hypervisor took.
type machineTime struct {
	busy, stolen, all time.Duration
}

// parseMachine reads the first line of /proc/stat (proc(5)).
func parseMachine(content []byte) (machineTime, error) {
	line, _, _ := strings.Cut(string(content), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return machineTime{}, fmt.Errorf("reading /proc/stat: its first line is %q", line)
	}
	var m machineTime
	for i, field := range fields[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return machineTime{}, fmt.Errorf("reading /proc/stat: %w", err)
		}
		d := time.Duration(n) * tick
		m.all += d
		switch i {
		case 3, 4:
		case 7:
			m.stolen += d
		default:
			m.busy += d
		}
	}
	return m, nil
}

func readMachine() (machineTime, error) {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineTime{}, fmt.Errorf("reading the machine's account (the bench needs Linux): %w", err)
	}
	return parseMachine(content)
}

// foreign is the share of the machine's time between two accounts that went to others than those who used ours.
func (m machineTime) foreign(before machineTime, ours time.Duration) float64 {
	all := m.all - before.all
	if all <= 0 {
		return 0
	}
	others := (m.busy - before.busy) - ours
	return max(0, float64(others+m.stolen-before.stolen)/float64(all))
}

// residentKiB returns the resident memory of a process, and the part of it that is no file's, in KiB.
func residentKiB(pid int) (resident, anonymous int, err error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(content)) {
		name, rest, _ := strings.Cut(line, ":")
		value, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		switch name {
		case "VmRSS":
			resident = value
		case "RssAnon":
			anonymous = value
		}
	}
	if resident == 0 {
		return 0, 0, fmt.Errorf("reading the memory of process %d: none is told", pid)
	}
	return resident, anonymous, nil
}
