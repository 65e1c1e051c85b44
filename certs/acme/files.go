package acme

import (
	"context"
	"sync"

	"github.com/caddyserver/certmagic"
)

// Storage keeps account, certificates, challenges and failures, and has locks for those who share it.
type Storage interface {
	certmagic.Storage
	// Announce reports a change of a name to all that follow.
	Announce(ctx context.Context, name string) error
	// Follow calls changed for each announced name until ctx ends. The name is empty if any name may have changed.
	Follow(ctx context.Context, changed func(name string))
}

// Files is a Storage in a folder that no other process uses. Its files can be read by their owner alone.
type Files struct {
	certmagic.FileStorage

	mu    sync.Mutex
	locks map[string]chan struct{} // :: name → has a value while it is locked
}

// NewFiles returns a Storage in a folder, which is made when it is first used.
func NewFiles(dir string) *Files {
	return &Files{FileStorage: certmagic.FileStorage{Path: dir}, locks: map[string]chan struct{}{}}
}

func (f *Files) lock(name string) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locks[name] == nil {
		f.locks[name] = make(chan struct{}, 1)
	}
	return f.locks[name]
}

// Lock waits for a lock. Locks are in memory, so none is left behind by a process that was killed.
func (f *Files) Lock(ctx context.Context, name string) error {
	select {
	case f.lock(name) <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unlock releases a lock.
func (f *Files) Unlock(_ context.Context, name string) error {
	<-f.lock(name)
	return nil
}

// TryLock acquires a lock if nobody has it.
func (f *Files) TryLock(_ context.Context, name string) (bool, error) {
	select {
	case f.lock(name) <- struct{}{}:
		return true, nil
	default:
		return false, nil
	}
}

// Announce does nothing, because nobody shares the folder.
func (*Files) Announce(context.Context, string) error { return nil }

// Follow waits until ctx ends.
func (*Files) Follow(ctx context.Context, _ func(name string)) { <-ctx.Done() }
