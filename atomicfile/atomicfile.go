// Package atomicfile decides how a file is replaced: in one step, so that no reader finds a part of it, also after a
// crash of the machine.
package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write replaces the file, or creates it with this mode. When it returns, the content and the name are on the disk. If
// it returns an error, the old file is still there.
func Write(path string, data []byte, mode os.FileMode) (err error) {
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return SyncDir(dir)
}

// SyncDir makes the names of the files in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
