package redistest

import "syscall"

// processGroup puts a server into its own process group, with the children that it forks to save.
// The kernel kills it when the test's process ends.
func processGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
