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

	"golang.org/x/sys/unix"
)

// tick is the unit of times in /proc: 1/100 s on every Linux that Go supports (USER_HZ, proc(5)).
const tick = 10 * time.Millisecond

// stat is the content of /proc/PID/stat.
type stat struct {
	pid, parent int
	name        string
	// cpu is the process's own user and kernel time; reaped is that of children that it has waited
	// for.
	cpu, reaped time.Duration
}

// parseStat parses /proc/PID/stat (proc(5)). The name is in parentheses and can contain any byte.
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
			return 0 // not one of the fields read here
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

// cpuClock returns the CPU time of a process without its children, in nanoseconds. Its clock id is that of
// clock_getcpuclockid(3).
func cpuClock(pid int) (time.Duration, error) {
	const ofProcess = 2 // CPUCLOCK_SCHED of the kernel
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|ofProcess), &t); err != nil {
		return 0, fmt.Errorf("reading the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
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
			continue // the process has just ended
		}
		if err != nil {
			continue // ESRCH: likewise
		}
		one, err := parseStat(content)
		if err != nil {
			return nil, err
		}
		all[one.pid] = one
	}
	if len(all) == 0 {
		return nil, errors.New("reading /proc: no processes found; the bench needs Linux")
	}
	return all, nil
}

// below returns the process and its descendants.
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

// usage is the CPU time of a set of processes. :: program name → time
type usage map[string]time.Duration

// used returns the CPU time of processes and all their children since they started, including
// exited ones. A process that is the only one of its program has the name that the bench gave it;
// children have their own.
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
			if exact, err := cpuClock(one.pid); err == nil { // else it has just ended
				one.cpu = exact
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

// since returns the difference from an earlier account.
func (u usage) since(before usage) usage {
	out := usage{}
	for name, d := range u {
		out[name] = d - before[name]
	}
	return out
}

// machineTime is the time of all CPUs in /proc/stat: the time worked by all processes, and the time
// that a hypervisor stole.
type machineTime struct {
	busy, stolen, all time.Duration
}

// parseMachine parses the first line of /proc/stat (proc(5)).
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

// foreign returns the share of the machine's time between two accounts that other processes used.
// ours is the time of the bench's processes.
func (m machineTime) foreign(before machineTime, ours time.Duration) float64 {
	all := m.all - before.all
	if all <= 0 {
		return 0
	}
	others := (m.busy - before.busy) - ours
	return max(0, float64(others+m.stolen-before.stolen)/float64(all))
}

// resident is the resident memory of a process in KiB: all of it, its own, and what it shares by shared memory. The
// rest are pages of files, such as the program's.
type resident struct{ all, own, shared int }

// readResident reads the memory of a process (proc_pid_status(5)).
func readResident(pid int) (resident, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return resident{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	var r resident
	for line := range strings.Lines(string(content)) {
		name, rest, _ := strings.Cut(line, ":")
		value, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		switch name {
		case "VmRSS":
			r.all = value
		case "RssAnon":
			r.own = value
		case "RssShmem":
			r.shared = value
		}
	}
	if r.all == 0 {
		return resident{}, fmt.Errorf("reading the memory of process %d: no value found", pid)
	}
	return r, nil
}

func (r resident) String() string {
	mib := func(kib int) float64 { return float64(kib) / 1024 }
	return fmt.Sprintf("%.1f MiB (own %.1f, shared with Envoy %.1f, pages of files %.1f)", mib(r.all), mib(r.own), mib(r.shared), mib(r.all-r.own-r.shared))
}
