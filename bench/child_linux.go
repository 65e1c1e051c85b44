package main

import "syscall"

// endsWithParent makes a child end with the bench, even if the bench is killed.
func endsWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
