// Package boltstore decides how sessions are stored in one file, for a single gateway without
// Redis.
//
// Each change is one transaction of bbolt, synced to disk before the call returns. So a kill at any
// moment loses no session of an issued token and restores no revoked one. A look-up reads the file,
// which is mapped into memory, in a few microseconds.
package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"gatepost/atomicfile"
	"gatepost/tokens"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// fileName is the name of the database in the data folder.
const fileName = "tokens.db"

// lockTimeout is how long Open waits for another process to release the file: enough for a restart.
const lockTimeout = 3 * time.Second

// The buckets.
var (
	tokensBucket = []byte("tokens") // token hash -> record
	usersBucket  = []byte("users")  // sha-256 of the user + hash of a valid token -> nothing
	// public id of a live session -> token hash [+ predecessor's hash in its grace]
	idsBucket  = []byte("ids")
	seenBucket = []byte("seen") // public id -> time and address of its last use
)

// Config configures a store. The zero Config is valid.
type Config struct {
	// Logger logs errors outside of calls. Nil: nothing is logged.
	Logger *slog.Logger
	// SweepEvery is the interval at which expired sessions are deleted. Default: a minute.
	SweepEvery time.Duration
	// Registerer takes the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer
}

// Store is a [tokens.Store] in a file.
type Store struct {
	db     *bbolt.DB
	log    *slog.Logger
	damage prometheus.Counter // reads of a damaged page or record
	done   chan struct{}      // closed by Close to stop the sweeper

	// writing holds one element while a change is made, so there is at most one. A caller waits
	// until its context ends; then the goroutine that makes the change continues alone.
	writing chan struct{}
	closed  atomic.Bool
	stuck   atomic.Bool   // bbolt cannot write any more
	swept   chan struct{} // closed after the sweeper has stopped
	onEnd   atomic.Pointer[func(tokens.Hash)]
}

var (
	_ tokens.Store   = (*Store)(nil)
	_ tokens.Toucher = (*Store)(nil)
)

// Open opens the store in the folder dir. It creates the folder and the file if they are missing,
// with access for this user only. If another process holds the file, Open fails after a few
// seconds.
func Open(dir string, config Config) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the folder of --data: %w", err)
	}
	s := &Store{
		log: cmp.Or(config.Logger, slog.New(slog.DiscardHandler)),
		damage: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "gatepost_store_damage_total", Help: "Reads of a damaged page or record in the embedded store.",
		}),
		done:    make(chan struct{}),
		writing: make(chan struct{}, 1),
		swept:   make(chan struct{}),
	}
	if config.Registerer != nil {
		if err := config.Registerer.Register(s.damage); err != nil {
			return nil, fmt.Errorf("registering the metrics of the token database: %w", err)
		}
	}
	path := filepath.Join(dir, fileName)
	db, err := s.open(path)
	if err != nil {
		return nil, err
	}
	if err := guarded(func() error { return prepare(db, dir) }); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("preparing %s: %v", path, err)
	}
	s.db = db
	go s.sweepEvery(cmp.Or(config.SweepEvery, time.Minute))
	return s, nil
}

// OnEnd registers f, which is called with each token that becomes invalid, before the call that
// ended it returns, even if that call failed. f must not call the store.
func (s *Store) OnEnd(f func(tokens.Hash)) { s.onEnd.Store(&f) }

// explain adds the remedy to an error of opening a file.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("opening %s: another process holds it: stop that Gatepost, or give this one a folder of its own (--data)", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("opening %s: %w: let the user that runs Gatepost own it and its folder", path, err)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return fmt.Errorf("opening %s: it is no token database, or a damaged one (%v): move it away, and users log in again", path, err)
	}
	return fmt.Errorf("opening %s: %v", path, err)
}

// prepare creates the buckets, then syncs the folder.
func prepare(db *bbolt.DB, dir string) error {
	if err := makeBuckets(db); err != nil {
		return err
	}
	return atomicfile.SyncDir(dir)
}

