// Package redisstore decides how sessions are stored in Redis: on one server, behind Sentinel, or
// in a Cluster, shared by any number of gateways.
//
// Three keys belong to a session:
//
//	gatepost:tok:<sha-256 of the token>   the record, which alone makes the token valid; expires with it
//	gatepost:usr:<sha-256 of the user>    the index: a sorted set of the user's tokens, scored by expiry
//	gatepost:ses:<public id>              the name of that index, for ending a session by its id
//
// Two more keys do not make a token valid. gatepost:seen:<public id> is the session's last use.
// gatepost:old:<sha-256 of the token> marks a refreshed token, to detect reuse after its grace.
//
// If one server has all keys, a login changes them in one step with one command, and so does the
// revoke of a token that was not refreshed. The commands of concurrent logins are sent together
// ([batcher]). In a Cluster the keys are on different servers, so the other operations do not rely
// on two keys changing together. They rely on the order of changes:
//
//  1. A token is added to the index before its record is written. It is returned only if the index
//     still has it, unmarked, after the record was written. (A login in one step includes all of this.)
//  2. An end of sessions marks their index entries, then deletes the records, then the entries.
//
// So if a record is written after an end has deleted it, its writer finds it marked or removed and
// does not return the token. A record written before is deleted. After a crash at any point, every
// usable record is in the index, and the next attempt finds it. The index is one key that one
// script at a time changes, so its order is the order of logins, refreshes and ends.
//
// During the grace, a refreshed token's record is valid and names its successor. It replaced an
// existing record, and its index entry lives as long as the record, so an end finds it.
//
// Late commands are harmless. A command that timed out may still reach Redis. Late deletes are
// safe. A record is sent once per token, and the token is returned only after Redis' OK, so a late
// record belongs to a token that no client has.
//
// If Redis' memory is full, new sessions are refused, but look-ups and ends still work (Redis 7 or
// newer). Redis must not evict keys and must keep what it acknowledges; [redisconn.Conn.Check]
// warns if it does not. A user of Redis' ACL needs ~gatepost:* and +@connection +get +set +del
// +zscore +zrem +eval +evalsha +time +zadd +zrange +zrangebyscore +zcount +zremrangebyscore +pttl
// +pexpire +info, in a Cluster +cluster|slots and +cluster|shards too. Notices of revokes need
// &gatepost:gateway* +publish +subscribe, like package cache.
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

// The prefixes of the keys beside those of tokens ([tokens.RedisPrefix]). No change of them changes the validity of a
// token.
const (
	userPrefix    = "gatepost:usr:"
	sessionPrefix = "gatepost:ses:"
	seenPrefix    = "gatepost:seen:"
	oldPrefix     = "gatepost:old:"
)

// chunk is the number of keys per request.
const chunk = 500

// Store is a [tokens.Store] in Redis. Each call ends within [redisconn.Conn.CallTimeout] or by the
// context's deadline, whichever is earlier, even if Redis hangs.
type Store struct {
	conn   *redisconn.Conn
	client redis.UniversalClient // the client of conn
	logins *batcher              // used with a single server
}

var (
	_ tokens.Store   = (*Store)(nil)
	_ tokens.Toucher = (*Store)(nil)
	_ tokens.Ender   = (*Store)(nil)
)

// Config is what a [Store] needs.
type Config struct {
	// Conn is the Redis with the sessions. [Store.Close] closes it. Required.
	Conn *redisconn.Conn
}

// New returns a store in a Redis, to which it does not connect yet.
func New(config Config) (*Store, error) {
	if config.Conn == nil {
		return nil, errors.New("redisstore: no Conn")
	}
	return &Store{conn: config.Conn, client: config.Conn.Client(), logins: newBatcher(config.Conn)}, nil
}

func tokenKey(h tokens.Hash) string { return tokens.RedisPrefix + h.Hex() }
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
		return fmt.Errorf("%w: the session has expired", tokens.ErrInvalid)
	}
	if s.conn.IsCluster() {
		return s.createInCluster(ctx, session, record, limit)
	}
	// On one server, a concurrent end runs entirely before or after the login.
	index := userKey(session.User)
	over, err := s.createInOneStep(ctx, index, session, record, limit)
	if err != nil {
		return err
	}
	if _, err := s.deleteMarked(ctx, index, over); err != nil {
		s.undo(ctx, session)
		return err
	}
	return nil
}

// createInCluster stores a session with keys on different servers. It waits for each step.
func (s *Store) createInCluster(ctx context.Context, session *tokens.Session, record []byte, limit int) error {
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
		return unavailable(ctx, "storing the session's id", err)
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

// write writes a token's record. It is not retried.
func (s *Store) write(ctx context.Context, session *tokens.Session, record []byte) error {
	cmd := redis.NewCmd(ctx, "set", tokenKey(session.Hash), record, "px", milliseconds(time.Until(session.Expires)))
	if err := s.client.Process(ctx, once{cmd}); err != nil {
		return unavailable(ctx, "storing a session", err)
	}
	return nil
}

// undo deletes the record of a token that is not returned. If that fails, it stays until it
// expires, but no client has the token.
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
	// Redis expires the record too, but its clock may differ and its expiry may be late.
	if !record.Live(time.Now()) {
		return nil, tokens.ErrUnknown
	}
	return record.Session, nil
}

