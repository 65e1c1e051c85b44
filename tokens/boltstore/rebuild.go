package boltstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gatepost/atomicfile"
	"gatepost/tokens"

	"go.etcd.io/bbolt"
)

// errDamaged is the error of an unreadable part of the database.
var errDamaged = errors.New("the file is damaged")

// rebuildBatch is the number of records per transaction.
const rebuildBatch = 10_000

// open opens the database at path. If a page is damaged, it first rebuilds the database from the
// readable records.
func (s *Store) open(path string) (*bbolt.DB, error) {
	db, file, err := openFile(path)
	if err != nil && !errors.Is(err, errDamaged) {
		return nil, explain(path, err)
	}
	damaged, err := s.rebuildIfDamaged(file, path, err)
	switch {
	case db == nil:
		_ = file.Close() // releases its lock too
	case damaged || err != nil:
		_ = db.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	if damaged {
		if db, _, err = openFile(path); err != nil {
			return nil, explain(path, err)
		}
	}
	return db, nil
}

// openFile opens a file with bbolt. If the error is errDamaged, file is open and holds the lock.
func openFile(path string) (db *bbolt.DB, file *os.File, err error) {
	options := &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType,
		OpenFile: func(name string, flags int, mode os.FileMode) (*os.File, error) {
			var err error
			file, err = os.OpenFile(name, flags, mode)
			return file, err
		}}
	err = guarded(func() (err error) {
		db, err = bbolt.Open(path, 0o600, options)
		return err
	})
	return db, file, err
}

// rebuildIfDamaged reads the whole file. If a part is unreadable or opening failed, it replaces the
// file and returns true. The damaged file is kept beside the new one.
func (s *Store) rebuildIfDamaged(file *os.File, path string, opening error) (damaged bool, err error) {
	p, err := newPages(file)
	if err != nil {
		return false, err
	}
	if p.oneMeta {
		s.damage.Inc()
		s.log.Warn("one of the two meta pages of the token database is damaged; if it was the newer, the last change before this start is lost: "+
			"repeat a revoke that was made then", "file", path)
	}
	if err := p.walkAll(func(string, []byte, []byte) {}); err != nil {
		s.damage.Inc()
		return false, fmt.Errorf("%w, and its revoked tokens cannot be told from live ones (%w): move it away, and users log in again", errDamaged, err)
	}
	if len(p.damaged) > 0 {
		opening = p.damaged[0]
	}
	if opening == nil {
		return false, nil
	}
	s.damage.Inc()
	found, err := readable(file)
	if err != nil {
		return false, err
	}
	if len(found.sessions) == 0 {
		return false, fmt.Errorf("%w, and no session in it can be read (%w): move it away, and users log in again", errDamaged, opening)
	}
	live, err := found.write(path + ".next")
	if err != nil {
		return false, fmt.Errorf("rebuilding the damaged file: %w", err)
	}
	aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000")
	if err := errors.Join(os.Link(path, aside), os.Rename(path+".next", path), atomicfile.SyncDir(filepath.Dir(path))); err != nil {
		return false, fmt.Errorf("replacing the damaged file: %w", err)
	}
	s.log.Error("the token database was damaged; rebuilt it from all that can be read, users of other sessions log in again",
		"reason", opening, "damaged_pages", len(p.damaged), "sessions", live, "damaged_file", aside)
	return true, nil
}

// contents are the sessions in a file, live or not, and their last uses.
type contents struct {
	sessions []*tokens.Record
	seen     map[string][]byte // public id → a value of seenBucket
}

// readable returns the readable records of a file. It skips the indexes, which follow from the
// sessions.
func readable(file *os.File) (*contents, error) {
	p, err := newPages(file)
	if err != nil {
		return nil, err
	}
	found := &contents{seen: map[string][]byte{}}
	err = p.walkAll(func(bucket string, key, value []byte) {
		switch bucket {
		case string(tokensBucket):
			var h tokens.Hash
			if len(key) != len(h) {
				return
			}
			copy(h[:], key)
			// A single unreadable record may have another version, so it does not cause a rebuild.
			if record, err := tokens.DecodeRecord(h, value); err == nil {
				found.sessions = append(found.sessions, record)
			}
		case string(seenBucket):
			found.seen[string(key)] = bytes.Clone(value)
		}
	})
	return found, err
}

// write creates a database of the contents and returns the number of live sessions. Exchanged
// tokens lose their grace, because their session may be among the lost ones.
func (c *contents) write(path string) (live int, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := makeBuckets(db); err != nil {
		return 0, err
	}
	now := time.Now()
	for rest := c.sessions; len(rest) > 0; {
		batch := rest[:min(len(rest), rebuildBatch)]
		rest = rest[len(batch):]
		err := db.Update(func(tx *bbolt.Tx) error {
			t := &change{tx: tx, now: now}
			for _, record := range batch {
				kept, err := t.keep(record, c.seen)
				if err != nil {
					return err
				}
				live += kept
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return live, nil
}

// keep writes a record unless it has expired. It returns 1 for a live session.
func (t *change) keep(record *tokens.Record, seen map[string][]byte) (int, error) {
	session := record.Session
	switch {
	case record.Retired && t.now.Before(session.Ends):
		retired, err := tokens.EncodeRetired(session)
		return 0, errors.Join(err, t.tx.Bucket(tokensBucket).Put(session.Hash[:], retired))
	case record.Retired || !session.Live(t.now):
		return 0, nil
	}
	data, err := tokens.EncodeRecord(session)
	if err = errors.Join(err, t.put(session, data)); err != nil {
		return 0, err
	}
	if last := seen[session.ID]; last != nil {
		err = t.tx.Bucket(seenBucket).Put([]byte(session.ID), last)
	}
	return 1, err
}
