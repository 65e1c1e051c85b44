package table

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sharedMemory is the system's folder for files in memory. A table on a disk would be written back, and its writer wait for that.
const sharedMemory = "/dev/shm"

// Folder makes a folder for a table in shared memory, which this user alone can enter. It removes those that processes of this user
// have left behind that were killed: each process holds a lock on its own. release removes it.
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
	if err != nil { // another process has taken it for one that was left behind
		return "", nil, fmt.Errorf("locking a folder in %s: %w", parent, err)
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), held.Close()) }, nil
}

// lock locks a folder that nobody else has locked, until it is closed.
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
