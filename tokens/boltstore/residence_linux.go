package boltstore

import (
	"syscall"

	"go.etcd.io/bbolt"
)

// release gives the pages of the file that are mapped into this process back to the system, which keeps them cached
// as long as nobody needs the memory more. bbolt maps the whole file, and a sweep reads all of it: without this the
// process would seem to hold it all.
func release(db *bbolt.DB) error {
	// Within a read transaction the mapping stays where it is. It is shared with the file and is read only, so
	// dropping its pages loses nothing (madvise(2), MADV_DONTNEED).
	return db.View(func(tx *bbolt.Tx) error {
		_, _, code := syscall.Syscall(syscall.SYS_MADVISE, db.Info().Data, uintptr(tx.Size()), syscall.MADV_DONTNEED)
		if code != 0 {
			return code
		}
		return nil
	})
}
