// Package redisstore keeps sessions in Redis, one server, behind Sentinel, or a Cluster, for any number of Gateposts
// at once.
//
// Three keys belong to a session:
//
//	gatepost:tok:<sha-256 of the token>   its record, which alone opens anything; expires with the token
//	gatepost:usr:<sha-256 of the user>    the index: a sorted set of the user's tokens, scored by expiry
//	gatepost:ses:<public id>              the name of that index, for ending a session by its id
//
// Two more open nothing: gatepost:seen:<public id> is when it was last used, and gatepost:old:<sha-256 of the token>
// remembers a token that was refreshed, so that its reuse is noticed after its grace, when its record has expired.
//
// If one server has all keys, a login changes them in one step, by one command; the commands of logins that come at once
// are sent together ([batcher]). In a Cluster they lie on different servers, so nothing else here relies on two keys
// changing together. What it relies on is the order in which they change:
//
//  1. A token is entered in the index before its record is written, and handed out only after the index has been
//     seen to hold it still, unmarked, once the record was written. (A login in one step is all of that.)
//  2. Whoever ends sessions marks their index entries first, then deletes the records, then the entries.
//
// So a record that is written after an end deleted it is seen by its own writer to be marked or gone, and is never
// handed out; a record that was written before is deleted; and a crash at any point leaves every record that can be
// used in the index, where the next attempt finds it. The index is one key, changed by one script at a time: its
// order is the order of logins, refreshes and ends.
//
// A refreshed token's record opens services during the grace and names the token that replaced it. It was written in
// place of a record that was there, and its entry stays in the index for as long as it, so an end finds it.
//
// Late commands do no harm: a command that timed out may still reach Redis. Deleting late is safe. A record is sent
// once per token and its token handed out only on Redis' OK, so a record that arrives late is of a token that nobody
// has.
//
// Where Redis' memory is full, nothing new is kept, and sessions can be looked up and ended still, from Redis 7 on.
// Redis must not evict keys, and must keep what it acknowledges: [redisconn.Conn.Check] warns if it does not. A user of Redis' ACL needs
// ~gatepost:* and +@connection +get +set +del +zscore +zrem +eval +evalsha +time +zadd +zrange +zrangebyscore +zcount
// +zremrangebyscore +pttl +pexpire +info, in a Cluster +cluster|slots and +cluster|shards too. Notices of revokes need
// &gatepost:gateway* +publish +subscribe, as package cache does.
package redisstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"gatepost/redisconn"
	"gatepost/tokens"

	"github.com/redis/go-redis/v9"
)

// The prefixes of the keys. A change below TokenPrefix is a change of what a token opens.
const (
	TokenPrefix   = "gatepost:tok:"
	userPrefix    = "gatepost:usr:"
	sessionPrefix = "gatepost:ses:"
	seenPrefix    = "gatepost:seen:"
	oldPrefix     = "gatepost:old:"
)

// chunk is how many keys are asked for at a time.
const chunk = 500

// Store is a [tokens.Store] in Redis. Each of its calls ends within [redisconn.Conn.CallTimeout], or by the context's deadline
// where that is earlier, however Redis fails.
type Store struct {
	conn   *redisconn.Conn
	client redis.UniversalClient // of conn
	logins *batcher              // of a single server
}

var (
	_ tokens.Store   = (*Store)(nil)
	_ tokens.Toucher = (*Store)(nil)
)

// New returns a store in the Redis of conn. [Store.Close] closes conn.
func New(conn *redisconn.Conn) *Store {
	return &Store{conn: conn, client: conn.Client(), logins: newBatcher(conn)}
}

func tokenKey(h tokens.Hash) string { return TokenPrefix + h.Hex() }
func sessionKey(id string) string   { return sessionPrefix + id }
func seenKey(id string) string      { return seenPrefix + id }
func oldKey(h tokens.Hash) string   { return oldPrefix + h.Hex() }
func userKey(user string) string    { return userPrefix + digest(user) }
func digest(user string) string {
	sum := sha256.Sum256([]byte(user))
	return hex.EncodeToString(sum[:])
}
func milliseconds(d time.Duration) int64 {
	return max(1, int64((d+time.Millisecond-1)/time.Millisecond))
}

