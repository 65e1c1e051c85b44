package redisstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatepost/tokens"

	"github.com/redis/go-redis/v9"
)

// Rotate implements [tokens.Store]. The new token is added to the index and its record is written
// before the old record is replaced, in one step that only one caller can make. So an end at any
// time finds both tokens in the index, and a failure before that step leaves the old token
// unchanged. After the step, the old record names the successor, so a retry of a failed call
// returns it.
func (s *Store) Rotate(ctx context.Context, old tokens.Hash, next tokens.Successor, grace time.Duration) (tokens.Successor, error) {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	record, err := tokens.EncodeRecord(next.Session)
	if err != nil {
		return tokens.Successor{}, err
	}
	before, bytes, err := s.read(ctx, tokenKey(old), old)
	now := time.Now()
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		return tokens.Successor{}, s.checkReuse(ctx, old)
	case err != nil:
		return tokens.Successor{}, err
	case before.InGrace(now):
		return s.successor(ctx, before)
	case before.Retired:
		return tokens.Successor{}, s.endReused(ctx, before.Session)
	case !before.Live(now):
		return tokens.Successor{}, tokens.ErrUnknown
	case !next.Session.Continues(before.Session):
		return tokens.Successor{}, fmt.Errorf("%w: the new token belongs to another session", tokens.ErrInvalid)
	}
	return s.exchange(ctx, exchange{before.Session, bytes, next, record, grace})
}

// exchange is the input of one exchange: a live token, its record as read, and the replacement.
type exchange struct {
	before *tokens.Session
	bytes  []byte
	next   tokens.Successor
	record []byte
	grace  time.Duration
}

// exchange replaces the session's token. If the outcome is unknown, it undoes nothing that a retry
// needs.
func (s *Store) exchange(ctx context.Context, x exchange) (tokens.Successor, error) {
	stale, err := s.addSuccessor(ctx, x)
	if isNil(err) {
		return s.lostExchange(ctx, x.before.Hash)
	}
	if err != nil {
		return tokens.Successor{}, unavailable(ctx, "adding a new token to its user's index", err)
	}
	if err := s.write(ctx, x.next.Session, x.record); err != nil {
		return tokens.Successor{}, err
	}
	replaced, err := s.replace(ctx, x)
	if err != nil {
		if x.grace == 0 {
			s.undo(ctx, x.next.Session)
		}
		return tokens.Successor{}, err
	}
	if !replaced {
		s.undo(ctx, x.next.Session)
		return s.lostExchange(ctx, x.before.Hash)
	}
	kept, err := s.supersede(ctx, x, stale)
	if err != nil {
		return tokens.Successor{}, err
	}
	if !kept {
		s.undo(ctx, x.next.Session)
		return tokens.Successor{}, tokens.ErrUnknown
	}
	return x.next, nil
}

// addSuccessor adds the new token if the old one is in the index and returns the session's other
// members. Otherwise it returns redis.Nil.
func (s *Store) addSuccessor(ctx context.Context, x exchange) ([]string, error) {
	return enterSuccessor.Run(ctx, s.client, []string{userKey(x.before.User)}, member(x.before), member(x.next.Session),
		milliseconds(time.Until(x.next.Session.Expires)), entryMargin).StringSlice()
}

