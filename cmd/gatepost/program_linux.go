package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// releaseProgram takes the pages of the program itself, code and constants, out of the process; they are in the system's cache, and
// come again when they are used. A start goes through most of them, and what goes on uses a fraction.
func releaseProgram() {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return // memory for nothing is no reason to fail
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer maps.Close()
	for _, m := range programMappings(maps, path) {
		// What cannot be released (EINVAL: it is locked) stays.
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, m.from, m.to-m.from, syscall.MADV_DONTNEED)
	}
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// programMappings are the mappings of the file at path in smaps (proc(5)) that are as the file is: those that nobody may write,
// and nobody has written, as a loader does where a program is relocated, or a debugger. What was written is resident or swapped out.
func programMappings(smaps io.Reader, path string) []mapping {
	var all []mapping
	var last mapping
	ours, clean := false, 0
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		line := lines.Text()
		var m mapping
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &m.from, &m.to, &mode); n == 3 {
			last, clean = m, 0
			ours = strings.HasSuffix(line, " "+path) && (mode == "r-xp" || mode == "r--p")
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		if (name == "Anonymous" || name == "Swap") && strings.TrimSpace(value) == "0 kB" {
			clean++
		}
		if ours && clean == 2 {
			all, ours = append(all, last), false
		}
	}
	return all
}