// Create implements [tokens.Store].
func (s *Store) Create(ctx context.Context, session *tokens.Session, limit int) error {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	record, err := tokens.EncodeRecord(session)
	if err != nil {
		return err
	}
	if !session.Live(time.Now()) {
		return fmt.Errorf("%w: it has expired", tokens.ErrInvalid)
	}
	if s.conn.IsCluster() {
		return s.createApart(ctx, session, record, limit)
	}
	// One server: an end comes before the login as a whole or after it.
	index := userKey(session.User)
	over, err := s.enterWhole(ctx, index, session, record, limit)
	if err != nil {
		return err
	}
	if _, err := s.deleteMarked(ctx, index, over); err != nil {
		s.undo(ctx, session)
		return err
	}
	return nil
}

// createApart keeps a session whose keys lie on servers that keep no order among each other: each is waited for.
func (s *Store) createApart(ctx context.Context, session *tokens.Session, record []byte, limit int) error {
	index, self := userKey(session.User), member(session)
	over, err := s.enter(ctx, index, self, time.Until(session.Expires), limit)
	if err != nil {
		return err
	}
	if _, err := s.deleteMarked(ctx, index, over); err != nil {
		return err
	}
	err = s.client.Set(ctx, sessionKey(session.ID), digest(session.User), untilPositive(session.Ends)).Err()
	if err != nil {
		return unavailable(ctx, "keeping the session's id", err)
	}
	if err := s.write(ctx, session, record); err != nil {
		return err
	}
	kept, err := s.entered(ctx, index, self)
	if err != nil {
		return err
	}
	if !kept {
		s.undo(ctx, session)
		return fmt.Errorf("%w: the user's sessions were ended during the login", tokens.ErrUnavailable)
	}
	return nil
}

// write writes a token's record, once.
func (s *Store) write(ctx context.Context, session *tokens.Session, record []byte) error {
	cmd := redis.NewCmd(ctx, "set", tokenKey(session.Hash), record, "px", milliseconds(time.Until(session.Expires)))
	if err := s.client.Process(ctx, once{cmd}); err != nil {
		return unavailable(ctx, "keeping a session", err)
	}
	return nil
}

// undo deletes a record whose token will not be handed out. Where that fails the record opens nothing for anyone,
// because nobody has the token, and expires.
func (s *Store) undo(ctx context.Context, session *tokens.Session) {
	_ = s.client.Del(ctx, tokenKey(session.Hash)).Err()
	_ = s.client.ZRem(ctx, userKey(session.User), member(session)).Err()
}

// Lookup implements [tokens.Store].
func (s *Store) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	record, _, err := s.read(ctx, tokenKey(h), h)
	if err != nil {
		return nil, err
	}
	// Redis expires the record too; its clock and its punctuality are not relied on.
	if !record.Live(time.Now()) {
		return nil, tokens.ErrUnknown
	}
	return record.Session, nil
}

// read reads the record of a token under a key, and returns its bytes as well.
func (s *Store) read(ctx context.Context, key string, h tokens.Hash) (*tokens.Record, []byte, error) {
	bytes, err := s.client.Get(ctx, key).Bytes()
	if isNil(err) {
		return nil, nil, tokens.ErrUnknown
	}
	if err != nil {
		return nil, nil, unavailable(ctx, "looking up a token", err)
	}
	record, err := tokens.DecodeRecord(h, bytes)
	return record, bytes, err
}

// Revoke implements [tokens.Store]. What is no record of the token is deleted too.
func (s *Store) Revoke(ctx context.Context, h tokens.Hash) error {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	record, _, err := s.read(ctx, tokenKey(h), h)
	if errors.Is(err, tokens.ErrUnknown) {
		record, _, err = s.read(ctx, oldKey(h), h)
	}
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		return nil
	case errors.Is(err, tokens.ErrCorrupt): // whose session it is cannot be told; it goes
	case err != nil:
		return err
	default:
		if _, err := s.end(ctx, userKey(record.Session.User), record.Session.ID); err != nil {
			return err
		}
		if record.Retired && !record.InGrace(time.Now()) {
			return nil // it goes on telling that it was exchanged
		}
	}
	// The index may have lost the entry; the record must go whatever the index says.
	if err := s.client.Del(ctx, tokenKey(h)).Err(); err != nil {
		return unavailable(ctx, "revoking a token", err)
	}
	return nil
}

// Sessions implements [tokens.Store].
func (s *Store) Sessions(ctx context.Context, user string) ([]*tokens.Session, error) {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	members, err := s.client.ZRange(ctx, userKey(user), 0, -1).Result()
	if err != nil {
		return nil, unavailable(ctx, "reading a user's index", err)
	}
	var live []*tokens.Session
	for part := range slices.Chunk(members, chunk) {
		sessions, err := s.readAll(ctx, user, part)
		if err != nil {
			return nil, err
		}
		live = append(live, sessions...)
	}
	return newestFirst(live), nil
}