// replace replaces the record of the old token if it has not changed since it was read, and reports
// whether it did. With a grace, the new record is valid and expires with the grace, so the record
// that detects a later reuse is stored first. The script is not retried: after a lost reply, it
// would see its own change as another caller's.
func (s *Store) replace(ctx context.Context, x exchange) (bool, error) {
	retired, err := tokens.EncodeRetired(x.before)
	if err != nil {
		return false, err
	}
	replacement, lasts := retired, x.before.Ends
	if x.grace > 0 {
		if err := s.client.Set(ctx, oldKey(x.before.Hash), retired, untilPositive(x.before.Ends)).Err(); err != nil {
			return false, unavailable(ctx, "remembering a refreshed token", err)
		}
		lasts = x.next.GraceEnds(time.Now(), x.grace)
		if replacement, err = tokens.EncodePredecessor(x.before, x.next, lasts); err != nil {
			return false, err
		}
	}
	cmd := redis.NewCmd(ctx, "eval", replaceScript, 1, tokenKey(x.before.Hash), x.bytes, replacement, milliseconds(time.Until(lasts)))
	if err := s.client.Process(ctx, once{cmd}); err != nil {
		return false, unavailable(ctx, "replacing a token", err)
	}
	n, err := cmd.Int()
	if err != nil {
		return false, unavailable(ctx, "replacing a token", err)
	}
	return n == 1, nil
}

// supersede ends the tokens before the old one and those of failed refreshes, so the session has at
// most two. It reports whether the new token is still in the index and unmarked after its record
// was written.
func (s *Store) supersede(ctx context.Context, x exchange, stale []string) (bool, error) {
	var lasts int64
	if x.grace > 0 {
		lasts = milliseconds(x.grace)
	}
	args := []any{member(x.next.Session), member(x.before), lasts}
	pipe := s.client.Pipeline()
	for _, m := range stale {
		if _, h, ok := splitMember(m); ok {
			pipe.Del(ctx, tokenKey(h))
		}
		args = append(args, m)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return false, unavailable(ctx, "ending earlier tokens", err)
	}
	kept, err := supersede.Run(ctx, s.client, []string{userKey(x.before.User)}, args...).Bool()
	if err != nil {
		return false, unavailable(ctx, "adding a new token to its user's index", err)
	}
	return kept, nil
}

// lostExchange returns the result of a failed exchange of a live token:
// another call has exchanged it, or its session was ended.
func (s *Store) lostExchange(ctx context.Context, old tokens.Hash) (tokens.Successor, error) {
	before, _, err := s.read(ctx, tokenKey(old), old)
	switch {
	case err != nil:
		return tokens.Successor{}, err
	case before.InGrace(time.Now()):
		return s.successor(ctx, before)
	case before.Retired:
		return tokens.Successor{}, s.endReused(ctx, before.Session)
	}
	return tokens.Successor{}, tokens.ErrUnknown
}

// successor returns the successor of a token in its grace. It checks the index after it has read
// the record, as [Store.exchange] does: the writer of the record may have crashed before that
// check.
func (s *Store) successor(ctx context.Context, before *tokens.Record) (tokens.Successor, error) {
	next, _, err := s.read(ctx, tokenKey(before.Next), before.Next)
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		return tokens.Successor{}, s.checkReuse(ctx, before.Next)
	case err != nil:
		return tokens.Successor{}, err
	case next.Retired:
		return tokens.Successor{}, s.endReused(ctx, before.Session)
	case !next.Live(time.Now()):
		return tokens.Successor{}, tokens.ErrUnknown
	}
	kept, err := s.entered(ctx, userKey(next.Session.User), member(next.Session))
	if err != nil {
		return tokens.Successor{}, err
	}
	if !kept {
		return tokens.Successor{}, tokens.ErrUnknown
	}
	return tokens.Successor{Session: next.Session, Token: before.Successor}, nil
}

// checkReuse returns tokens.ErrReused for a refreshed token after its grace, else
// tokens.ErrUnknown.
func (s *Store) checkReuse(ctx context.Context, h tokens.Hash) error {
	record, _, err := s.read(ctx, oldKey(h), h)
	if err != nil {
		return err
	}
	return s.endReused(ctx, record.Session)
}

// endReused ends the session of a token that was used for a second exchange.
func (s *Store) endReused(ctx context.Context, session *tokens.Session) error {
	if _, err := s.end(ctx, userKey(session.User), session.ID); err != nil {
		return err
	}
	return tokens.ErrReused
}
