package table

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is a file of 64-bit words in shared memory.
type mapping []uint64

// createFile creates a file of zeros and maps it. The file is written beside path and publish
// renames it, so no reader finds a partial file. All memory is allocated at once, because a page
// that cannot be allocated later would end the process.
func createFile(path string, words int) (m mapping, publish func() error, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	size := int64(words) * 8
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return nil, nil, fmt.Errorf("allocating %d bytes: %w", size, err)
	}
	// Envoy may run as another user; the folder limits access
	if err := f.Chmod(0o644); err != nil {
		return nil, nil, err
	}
	raw, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mapping: %w", err)
	}
	publish = func() error {
		if err := os.Rename(f.Name(), path); err != nil {
			return errors.Join(err, os.Remove(f.Name()))
		}
		return nil
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(raw))), words), publish, nil
}

func (m mapping) unmap() error {
	return unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(m))), 8*len(m)))
}

func boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // then no decision is valid
	}
	return time.Duration(t.Nano())
}
