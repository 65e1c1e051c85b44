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

// sweepBatch is how many records are looked at between two pauses, and deleted in one transaction at the most.
const sweepBatch = 1000

// sweepEvery deletes what has expired, time and again, until the store is closed.
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
			s.log.Debug("giving back memory", "error", err)
		}
	}
}

// sweep goes through all records once and returns how many it deleted. Look-ups go on beside it, and changes between
// its batches.
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

// expiredFrom returns the keys of the expired ones of a batch of records, and the key at which the next batch begins:
// nil after the last. Keys that are no token's hashes, or that are out of order, are an error: they are a damaged page's.
func expiredFrom(tx *bbolt.Tx, from []byte, now time.Time) (expired [][]byte, next []byte, err error) {
	records := tx.Bucket(tokensBucket).Cursor()
	seen, before := 0, from
	for key, record := records.Seek(from); key != nil; key, record = records.Next() {
		// The first key of a batch may be the last one that the batch before has seen.
		if order := bytes.Compare(before, key); len(key) != len(tokens.Hash{}) || order > 0 || seen > 0 && order == 0 {
			return nil, nil, fmt.Errorf("%w (a restart rebuilds it): its keys are not in order", errDamaged)
		}
		before = key
		if seen++; seen > sweepBatch {
			return expired, slices.Clone(key), nil
		}
		if over, _ := whatIsOver(key, record, now); over != nil {
			expired = append(expired, slices.Clone(key))
		}
	}
	return expired, nil, nil
}

// whatIsOver returns a record that need not be kept as it is: of a live token until it expires, of one in its grace until
// that ends, of a retired one until the session ends; and whether it is only the grace that is over. Else it returns nil.
// What cannot be read stays, for whoever has to look at it.
func whatIsOver(key, record []byte, now time.Time) (over *tokens.Session, graceOnly bool) {
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
			session, graceOnly := whatIsOver(key, t.tx.Bucket(tokensBucket).Get(key), t.now)
			if session == nil {
				continue // gone already
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

// drop deletes the record of a token that is over. The session's id may be a newer token's by now; then it stays.
func (t *change) drop(s *tokens.Session) error {
	ids := t.tx.Bucket(idsBucket)
	if current := ids.Get([]byte(s.ID)); current == nil || bytes.HasPrefix(current, s.Hash[:]) {
		return t.end(s)
	}
	t.ended = append(t.ended, s.Hash)
	return errors.Join(t.tx.Bucket(tokensBucket).Delete(s.Hash[:]), t.tx.Bucket(usersBucket).Delete(userEntry(s)))
}
