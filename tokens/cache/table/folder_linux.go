package table

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sharedMemory is the system's folder for files in memory. On a disk, writes to the table would
// block on write-back.
const sharedMemory = "/dev/shm"

// Folder creates a folder for a table in shared memory that only this user can enter. Each process
// holds a lock on its folder; Folder removes unlocked folders, which killed processes of this user
// have left. release removes the new folder.
func Folder() (dir string, release func() error, err error) { return folderIn(sharedMemory) }

func folderIn(parent string) (dir string, release func() error, err error) {
	prefix := fmt.Sprintf("gatepost-%d-", os.Getuid())
	left, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return "", nil, err
	}
	for _, dir := range left {
		if lock, err := lock(dir); err == nil {
			_ = os.RemoveAll(dir)
			_ = lock.Close()
		}
	}
	if dir, err = os.MkdirTemp(parent, prefix); err != nil {
		return "", nil, err
	}
	held, err := lock(dir)
	if err != nil { // another process took it for an abandoned one
		return "", nil, fmt.Errorf("locking a folder in %s: %w", parent, err)
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), held.Close()) }, nil
}

// lock takes the lock of a folder, until the file is closed. It fails if another process holds it.
func lock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
