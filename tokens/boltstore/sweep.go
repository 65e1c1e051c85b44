package boltstore

import (
	"errors"
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
		if err := release(s.db); err != nil {
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
		err := s.db.View(func(tx *bbolt.Tx) error {
			expired, from = expiredFrom(tx, from, time.Now())
			return nil
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
// nil after the last.
func expiredFrom(tx *bbolt.Tx, from []byte, now time.Time) (expired [][]byte, next []byte) {
	records := tx.Bucket(tokensBucket).Cursor()
	seen := 0
	for key, record := records.Seek(from); key != nil; key, record = records.Next() {
		if seen++; seen > sweepBatch {
			return expired, slices.Clone(key)
		}
		if _, over := whatIsOver(key, record, now); over {
			expired = append(expired, slices.Clone(key))
		}
	}
	return expired, nil
}

// whatIsOver returns the session of a record that need not be kept any longer: of a live token until it expires, of
// a retired one until the session ends. What cannot be read stays, for whoever has to look at it.
func whatIsOver(key, record []byte, now time.Time) (*tokens.Session, bool) {
	var h tokens.Hash
	if copy(h[:], key) != len(key) {
		return nil, false
	}
	session, retired, err := tokens.DecodeRecord(h, record)
	if err != nil {
		return nil, false
	}
	if retired {
		return session, !now.Before(session.Ends)
	}
	return session, !session.Live(now)
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
			session, over := whatIsOver(key, t.tx.Bucket(tokensBucket).Get(key), t.now)
			if !over {
				continue // gone already
			}
			n++
			if err := t.drop(session); err != nil {
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
	if current := ids.Get([]byte(s.ID)); current == nil || string(current) == string(s.Hash[:]) {
		return t.end(s)
	}
	t.ended = append(t.ended, s.Hash)
	return errors.Join(t.tx.Bucket(tokensBucket).Delete(s.Hash[:]), t.tx.Bucket(usersBucket).Delete(userEntry(s)))
}
