package redistest

import "syscall"

// ofItsOwn puts a server into a process group of its own, with the children that it forks to save, and makes it die with
// the test's process, however that ends.
func ofItsOwn() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
