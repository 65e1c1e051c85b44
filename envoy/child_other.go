//go:build unix && !linux

package envoy

import "syscall"

// ownGroup gives the child a process group of its own, so that Ctrl-C in the terminal reaches Gatepost alone,
// which then ends the child gracefully. Only Linux can also end it where Gatepost is killed.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// raiseFileLimit is for Linux: elsewhere a process cannot change another's limit.
func raiseFileLimit(int) {}
