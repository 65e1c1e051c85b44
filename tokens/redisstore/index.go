package redisstore

import (
	"context"
	"strconv"
	"strings"
	"time"

	"gatepost/tokens"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

// A member of an index is the 16 bytes of the session's id and the 32 bytes of its token's hash.
// That is short enough for Redis' compact encoding of small sorted sets. Its score is the token's
// expiry in milliseconds, by the clock of the index's Redis. The score is negative while the
// session is ended.
const memberLength = 16 + 32

func member(s *tokens.Session) string {
	id, _ := uuid.Parse(s.ID) // EncodeRecord has checked that the id is a UUID
	return string(id[:]) + string(s.Hash[:])
}

func splitMember(m string) (id string, h tokens.Hash, ok bool) {
	if len(m) != memberLength {
		return "", h, false
	}
	copy(h[:], m[16:])
	return uuid.UUID([]byte(m[:16])).String(), h, true
}

// entryMargin is how long an entry outlives its token, in milliseconds. Without it, a slow login
// could be treated as ended.
const entryMargin = 60_000

// Each script changes one index, KEYS[1]. The scripts read the time from Redis, so entries and
// records expire together, whatever the clocks of the gateways are. Redis stores integers exactly.
const (
	// prelude defines the time and the functions that mark and add entries. Marked entries have
	// negative scores. A busy index is extended and pruned about once per minute.
	prelude = `
local key = KEYS[1]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function mark(m, score) redis.call('ZADD', key, 'XX', -score, m) end
local function enter(m, ttl, margin)
  redis.call('ZADD', key, 'NX', now + ttl, m)
  if redis.call('PTTL', key) < ttl + margin then redis.call('PEXPIRE', key, ttl + 2 * margin) end
  if redis.call('ZCOUNT', key, 2 * margin - now, now - 2 * margin) > 0 then
    redis.call('ZREMRANGEBYSCORE', key, margin - now, now - margin)
  end
end
`
	// ARGV: member, lifetime, entryMargin, limit. The script returns the members of marked
	// sessions. It marks those over the limit: the sessions that expire first, never the new one.
	// Earlier ones were marked by a login that crashed before it deleted their records. If one
	// server has all keys, the script stores the session too: KEYS then also has its id and its
	// record, and ARGV the digest of the user, the session's lifetime, and the record.
	enterScript = prelude + `
local limit = tonumber(ARGV[4])
enter(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]))
if KEYS[2] then
  redis.call('SET', KEYS[2], ARGV[5], 'PX', ARGV[6])
  redis.call('SET', KEYS[3], ARGV[7], 'PX', ARGV[2])
end
if limit <= 0 then return {} end
local ended = redis.call('ZRANGEBYSCORE', key, '-inf', -now)
if redis.call('ZCOUNT', key, now, '+inf') <= limit then return ended end
local live = redis.call('ZRANGEBYSCORE', key, now, '+inf', 'WITHSCORES')
local keep, kept = {[string.sub(ARGV[1], 1, 16)] = true}, 1
for i = #live - 1, 1, -2 do -- a session with two tokens is as old as the newer of them
  local id = string.sub(live[i], 1, 16)
  if not keep[id] and kept < limit then keep[id] = true; kept = kept + 1 end
end
for i = 1, #live, 2 do
  if not keep[string.sub(live[i], 1, 16)] then mark(live[i], tonumber(live[i + 1])); ended[#ended + 1] = live[i] end
end
return ended
`
	// ARGV: old member, new member, lifetime, entryMargin. If the old token is in the index and not
	// marked, the script adds the new one and returns the session's other members, which earlier
	// refreshes have left. Otherwise it returns nil.
	successorScript = prelude + `
local score = redis.call('ZSCORE', key, ARGV[1])
if not score or tonumber(score) < 0 then return false end
local id, stale = string.sub(ARGV[1], 1, 16), {}
for _, m in ipairs(redis.call('ZRANGE', key, 0, -1)) do
  if string.sub(m, 1, 16) == id and m ~= ARGV[1] and m ~= ARGV[2] then stale[#stale + 1] = m end
end
enter(ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
return stale
`
	// ARGV: new member, old member, refresh grace, stale members. If the new token is in the index
	// and not marked, the script returns 1, makes the old entry expire with its grace, and removes
	// the stale ones. Otherwise it returns 0.
	supersedeScript = prelude + `
local score = redis.call('ZSCORE', key, ARGV[1])
if not score or tonumber(score) < 0 then return 0 end
local old = redis.call('ZSCORE', key, ARGV[2])
if ARGV[3] == '0' then
  redis.call('ZREM', key, ARGV[2])
elseif old and tonumber(old) > 0 then
  redis.call('ZADD', key, 'XX', now + tonumber(ARGV[3]), ARGV[2])
end
for i = 4, #ARGV do redis.call('ZREM', key, ARGV[i]) end
return 1
`
	// ARGV: the first bytes of the members to mark; empty: all. The script returns these members,
	// including those marked before.
	markScript = prelude + `
local ended = {}
local all = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  local score = tonumber(all[i + 1])
  if string.sub(all[i], 1, #ARGV[1]) == ARGV[1] then
    if score > 0 then mark(all[i], score) end
    ended[#ended + 1] = all[i]
  end
end
return ended
`
	// KEYS also has the records of a token, of its session and of the session's last use. ARGV: the
	// token's member. If the session has no other token, the script ends it and returns 1. Otherwise
	// it changes nothing and returns 0. It needs no free memory.
	endScript = `
local key = KEYS[1]
for _, m in ipairs(redis.call('ZRANGE', key, 0, -1)) do
  if m ~= ARGV[1] and string.sub(m, 1, 16) == string.sub(ARGV[1], 1, 16) then return 0 end
end
redis.call('ZREM', key, ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
return 1
`
	// KEYS[1] is a token's record. ARGV: its bytes as read, the replacement, lifetime. The script
	// returns 1 if it replaced the record, 0 if the record is gone, 2 if it has changed.
	replaceScript = `
local record = redis.call('GET', KEYS[1])
if not record then return 0 end
if record ~= ARGV[1] then return 2 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
`
)

var (
	enterSession   = redis.NewScript(enterScript)
	enterSuccessor = redis.NewScript(successorScript)
	supersede      = redis.NewScript(supersedeScript)
	markSessions   = redis.NewScript(markScript)
	endSession     = redis.NewScript(endScript)

	// Redis refuses markSessions without free memory; this variant is allowed then (Redis 7 and
	// newer).
	markWhenFull = redis.NewScript("#!lua flags=allow-oom\n" + markScript)
)

// enter adds a token to an index and returns the members of sessions that were marked to make room.
// An existing entry does not change, even if it is marked.
func (s *Store) enter(ctx context.Context, index, member string, lifetime time.Duration, limit int) ([]string, error) {
	over, err := enterSession.Run(ctx, s.client, []string{index}, member, milliseconds(lifetime), entryMargin, limit).StringSlice()
	if err != nil {
		return nil, unavailable(ctx, "adding a session to its user's index", err)
	}
	return over, nil
}

// createInOneStep adds a token to an index and stores its session in one step. It returns the
// members of sessions that were marked to make room. The command is sent once. If Redis does not
// have the script, for example after a restart, it is sent again with the script, because the first
// one did nothing.
func (s *Store) createInOneStep(ctx context.Context, index string, session *tokens.Session, record []byte, limit int) ([]string, error) {
	command := func(name, script string) once {
		return once{redis.NewCmd(ctx, name, script, 3, index, sessionKey(session.ID), tokenKey(session.Hash),
			member(session), milliseconds(time.Until(session.Expires)), entryMargin, limit,
			digest(session.User), milliseconds(time.Until(session.Ends)), record)}
	}
	cmd := command("evalsha", enterSession.Hash())
	err := s.logins.process(ctx, cmd)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		cmd = command("eval", enterScript)
		err = s.logins.process(ctx, cmd)
	}
	if err != nil {
		return nil, unavailable(ctx, "storing a session", err)
	}
	over, err := cmd.StringSlice()
	if err != nil {
		return nil, unavailable(ctx, "storing a session", err)
	}
	return over, nil
}

