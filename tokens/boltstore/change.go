package boltstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"gatepost/tokens"

	"go.etcd.io/bbolt"
)

// errUnchanged ends a change that has nothing to do. No transaction is written and the call
// succeeds.
var errUnchanged = errors.New("nothing to change")

// change is one write transaction, and the tokens that become invalid with it.
type change struct {
	tx      *bbolt.Tx
	now     time.Time
	ended   []tokens.Hash
	skipped error // errors of unreadable records that were not needed
}

// update makes a change and returns after it is on disk. If the context ends before, the change may
// still be made: its outcome is unknown.
func (s *Store) update(ctx context.Context, doing string, apply func(*change) error) error {
	if err := ctx.Err(); err != nil {
		return unavailable(doing, err)
	}
	select {
	case s.writing <- struct{}{}:
	case <-s.done:
		return unavailable(doing, errClosed)
	case <-ctx.Done():
		return unavailable(doing, ctx.Err())
	}
	result := newResult()
	go func() {
		err := s.commit(apply)
		<-s.writing
		result <- err
	}()
	select {
	case err := <-result:
		return answer(doing, err)
	case <-ctx.Done():
		return unavailable(doing, ctx.Err())
	}
}

func newResult() chan error { return make(chan error, 1) }

var errClosed = errors.New("the store is closed")

// commit makes the change. After it is on disk and before the caller continues, it calls onEnd for
// each ended token.
func (s *Store) commit(apply func(*change) error) (err error) {
	var t *change
	err = s.write(func(tx *bbolt.Tx) error {
		t = &change{tx: tx, now: time.Now()}
		return apply(t)
	})
	s.countDamage(err)
	if t != nil {
		// After a failed commit too: the next look-up reads the file.
		if onEnd := s.onEnd.Load(); onEnd != nil {
			for _, h := range t.ended {
				(*onEnd)(h)
			}
		}
		s.reportSkipped(t.skipped)
	}
	return err
}

// write runs f in a write transaction. If damage prevents the roll-back, bbolt's lock stays held
// and no more changes are possible.
func (s *Store) write(f func(*bbolt.Tx) error) error {
	if s.stuck.Load() {
		return fmt.Errorf("%w (a restart rebuilds it): a change could not be rolled back", errDamaged)
	}
	var tx *bbolt.Tx
	err := guarded(func() (err error) {
		if tx, err = s.db.Begin(true); err != nil {
			return err
		}
		if err := f(tx); err != nil {
			return err
		}
		return tx.Commit()
	})
	switch {
	case err == nil:
	case tx != nil:
		// a closed transaction is not damage
		s.stuck.Store(errors.Is(guarded(tx.Rollback), errDamaged))
	default:
		s.stuck.Store(errors.Is(err, errDamaged))
	}
	return err
}

// view runs ask in a read transaction.
func (s *Store) view(doing string, ask func(*bbolt.Tx) error) error {
	err := guarded(func() error { return s.db.View(ask) })
	s.countDamage(err)
	return answer(doing, err)
}

// guarded calls f and returns a panic as an error, because bbolt panics if the file is damaged. A
// wrong offset, or a file shorter than its pages, causes a fault in the mapped memory, which would
// end the process.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // applies to this goroutine only
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w (a restart rebuilds it): %v", errDamaged, p)
		}
	}()
	return f()
}

// countDamage counts an error caused by a damaged page or record.
func (s *Store) countDamage(err error) {
	if errors.Is(err, errDamaged) || errors.Is(err, tokens.ErrCorrupt) {
		s.damage.Inc()
	}
}

// reportSkipped counts and logs the unreadable records that a call has skipped.
func (s *Store) reportSkipped(damaged error) {
	if damaged != nil {
		s.countDamage(damaged)
		s.log.Error("skipped token records that cannot be read", "error", damaged)
	}
}

// answer returns the errors of [tokens.Store] unchanged, and any other error as an ErrUnavailable.
func answer(doing string, err error) error {
	switch {
	case err == nil, errors.Is(err, errUnchanged):
		return nil
	case errors.Is(err, tokens.ErrUnknown), errors.Is(err, tokens.ErrInvalid), errors.Is(err, tokens.ErrUnavailable):
		return err
	}
	return unavailable(doing, err)
}

// userEntry is the key of a session in its user's index.
func userEntry(s *tokens.Session) []byte {
	user := sha256.Sum256([]byte(s.User))
	return append(user[:], s.Hash[:]...)
}

// put stores a session's record and its index entries.
func (t *change) put(s *tokens.Session, record []byte) error {
	return errors.Join(
		t.tx.Bucket(tokensBucket).Put(s.Hash[:], record),
		t.tx.Bucket(usersBucket).Put(userEntry(s), nil),
		t.tx.Bucket(idsBucket).Put([]byte(s.ID), s.Hash[:]),
	)
}

