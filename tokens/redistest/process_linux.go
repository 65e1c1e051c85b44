package redistest

import "syscall"

// endsWithParent makes a server die with the test's process, however that ends.
func endsWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