func makeBuckets(db *bbolt.DB) error {
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{tokensBucket, usersBucket, idsBucket, seenBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// Create implements [tokens.Store].
func (s *Store) Create(ctx context.Context, session *tokens.Session, limit int) error {
	record, err := tokens.EncodeRecord(session)
	if err != nil {
		return err
	}
	return s.update(ctx, "storing a session", func(t *change) error {
		if !session.Live(t.now) {
			return fmt.Errorf("%w: the session has expired", tokens.ErrInvalid)
		}
		if limit > 0 {
			if err := t.makeRoom(session.User, limit-1); err != nil {
				return err
			}
		}
		return t.put(session, record)
	})
}

// Lookup implements [tokens.Store].
func (s *Store) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	var session *tokens.Session
	err := s.view("looking up a token", func(tx *bbolt.Tx) error {
		found, err := read(tx, h)
		if err != nil {
			return err
		}
		if !found.Live(time.Now()) {
			return tokens.ErrUnknown
		}
		session = found.Session
		return nil
	})
	if err != nil {
		return nil, err
	}
	return session, nil
}

// Rotate implements [tokens.Store].
func (s *Store) Rotate(ctx context.Context, old tokens.Hash, next tokens.Successor, grace time.Duration) (tokens.Successor, error) {
	record, err := tokens.EncodeRecord(next.Session)
	if err != nil {
		return tokens.Successor{}, err
	}
	given, reused := next, false
	err = s.update(ctx, "refreshing a token", func(t *change) error {
		before, err := read(t.tx, old)
		switch {
		case err != nil:
			return err
		case before.InGrace(t.now):
			given, err = successor(t.tx, before, t.now)
			return cmp.Or(err, errUnchanged)
		case before.Retired:
			reused = true
			return t.endByID(before.Session.ID)
		case !before.Live(t.now):
			return tokens.ErrUnknown
		case !next.Session.Continues(before.Session):
			return fmt.Errorf("%w: the new token belongs to another session", tokens.ErrInvalid)
		}
		return t.exchange(before.Session, next, record, grace)
	})
	switch {
	case err != nil:
		return tokens.Successor{}, err
	case reused:
		return tokens.Successor{}, tokens.ErrReused
	}
	return given, nil
}

// successor returns the successor of a token in its grace. The grace ends if the successor is
// exchanged or the session ends, so the successor is live unless it has just expired.
func successor(tx *bbolt.Tx, before *tokens.Record, now time.Time) (tokens.Successor, error) {
	next, err := read(tx, before.Next)
	if err != nil {
		return tokens.Successor{}, err
	}
	if next.Retired || !next.Live(now) {
		return tokens.Successor{}, tokens.ErrUnknown
	}
	return tokens.Successor{Session: next.Session, Token: before.Successor}, nil
}

// Revoke implements [tokens.Store]. It also deletes a corrupt record.
func (s *Store) Revoke(ctx context.Context, h tokens.Hash) error {
	return s.update(ctx, "revoking a token", func(t *change) error {
		record, err := read(t.tx, h)
		switch {
		case errors.Is(err, tokens.ErrUnknown):
			return errUnchanged
		case errors.Is(err, tokens.ErrCorrupt):
			return t.tx.Bucket(tokensBucket).Delete(h[:])
		case err != nil:
			return err
		case record.Retired:
			return t.endByID(record.Session.ID)
		}
		return t.end(record.Session)
	})
}

// Sessions implements [tokens.Store]. Unreadable records are logged and left out.
func (s *Store) Sessions(ctx context.Context, user string) ([]*tokens.Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, unavailable("listing sessions", err)
	}
	var live []*tokens.Session
	var damaged error
	err := s.view("listing sessions", func(tx *bbolt.Tx) error {
		live, damaged = sessionsOf(tx, user, time.Now())
		for _, session := range live {
			readSeen(session, tx.Bucket(seenBucket).Get([]byte(session.ID)))
		}
		return nil
	})
	s.reportSkipped(damaged)
	slices.SortFunc(live, func(a, b *tokens.Session) int {
		return cmp.Or(b.Issued.Compare(a.Issued), cmp.Compare(a.ID, b.ID))
	})
	return live, err
}

