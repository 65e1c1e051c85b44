package envoy

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ownGroup puts the child into its own process group, so that Ctrl-C in the terminal reaches only
// Gatepost, which then stops the child gracefully. It also makes the kernel kill the child when
// Gatepost dies.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, AmbientCaps: lowPorts()}
}

// lowPorts returns CAP_NET_BIND_SERVICE if Gatepost has it from its file (setcap), so that the child
// may listen on ports below 1024. Without this it would end at the exec; a file capability of Envoy
// would clear Pdeathsig. An ambient capability passes by itself, and a systemd unit forbids raising
// it again. (capabilities(7), prctl(2).)
func lowPorts() []uintptr {
	var sets [2]unix.CapUserData
	if unix.Geteuid() == 0 || unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]) != nil {
		return nil
	}
	has := func(option int, arg2, arg3 uintptr) bool {
		yes, err := unix.PrctlRetInt(option, arg2, arg3, 0, 0)
		return err == nil && yes == 1
	}
	switch {
	case sets[0].Permitted&(1<<unix.CAP_NET_BIND_SERVICE) == 0,
		!has(unix.PR_CAPBSET_READ, unix.CAP_NET_BIND_SERVICE, 0),
		has(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, unix.CAP_NET_BIND_SERVICE):
		return nil
	}
	return []uintptr{unix.CAP_NET_BIND_SERVICE}
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