// end deletes a session, and ends the grace of its previous token. The records of exchanged tokens
// stay, to detect reuse.
func (t *change) end(s *tokens.Session) error {
	t.ended = append(t.ended, s.Hash)
	return errors.Join(
		t.endPredecessor(s),
		t.tx.Bucket(tokensBucket).Delete(s.Hash[:]),
		t.tx.Bucket(usersBucket).Delete(userEntry(s)),
		t.tx.Bucket(idsBucket).Delete([]byte(s.ID)),
		t.tx.Bucket(seenBucket).Delete([]byte(s.ID)),
	)
}

// endByID ends the session with a public id if it is live.
func (t *change) endByID(id string) error {
	var h tokens.Hash
	if copy(h[:], t.tx.Bucket(idsBucket).Get([]byte(id))) == 0 {
		return nil
	}
	record, err := read(t.tx, h)
	if err != nil {
		return err
	}
	return t.end(record.Session)
}

// endAll ends all sessions of a user and returns the number of live ones. It deletes unreadable
// records too.
func (t *change) endAll(user string) (live int, err error) {
	all := tokensOf(t.tx, user)
	if len(all) == 0 {
		return 0, errUnchanged
	}
	for _, h := range all {
		session := &tokens.Session{Hash: h, User: user}
		if record, err := read(t.tx, h); err == nil && record.Retired {
			if err := t.endGrace(session); err != nil {
				return 0, err
			}
			continue
		} else if err == nil {
			session = record.Session
		}
		if session.Live(t.now) {
			live++
		}
		if err := t.end(session); err != nil {
			return 0, err
		}
	}
	return live, nil
}

// exchange replaces a session's token by the next one. A session has at most two valid tokens, so
// the grace of the previous token ends.
func (t *change) exchange(before *tokens.Session, next tokens.Successor, record []byte, grace time.Duration) error {
	t.ended = append(t.ended, before.Hash)
	if err := errors.Join(t.endPredecessor(before), t.put(next.Session, record)); err != nil {
		return err
	}
	if grace <= 0 {
		retired, err := tokens.EncodeRetired(before)
		return errors.Join(err,
			t.tx.Bucket(tokensBucket).Put(before.Hash[:], retired),
			t.tx.Bucket(usersBucket).Delete(userEntry(before)),
		)
	}
	predecessor, err := tokens.EncodePredecessor(before, next, next.GraceEnds(t.now, grace))
	return errors.Join(err,
		t.tx.Bucket(tokensBucket).Put(before.Hash[:], predecessor),
		t.tx.Bucket(idsBucket).Put([]byte(before.ID), slices.Concat(next.Session.Hash[:], before.Hash[:])),
	)
}

// endPredecessor ends the grace of the session's previous token, if there is one.
func (t *change) endPredecessor(s *tokens.Session) error {
	both := t.tx.Bucket(idsBucket).Get([]byte(s.ID))
	before := tokens.Session{User: s.User}
	if len(both) != 2*len(s.Hash) || !bytes.HasPrefix(both, s.Hash[:]) {
		return nil
	}
	copy(before.Hash[:], both[len(s.Hash):])
	return t.endGrace(&before)
}

// endGrace ends the grace of an exchanged token. The remaining record detects a second exchange
// until the session ends. An unreadable record is deleted.
func (t *change) endGrace(s *tokens.Session) error {
	t.ended = append(t.ended, s.Hash)
	forgotten := t.tx.Bucket(usersBucket).Delete(userEntry(s))
	record, err := read(t.tx, s.Hash)
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		return forgotten
	case err != nil:
		return errors.Join(forgotten, t.tx.Bucket(tokensBucket).Delete(s.Hash[:]))
	}
	retired, err := tokens.EncodeRetired(record.Session)
	return errors.Join(err, forgotten, t.tx.Bucket(tokensBucket).Put(s.Hash[:], retired))
}

// makeRoom ends the user's sessions that expire first until at most limit are left.
func (t *change) makeRoom(user string, limit int) error {
	live, damaged := sessionsOf(t.tx, user, t.now)
	t.skipped = errors.Join(t.skipped, damaged) // they are invalid and must not prevent a login
	if len(live) <= limit {
		return nil
	}
	slices.SortFunc(live, func(a, b *tokens.Session) int { return a.Expires.Compare(b.Expires) })
	for _, session := range live[:len(live)-limit] {
		if err := t.end(session); err != nil {
			return err
		}
	}
	return nil
}

// formatSeen and readSeen encode and decode the time, in milliseconds, and address of a last use.
func formatSeen(at time.Time, address string) []byte {
	address = strings.ToValidUTF8(address[:min(len(address), 100)], "?")
	return append(binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli())), address...)
}

func readSeen(s *tokens.Session, seen []byte) {
	if len(seen) >= 8 {
		s.LastSeen = time.UnixMilli(int64(binary.BigEndian.Uint64(seen))).UTC()
		s.LastAddress = string(seen[8:])
	}
}
