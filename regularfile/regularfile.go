// Package regularfile decides which files Gatepost reads for a person who names them: regular ones of a limited size.
// Opening or reading a named pipe or a device can block forever, and a device can be endless.
package regularfile

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// MaxSize is the size of the largest file that [Read] reads, in bytes. A list of all public CAs has a quarter of a MiB.
const MaxSize = 4 << 20

// Open opens the file at path, or what a symbolic link there leads to, for reading. It never blocks on a file that is
// not regular, which is an error. Errors name the path.
func Open(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, notRegular(path, info.Mode()) // opening a device can have an effect
	}
	// Non-blocking, because the file may have been replaced by a pipe since.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path, info.Mode())
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// Read reads the file at path as [Open] opens it, at once. A file that is larger than MaxSize is an error.
func Read(path string) ([]byte, error) {
	content, err := ReadUpTo(path, MaxSize+1)
	if err == nil && len(content) > MaxSize {
		return nil, fmt.Errorf("%s is larger than %d MiB; name the file that is meant", path, MaxSize>>20)
	}
	return content, err
}

// ReadUpTo reads at most the first limit bytes of the file at path, as [Open] opens it.
func ReadUpTo(path string, limit int64) ([]byte, error) {
	file, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	var content bytes.Buffer
	content.Grow(int(min(info.Size(), limit)) + bytes.MinRead) // so that reading it to its end needs no second buffer
	_, err = content.ReadFrom(io.LimitReader(file, limit))
	return content.Bytes(), err
}

// notRegular is the error for a path at which there is no regular file.
func notRegular(path string, mode fs.FileMode) error {
	kind := "a device"
	switch {
	case mode.IsDir():
		kind = "a directory"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a pipe"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	}
	return fmt.Errorf("%s is %s, not a regular file; write its content to a file", path, kind)
}
