package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// dataLockFile is the file in the data folder that a running gateway holds a lock on (flock). It
// has no content and stays.
const dataLockFile = "gatepost.lock"

// lockedFor is how long a start waits for the lock: long enough for the end of the process that is
// being replaced.
const lockedFor = 3 * time.Second

// lockData locks the data folder for this process: two gateways would overwrite each other's
// definitions. The lock ends when the returned file is closed, or with the process. A folder that
// cannot be locked for another reason (read-only, or a file system without locks) is logged and
// used as it is.
func lockData(ctx context.Context, dir string, logger *slog.Logger) (*os.File, error) {
	file, err := openLock(dir)
	if err != nil {
		logger.Warn("locking --data failed: nothing prevents another gateway from using it", "error", err)
		return nil, nil
	}
	for deadline := time.Now().Add(lockedFor); ; {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return file, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			logger.Warn("locking --data failed: nothing prevents another gateway from using it", "error", err)
			return file, nil
		case time.Now().After(deadline):
			file.Close()
			return nil, fmt.Errorf("locking the data folder %s: another gateway uses it; stop that one, or give this one a folder of its own (--data)", dir)
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("locking the data folder %s: %w", dir, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func openLock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, dataLockFile), os.O_RDWR|os.O_CREATE, 0o600)
}
