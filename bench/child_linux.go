package main

import "syscall"

// endsWithParent has a child end with the bench, however the bench ends.
func endsWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