// entered reports whether an index has the member, unmarked.
func (s *Store) entered(ctx context.Context, index, member string) (bool, error) {
	return unmarked(ctx, s.client.ZScore(ctx, index, member))
}

// unmarked reports whether the score belongs to an existing, unmarked entry.
func unmarked(ctx context.Context, asked *redis.FloatCmd) (bool, error) {
	score, err := asked.Result()
	if isNil(err) {
		return false, nil
	}
	if err != nil {
		return false, unavailable(ctx, "reading a user's index", err)
	}
	return score > 0, nil
}

// endInOneStep ends the session of a token and reports whether it has: a session with several tokens is not ended.
// One server has all keys.
func (s *Store) endInOneStep(ctx context.Context, session *tokens.Session) (bool, error) {
	keys := []string{userKey(session.User), tokenKey(session.Hash), sessionKey(session.ID), seenKey(session.ID)}
	ended, err := endSession.Run(ctx, s.client, keys, member(session)).Bool()
	if err != nil {
		return false, unavailable(ctx, "ending a session", err)
	}
	return ended, nil
}

// end ends the session with the id, or all sessions if id is empty, of the user with that index. It
// returns their number. After it returns nil, their records are deleted.
func (s *Store) end(ctx context.Context, index, id string) (int, error) {
	first := ""
	if id != "" {
		parsed, err := uuid.Parse(id)
		if err != nil || parsed.String() != id {
			return 0, nil
		}
		first = string(parsed[:])
	}
	members, err := markSessions.Run(ctx, s.client, []string{index}, first).StringSlice()
	if err != nil && redis.IsOOMError(err) {
		members, err = markWhenFull.Run(ctx, s.client, []string{index}, first).StringSlice()
	}
	if err != nil {
		return 0, unavailable(ctx, "marking sessions as ended", err)
	}
	return s.deleteMarked(ctx, index, members)
}

