package envoy

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ownGroup gives the child a process group of its own, so that Ctrl-C in the terminal reaches Gatepost alone,
// which then ends the child gracefully; and has the kernel kill the child when Gatepost dies.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// raiseFileLimit lets the child open as many files as this user may. The usual soft limit of 1024 is some
// 500 clients, and Envoy, unlike a Go program, does not raise it by itself. Where it cannot be raised it stays.
func raiseFileLimit(pid int) {
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return
	}
	limit.Cur = limit.Max
	_ = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil)
}
