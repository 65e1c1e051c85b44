package table

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
)

const hitsBytes = 8 * hitsSlots * hitsWords

// Hits are the counts of requests that the module has allowed, by service, since the table was
// created.
type Hits []byte

// Of returns the hits of a service.
func (h Hits) Of(service string) uint64 {
	if len(h) != hitsBytes {
		return 0
	}
	id := ServiceID(service)
	for i := range uint64(hitsProbes) {
		slot := h[(id+i)%hitsSlots*hitsWords*8:]
		switch binary.NativeEndian.Uint64(slot) {
		case id:
			return binary.NativeEndian.Uint64(slot[8:])
		case 0:
			return 0
		}
	}
	return 0
}

// ServiceID identifies a service in the hits file. It is never 0.
func ServiceID(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return max(1, h.Sum64())
}

// Hits reads the hits file. It does not map the file: Envoy may write to it, and an access to a
// mapped file that Envoy has truncated would end this process. On amd64 and arm64 the kernel copies
// whole words, so a count is not torn.
func (t *Table) Hits() Hits {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	raw := make(Hits, hitsBytes)
	if t.words == nil {
		return nil
	}
	if _, err := t.hits.ReadAt(raw, 0); err != nil {
		return nil
	}
	return raw
}

// createHits creates the hits file, replacing any other. Envoy may write to it, so only this user
// has access. If the folder is set-group-ID, its group has access too, as for the sockets.
func createHits(path string) (f *os.File, err error) {
	dir := filepath.Dir(path)
	folder, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(0o600)
	if folder.Mode()&os.ModeSetgid != 0 {
		mode = 0o660
	}
	if f, err = os.CreateTemp(dir, filepath.Base(path)+".*"); err != nil {
		return nil, err
	}
	_, err = f.Write(make([]byte, hitsBytes)) // allocates all of it
	if err = errors.Join(err, f.Chmod(mode)); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("creating the file of hits: %w", err), f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}
