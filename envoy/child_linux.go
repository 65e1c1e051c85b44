package envoy

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ownGroup puts the child into its own process group, so that Ctrl-C in the terminal reaches only
// Gatepost, which then stops the child gracefully. It also makes the kernel kill the child when
// Gatepost dies.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// raiseFileLimit raises the child's soft limit of open files to its hard limit. The usual soft
// limit of 1024 allows about 500 clients, and unlike a Go program, Envoy does not raise it.
// Failures are ignored.
func raiseFileLimit(pid int) {
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return
	}
	limit.Cur = limit.Max
	_ = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil)
}
