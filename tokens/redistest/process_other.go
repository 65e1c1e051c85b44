//go:build !linux

package redistest

import "syscall"

// endsWithParent makes no promise here: only Linux kills a child with its parent.
func endsWithParent() *syscall.SysProcAttr { return nil }