// deleteMarked deletes the records of marked members, then their index entries. It returns the
// number of sessions that had a record.
func (s *Store) deleteMarked(ctx context.Context, index string, members []string) (int, error) {
	ended := map[string]bool{}
	for len(members) > 0 {
		part := members[:min(chunk, len(members))]
		members = members[len(part):]
		if err := s.deleteRecords(ctx, part, ended); err != nil {
			return 0, err
		}
		entries := make([]any, len(part))
		for i, m := range part {
			entries[i] = m
		}
		if err := s.client.ZRem(ctx, index, entries...).Err(); err != nil {
			return 0, unavailable(ctx, "removing ended sessions from the index", err)
		}
	}
	return len(ended), nil
}

// deleteRecords deletes the members' records and adds the ids of sessions that had one to ended.
func (s *Store) deleteRecords(ctx context.Context, members []string, ended map[string]bool) error {
	pipe := s.client.Pipeline()
	deleted := map[string]*redis.IntCmd{}
	for _, m := range members {
		id, h, ok := splitMember(m)
		if !ok {
			continue // not a token's entry; it opens nothing
		}
		deleted[m] = pipe.Del(ctx, tokenKey(h))
		pipe.Del(ctx, sessionKey(id))
		pipe.Del(ctx, seenKey(id))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return unavailable(ctx, "deleting sessions", err)
	}
	for m, n := range deleted {
		if id, _, _ := splitMember(m); n.Val() > 0 {
			ended[id] = true
		}
	}
	return nil
}

// formatSeen and readSeen format and parse the time and address of a session's last use.
func formatSeen(at time.Time, address string) string {
	return strconv.FormatInt(at.UnixMilli(), 10) + " " + strings.ToValidUTF8(address[:min(len(address), 100)], "?")
}

func readSeen(s *tokens.Session, text string) {
	at, address, _ := strings.Cut(text, " ")
	if ms, err := strconv.ParseInt(at, 10, 64); err == nil {
		s.LastSeen, s.LastAddress = time.UnixMilli(ms).UTC(), address
	}
}
