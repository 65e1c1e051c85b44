//go:build !linux

package redistest

import "syscall"

// processGroup puts a server into its own process group. Only Linux kills a child with its parent.
func processGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