// readAll returns the live sessions among the members of a user's index, with when they were last seen.
func (s *Store) readAll(ctx context.Context, user string, members []string) ([]*tokens.Session, error) {
	pipe := s.client.Pipeline()
	records := make([]*redis.StringCmd, len(members))
	seen := make([]*redis.StringCmd, len(members))
	for i, m := range members {
		id, h, ok := splitMember(m)
		if !ok {
			return nil, fmt.Errorf("%w: %w: an index has an entry that is none", tokens.ErrUnavailable, tokens.ErrCorrupt)
		}
		records[i], seen[i] = pipe.Get(ctx, tokenKey(h)), pipe.Get(ctx, seenKey(id))
	}
	if _, err := pipe.Exec(ctx); err != nil && !isNil(err) {
		return nil, unavailable(ctx, "reading a user's sessions", err)
	}
	now := time.Now()
	var live []*tokens.Session
	for i, m := range members {
		record, err := records[i].Bytes()
		if isNil(err) {
			continue // a login on its way, or a token that Redis expired
		}
		if err != nil {
			return nil, unavailable(ctx, "reading a user's sessions", err)
		}
		_, h, _ := splitMember(m)
		decoded, err := tokens.DecodeRecord(h, record)
		if err != nil {
			return nil, err
		}
		session := decoded.Session
		if decoded.Retired || session.User != user || !session.Live(now) {
			continue
		}
		readSeen(session, seen[i].Val())
		live = append(live, session)
	}
	return live, nil
}

// RevokeSession implements [tokens.Store].
func (s *Store) RevokeSession(ctx context.Context, user, id string) error {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	index := userKey(user)
	if user == "" {
		name, err := s.client.Get(ctx, sessionKey(id)).Result()
		if isNil(err) {
			return tokens.ErrUnknown
		}
		if err != nil {
			return unavailable(ctx, "looking up a session's id", err)
		}
		index = userPrefix + name
	}
	ended, err := s.end(ctx, index, id)
	if err != nil {
		return err
	}
	if ended == 0 {
		return tokens.ErrUnknown
	}
	return nil
}

// RevokeUser implements [tokens.Store].
func (s *Store) RevokeUser(ctx context.Context, user string) (int, error) {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	return s.end(ctx, userKey(user), "")
}

// Touch implements [tokens.Toucher]. What it writes is no part of the record, so it can bring none back.
func (s *Store) Touch(ctx context.Context, of tokens.Principal, at time.Time, address string) error {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	err := s.client.Set(ctx, seenKey(of.ID()), formatSeen(at, address), untilPositive(of.Ends())).Err()
	if err != nil {
		return unavailable(ctx, "keeping when a session was seen", err)
	}
	return nil
}

// Ping implements [tokens.Store]. In a Cluster it asks every master: each holds tokens.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	err := s.conn.EachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return node.Ping(ctx).Err() })
	if err != nil {
		return unavailable(ctx, "asking Redis whether it is there", err)
	}
	return nil
}

// Close implements [tokens.Store].
func (s *Store) Close() error { return s.conn.Close() }

// once is a command that is sent to Redis at most once. A command whose reply was lost may have been carried out,
// or may be yet: carried out a second time, later, it could bring back what was revoked in between.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

func isNil(err error) bool { return errors.Is(err, redis.Nil) }

// unavailable says that Redis did not do what was being done. The library's errors end here: their text is kept, and
// only the end of the context can be found in it.
func unavailable(ctx context.Context, doing string, err error) error {
	if over := context.Cause(ctx); over != nil {
		return fmt.Errorf("%w: %s: %w", tokens.ErrUnavailable, doing, over)
	}
	return fmt.Errorf("%w: %s: %v", tokens.ErrUnavailable, doing, err)
}

// newestFirst sorts sessions by when they were opened. One that is being refreshed has two tokens for a moment; it
// is listed with the later.
func newestFirst(sessions []*tokens.Session) []*tokens.Session {
	slices.SortFunc(sessions, func(a, b *tokens.Session) int {
		return cmp.Or(b.Issued.Compare(a.Issued), cmp.Compare(a.ID, b.ID), b.Expires.Compare(a.Expires))
	})
	return slices.CompactFunc(sessions, func(a, b *tokens.Session) bool { return a.ID == b.ID })
}

// untilPositive is the time until then, as a lifetime that Redis takes.
func untilPositive(then time.Time) time.Duration {
	return time.Duration(milliseconds(time.Until(then))) * time.Millisecond
}
