package boltstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"gatepost/tokens"

	"go.etcd.io/bbolt"
)

// sweepBatch is the number of records that are read, and at most deleted, in one transaction.
const sweepBatch = 1000

// sweepEvery deletes expired records at an interval until the store is closed.
func (s *Store) sweepEvery(pause time.Duration) {
	defer close(s.swept)
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-ticker.C:
		}
		if n, err := s.sweep(); err != nil {
			s.log.Error("sweeping expired tokens", "error", err)
		} else if n > 0 {
			s.log.Debug("swept expired tokens", "count", n)
		}
		if err := guarded(func() error { return release(s.db) }); err != nil {
			s.log.Debug("releasing mapped memory", "error", err)
		}
	}
}

// sweep checks all records once and returns the number of deleted ones. Look-ups run concurrently,
// and changes run between its batches.
func (s *Store) sweep() (int, error) {
	total := 0
	var from []byte
	for {
		var expired [][]byte
		err := s.view("reading expired tokens", func(tx *bbolt.Tx) (err error) {
			expired, from, err = expiredFrom(tx, from, time.Now())
			return err
		})
		if err != nil {
			return total, err
		}
		if len(expired) > 0 {
			n, err := s.drop(expired)
			total += n
			if err != nil {
				return total, err
			}
		}
		if from == nil {
			return total, nil
		}
		select {
		case <-s.done:
			return total, nil
		default:
		}
	}
}

// expiredFrom returns the expired keys of a batch of records, and the first key of the next batch:
// nil after the last. Keys that are not hashes or not in order are an error, because their page is
// damaged.
func expiredFrom(tx *bbolt.Tx, from []byte, now time.Time) (expired [][]byte, next []byte, err error) {
	records := tx.Bucket(tokensBucket).Cursor()
	seen, before := 0, from
	for key, record := records.Seek(from); key != nil; key, record = records.Next() {
		// The first key of a batch may be the last key of the batch before.
		if order := bytes.Compare(before, key); len(key) != len(tokens.Hash{}) || order > 0 || seen > 0 && order == 0 {
			return nil, nil, fmt.Errorf("%w (a restart rebuilds it): its keys are not in order", errDamaged)
		}
		before = key
		if seen++; seen > sweepBatch {
			return expired, slices.Clone(key), nil
		}
		if over, _ := expiredRecord(key, record, now); over != nil {
			expired = append(expired, slices.Clone(key))
		}
	}
	return expired, nil, nil
}

// expiredRecord returns the session of a record that should not be kept as it is, or nil. A live
// token's record is kept until it expires, a predecessor's until its grace ends, a retired one
// until the session ends. graceOnly reports that only the grace has ended. Unreadable records are
// kept for inspection.
func expiredRecord(key, record []byte, now time.Time) (over *tokens.Session, graceOnly bool) {
	var h tokens.Hash
	if copy(h[:], key) != len(key) {
		return nil, false
	}
	found, err := tokens.DecodeRecord(h, record)
	switch {
	case err != nil, found.Live(now), found.InGrace(now), found.Retired && found.Successor == nil && now.Before(found.Session.Ends):
		return nil, false
	}
	return found.Session, found.Retired && now.Before(found.Session.Ends)
}

// drop deletes expired records with their entries in the indexes, in one transaction.
func (s *Store) drop(keys [][]byte) (int, error) {
	select {
	case s.writing <- struct{}{}:
	case <-s.done:
		return 0, nil
	}
	defer func() { <-s.writing }()
	n := 0
	err := s.commit(func(t *change) error {
		n = 0
		for _, key := range keys {
			session, graceOnly := expiredRecord(key, t.tx.Bucket(tokensBucket).Get(key), t.now)
			if session == nil {
				continue // already deleted
			}
			n++
			drop := t.drop
			if graceOnly {
				drop = t.endGrace
			}
			if err := drop(session); err != nil {
				return err
			}
		}
		if n == 0 {
			return errUnchanged
		}
		return nil
	})
	if errors.Is(err, errUnchanged) {
		err = nil
	}
	return n, err
}

// drop deletes the record of an expired token. It keeps the session's id if that belongs to a newer
// token.
func (t *change) drop(s *tokens.Session) error {
	ids := t.tx.Bucket(idsBucket)
	if current := ids.Get([]byte(s.ID)); current == nil || bytes.HasPrefix(current, s.Hash[:]) {
		return t.end(s)
	}
	t.ended = append(t.ended, s.Hash)
	return errors.Join(t.tx.Bucket(tokensBucket).Delete(s.Hash[:]), t.tx.Bucket(usersBucket).Delete(userEntry(s)))
}
