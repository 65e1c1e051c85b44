//go:build !linux

package redistest

import "syscall"

// ofItsOwn puts a server into a process group of its own. Only Linux kills a child with its parent.
func ofItsOwn() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
