// Package history decides which definitions of a file are revisions: those that every Envoy has served, each time that
// they differ from the ones before. They are kept in a file in the data folder, for gateways whose definitions are not
// in Redis.
package history

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"gatepost/definitions"
	"gatepost/definitions/revisions"
)

// fileName is the name of the file in the data folder.
const fileName = "definitions.db"

// openTimeout is how long Open waits for another process to release the file.
const openTimeout = 3 * time.Second

// The buckets: the number of a revision, big endian, → what is known about it, and → its file.
var aboutBucket, textsBucket = []byte("about"), []byte("texts")

// Store is the revisions of one gateway. It is safe for concurrent use.
type Store struct {
	db *bbolt.DB

	mu       sync.Mutex
	expected string // the sum of the text that note is about
	note     revisions.Note
	// last is what Add was last called with, so that it need not be parsed again to see what changes. It shares the
	// unchanged services of the version in force.
	last *definitions.Definitions
}

// Open opens the file in the folder dir, and creates both if they are missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the history of the definitions: %w", err)
	}
	db, err := bbolt.Open(filepath.Join(dir, fileName), 0o600, &bbolt.Options{Timeout: openTimeout})
	if err != nil {
		return nil, fmt.Errorf("opening the history of the definitions: %v", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, about := tx.CreateBucketIfNotExists(aboutBucket)
		_, texts := tx.CreateBucketIfNotExists(textsBucket)
		return errors.Join(about, texts)
	})
	if err != nil {
		return nil, fmt.Errorf("opening the history of the definitions: %v", errors.Join(err, db.Close()))
	}
	return &Store{db: db}, nil
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Expect gives the next revision with this text a note, if it is the next.
func (s *Store) Expect(text []byte, note revisions.Note) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected, s.note = definitions.Hash(text), note
}

// noteFor returns the note for a text. A text that nobody announced was put into the file.
func (s *Store) noteFor(sum string) revisions.Note {
	s.mu.Lock()
	defer s.mu.Unlock()
	note := revisions.Note{Who: "the file"}
	if sum == s.expected {
		note = s.note
	}
	s.expected = ""
	return note
}

// Add keeps definitions as the newest revision, unless they are it already, and removes the oldest.
func (s *Store) Add(d *definitions.Definitions) error {
	s.mu.Lock()
	last := s.last
	s.last = d
	s.mu.Unlock()
	r := revisions.Revision{Number: 1, Stored: time.Now().UTC().Truncate(time.Millisecond), Sum: d.Hash()}
	var before *definitions.Gateway
	switch newest, err := s.Newest(); {
	case err == nil && newest.Sum == r.Sum:
		return nil
	case err == nil:
		r.Number = newest.Number + 1
		if last == nil || last.Hash() != newest.Sum {
			last, _ = s.Load(context.Background(), newest) // if it is damaged, everything counts as new
		}
		if last != nil {
			before = last.Gateway
		}
	case !errors.Is(err, revisions.ErrNone):
		return err
	}
	r.Note = s.noteFor(r.Sum)
	r.Change = revisions.Change(before, d.Gateway)
	about, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("keeping a revision: %w", err)
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		abouts, texts, old := tx.Bucket(aboutBucket), tx.Bucket(textsBucket), key(r.Number-revisions.Kept)
		return errors.Join(abouts.Put(key(r.Number), about), texts.Put(key(r.Number), d.Text), abouts.Delete(old), texts.Delete(old))
	})
	if err != nil {
		return fmt.Errorf("keeping a revision: %v", err)
	}
	return nil
}

// Newest returns the newest revision, or revisions.ErrNone.
func (s *Store) Newest() (r revisions.Revision, err error) {
	err = s.db.View(func(tx *bbolt.Tx) (err error) {
		r, err = decode(tx.Bucket(aboutBucket).Cursor().Last())
		return err
	})
	if err != nil {
		return revisions.Revision{}, fmt.Errorf("reading the newest revision: %w", err)
	}
	return r, nil
}

// History returns all revisions, the newest first.
func (s *Store) History(context.Context) (all []revisions.Revision, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(aboutBucket).ForEach(func(number, about []byte) error {
			r, err := decode(number, about)
			all = append(all, r)
			return err
		})
	})
	slices.Reverse(all)
	if err != nil {
		return nil, fmt.Errorf("reading the history of the definitions: %w", err)
	}
	return all, nil
}

// About returns a revision, or revisions.ErrNone.
func (s *Store) About(_ context.Context, number int64) (r revisions.Revision, err error) {
	err = s.db.View(func(tx *bbolt.Tx) (err error) {
		r, err = decode(key(number), tx.Bucket(aboutBucket).Get(key(number)))
		return err
	})
	if err != nil {
		return revisions.Revision{}, fmt.Errorf("reading revision %d: %w", number, err)
	}
	return r, nil
}

// decode returns a revision from what the file has about it, or revisions.ErrNone.
func decode(number, about []byte) (r revisions.Revision, err error) {
	if about == nil {
		return r, revisions.ErrNone
	}
	if err := json.Unmarshal(about, &r); err != nil {
		return r, fmt.Errorf("%w: revision %d: %v", revisions.ErrDamaged, binary.BigEndian.Uint64(number), err)
	}
	return r, nil
}

// Text returns the file of a revision. Of a folder it is one file with the same meaning.
func (s *Store) Text(_ context.Context, r revisions.Revision) (text []byte, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		text = slices.Clone(tx.Bucket(textsBucket).Get(key(r.Number)))
		return nil
	})
	if err == nil && definitions.Hash(text) != r.Sum {
		err = revisions.ErrDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("reading revision %d: %w", r.Number, err)
	}
	return text, nil
}

// Load returns the definitions of a revision.
func (s *Store) Load(ctx context.Context, r revisions.Revision) (*definitions.Definitions, error) {
	text, err := s.Text(ctx, r)
	if err != nil {
		return nil, err
	}
	return definitions.Parse(fmt.Sprintf("revision %d", r.Number), text)
}

func key(number int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(number)) }
