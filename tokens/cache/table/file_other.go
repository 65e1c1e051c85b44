//go:build !linux

package table

import (
	"errors"
	"time"
)

type mapping []uint64

func createFile(string, int) (mapping, func() error, error) { return nil, nil, errors.ErrUnsupported }

func (mapping) unmap() error { return nil }

func boottime() time.Duration { return 0 }

// Folder is only supported on Linux.
func Folder() (dir string, release func() error, err error) { return "", nil, errors.ErrUnsupported }