// RevokeSession implements [tokens.Store].
func (s *Store) RevokeSession(ctx context.Context, user, id string) error {
	return s.update(ctx, "ending a session", func(t *change) error {
		var h tokens.Hash
		if copy(h[:], t.tx.Bucket(idsBucket).Get([]byte(id))) == 0 {
			return tokens.ErrUnknown
		}
		record, err := read(t.tx, h)
		if err != nil {
			return err
		}
		if user != "" && user != record.Session.User || !record.Live(t.now) {
			return tokens.ErrUnknown
		}
		return t.end(record.Session)
	})
}

// RevokeUser implements [tokens.Store].
func (s *Store) RevokeUser(ctx context.Context, user string) (int, error) {
	n := 0
	err := s.update(ctx, "ending a user's sessions", func(t *change) error {
		var err error
		n, err = t.endAll(user)
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Touch implements [tokens.Toucher].
func (s *Store) Touch(ctx context.Context, of tokens.Principal, at time.Time, address string) error {
	return s.update(ctx, "storing the last use of a session", func(t *change) error {
		id := []byte(of.ID())
		if t.tx.Bucket(idsBucket).Get(id) == nil {
			return errUnchanged
		}
		return t.tx.Bucket(seenBucket).Put(id, formatSeen(at, address))
	})
}

// Ping implements [tokens.Store].
func (s *Store) Ping(context.Context) error {
	return s.view("checking that the file is open", func(*bbolt.Tx) error { return nil })
}

// Close implements [tokens.Store]. It waits for a change in progress.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	close(s.done)
	<-s.swept
	s.writing <- struct{}{} // never released, so no change begins again
	if s.stuck.Load() {
		// db.Close would block on bbolt's lock
		return fmt.Errorf("closing the token database: %w", errDamaged)
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("closing the token database: %v", err)
	}
	return nil
}

// read reads a token's record.
func read(tx *bbolt.Tx, h tokens.Hash) (*tokens.Record, error) {
	record := tx.Bucket(tokensBucket).Get(h[:])
	if record == nil {
		return nil, tokens.ErrUnknown
	}
	return tokens.DecodeRecord(h, record)
}

// tokensOf returns the tokens in a user's index.
func tokensOf(tx *bbolt.Tx, user string) []tokens.Hash {
	first := sha256.Sum256([]byte(user))
	var all []tokens.Hash
	entries := tx.Bucket(usersBucket).Cursor()
	for key, _ := entries.Seek(first[:]); bytes.HasPrefix(key, first[:]); key, _ = entries.Next() {
		var h tokens.Hash
		copy(h[:], key[len(first):])
		all = append(all, h)
	}
	return all
}

// sessionsOf returns a user's live sessions, unordered. damaged joins the errors of unreadable
// records.
func sessionsOf(tx *bbolt.Tx, user string, now time.Time) (live []*tokens.Session, damaged error) {
	for _, h := range tokensOf(tx, user) {
		record, err := read(tx, h)
		if err != nil {
			damaged = errors.Join(damaged, err)
			continue
		}
		if session := record.Session; !record.Retired && session.User == user && session.Live(now) {
			live = append(live, session)
		}
	}
	return live, damaged
}

// unavailable returns the error for a failed operation. It keeps only the text of bbolt's error.
func unavailable(doing string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %s: %w", tokens.ErrUnavailable, doing, err)
	}
	return fmt.Errorf("%w: %s: %v", tokens.ErrUnavailable, doing, err)
}
