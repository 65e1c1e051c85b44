//go:build unix && !linux

package envoy

import "syscall"

// ownGroup puts the child into its own process group, so that Ctrl-C in the terminal reaches only
// Gatepost, which then stops the child gracefully. Only Linux can also kill the child when Gatepost
// dies.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// raiseFileLimit does nothing: only on Linux can a process change another's limit.
func raiseFileLimit(int) {}