// read reads the record of a token under a key. It also returns the record's bytes.
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

// Revoke implements [tokens.Store]. It also deletes a corrupt record.
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
	case errors.Is(err, tokens.ErrCorrupt): // its session is unknown; the record is deleted below
	case err != nil:
		return err
	default:
		if !s.conn.IsCluster() && !record.Retired {
			if ended, err := s.endInOneStep(ctx, record.Session); ended || err != nil {
				return err
			}
		}
		if _, err := s.end(ctx, userKey(record.Session.User), record.Session.ID); err != nil {
			return err
		}
		if record.Retired && !record.InGrace(time.Now()) {
			return nil // the record is kept to detect reuse
		}
	}
	// The index may have lost the entry, so delete the record in any case.
	if err := s.client.Del(ctx, tokenKey(h)).Err(); err != nil {
		return unavailable(ctx, "revoking a token", err)
	}
	return nil
}

// End implements [tokens.Ender]. In a cluster, the keys of a session are on several servers.
func (s *Store) End(ctx context.Context, of tokens.Principal) (bool, error) {
	if s.conn.IsCluster() || of.ID() == "" {
		return false, nil
	}
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	return s.endInOneStep(ctx, &tokens.Session{User: of.User(), ID: of.ID(), Hash: of.Hash()})
}

// Sessions implements [tokens.Store]. Records and index entries that cannot be read are left out: they open nothing,
// and a look-up of such a token reports the damage.
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

// readAll returns the live sessions among the members of a user's index, with their last use.
func (s *Store) readAll(ctx context.Context, user string, members []string) ([]*tokens.Session, error) {
	members = slices.DeleteFunc(members, func(m string) bool { return len(m) != memberLength })
	pipe := s.client.Pipeline()
	records := make([]*redis.StringCmd, len(members))
	seen := make([]*redis.StringCmd, len(members))
	for i, m := range members {
		id, h, _ := splitMember(m)
		records[i], seen[i] = pipe.Get(ctx, tokenKey(h)), pipe.Get(ctx, seenKey(id))
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	now := time.Now()
	var live []*tokens.Session
	for i, m := range members {
		record, err := records[i].Bytes()
		if isNil(err) || redis.HasErrorPrefix(err, "WRONGTYPE") {
			continue // a login in progress, an expired token, or no record
		}
		if err != nil {
			return nil, unavailable(ctx, "reading a user's sessions", err)
		}
		_, h, _ := splitMember(m)
		decoded, err := tokens.DecodeRecord(h, record)
		if err != nil {
			continue
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

// Touch implements [tokens.Toucher]. It does not write the record, so it cannot restore one.
func (s *Store) Touch(ctx context.Context, of tokens.Principal, at time.Time, address string) error {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	err := s.client.Set(ctx, seenKey(of.ID()), formatSeen(at, address), untilPositive(of.Ends())).Err()
	if err != nil {
		return unavailable(ctx, "storing the last use of a session", err)
	}
	return nil
}

// Ping implements [tokens.Store]. In a Cluster it pings every master, because each has tokens.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	err := s.conn.EachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return node.Ping(ctx).Err() })
	if err != nil {
		return unavailable(ctx, "pinging Redis", err)
	}
	return nil
}

// Close implements [tokens.Store].
func (s *Store) Close() error { return s.conn.Close() }

// once is a command that is sent to Redis at most once. If its reply is lost, Redis may have run it
// or may still run it. A later retry could restore a token that was revoked in between.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

func isNil(err error) bool { return errors.Is(err, redis.Nil) }

// unavailable returns the error for a failed operation. It keeps only the text of the library's
// error; callers can unwrap the end of the context alone.
func unavailable(ctx context.Context, doing string, err error) error {
	if over := context.Cause(ctx); over != nil {
		return fmt.Errorf("%w: %s: %w", tokens.ErrUnavailable, doing, over)
	}
	return fmt.Errorf("%w: %s: %v", tokens.ErrUnavailable, doing, err)
}

// newestFirst sorts sessions by their start. A session in a refresh has two tokens; it is listed
// once, with the newer one.
func newestFirst(sessions []*tokens.Session) []*tokens.Session {
	slices.SortFunc(sessions, func(a, b *tokens.Session) int {
		return cmp.Or(b.Issued.Compare(a.Issued), cmp.Compare(a.ID, b.ID), b.Expires.Compare(a.Expires))
	})
	return slices.CompactFunc(sessions, func(a, b *tokens.Session) bool { return a.ID == b.ID })
}

// untilPositive returns the time until then, at least one millisecond, as Redis requires.
func untilPositive(then time.Time) time.Duration {
	return time.Duration(milliseconds(time.Until(then))) * time.Millisecond
}
