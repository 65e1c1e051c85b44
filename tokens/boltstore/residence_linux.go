package boltstore

import (
	"syscall"

	"go.etcd.io/bbolt"
)

// release returns the mapped pages of the file to the system, which keeps them cached while memory
// is free. bbolt maps the whole file and a sweep reads all of it, so otherwise all of it would
// count as this process's memory.
func release(db *bbolt.DB) error {
	// A read transaction keeps the mapping in place. The mapping is shared and read-only, so
	// dropping its pages loses nothing (madvise(2), MADV_DONTNEED).
	return db.View(func(tx *bbolt.Tx) error {
		_, _, code := syscall.Syscall(syscall.SYS_MADVISE, db.Info().Data, uintptr(tx.Size()), syscall.MADV_DONTNEED)
		if code != 0 {
			return code
		}
		return nil
	})
}
