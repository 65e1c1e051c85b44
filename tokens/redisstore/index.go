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

// A member of an index is the 16 bytes of the session's id and the 32 of its token's hash: short enough for Redis'
// compact form of small sorted sets. Its score is when the token expires, in milliseconds of the clock of the
// Redis that holds the index, and negative once the session is being ended.
const memberLength = 16 + 32

func member(s *tokens.Session) string {
	id, _ := uuid.Parse(s.ID) // a session's id is a UUID, or its record would not have been encoded
	return string(id[:]) + string(s.Hash[:])
}

func splitMember(m string) (id string, h tokens.Hash, ok bool) {
	if len(m) != memberLength {
		return "", h, false
	}
	copy(h[:], m[16:])
	return uuid.UUID([]byte(m[:16])).String(), h, true
}

// entryMargin is how long an entry outlives its token, in milliseconds, so that a slow login is not taken for an ended one.
const entryMargin = 60_000

// Each script changes one index, KEYS[1]. They take the time from Redis: entries and records then expire by elapsed
// time alike, whatever the clocks of several Gateposts say. Redis writes a number that it is given to the last digit.
const (
	// prelude defines the time, and how entries are marked, entered and dropped once they have expired: scores of marked ones are
	// below zero. A busy user's index is lengthened once in a minute, and what has expired is dropped together.
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
	// ARGV: member, lifetime, entryMargin, limit. Returns the members of the sessions that are marked: by it, because there were
	// more than limit (those that expire first, and never the new one), or before, by a login that did not live to delete
	// their records. Where one server has all keys the session is
	// kept in the same step: KEYS then name its id and its record too, and ARGV the index by its digest, the
	// session's lifetime, and the record.
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
	// ARGV: old member, new member, lifetime, entryMargin. Enters the new token if the old one is entered and not marked,
	// and returns the other members of the session: what earlier refreshes have left. Else it returns nothing.
	besideScript = prelude + `
local score = redis.call('ZSCORE', key, ARGV[1])
if not score or tonumber(score) < 0 then return false end
local id, stale = string.sub(ARGV[1], 1, 16), {}
for _, m in ipairs(redis.call('ZRANGE', key, 0, -1)) do
  if string.sub(m, 1, 16) == id and m ~= ARGV[1] and m ~= ARGV[2] then stale[#stale + 1] = m end
end
enter(ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
return stale
`
	// ARGV: new member, old member, refresh grace, stale members. Says whether the new token is entered and not marked.
	// If it is, the old one's entry expires with its grace, and the stale ones are removed.
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
	// ARGV: the first bytes of the members to mark, or nothing for all. Returns them, those marked before too.
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
	// KEYS[1] is a token's record here. ARGV: its bytes as they were read, the record to replace it, lifetime. Returns 1,
	// or why the record was not replaced: 0 it is gone, 2 it is another.
	replaceScript = `
local record = redis.call('GET', KEYS[1])
if not record then return 0 end
if record ~= ARGV[1] then return 2 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
`
)

var (
	enterOne    = redis.NewScript(enterScript)
	enterSecond = redis.NewScript(besideScript)
	supersede   = redis.NewScript(supersedeScript)
	markSome    = redis.NewScript(markScript)

	// The same where Redis has no memory left, which would refuse it otherwise (Redis 7 and newer).
	markWhenFull = redis.NewScript("#!lua flags=allow-oom\n" + markScript)
)

// enter enters a token in an index and returns the members of sessions that were marked to make room. Entered
// again it stays as it is, marked too.
func (s *Store) enter(ctx context.Context, index, member string, lifetime time.Duration, limit int) ([]string, error) {
	over, err := enterOne.Run(ctx, s.client, []string{index}, member, milliseconds(lifetime), entryMargin, limit).StringSlice()
	if err != nil {
		return nil, unavailable(ctx, "entering a session in its user's index", err)
	}
	return over, nil
}

// enterWhole enters a token in an index and keeps its session, in one step, and returns the members of sessions that
// were marked to make room. It is sent once, and where Redis has lost the script, as after a restart, once more with it:
// then nothing was done before.
func (s *Store) enterWhole(ctx context.Context, index string, session *tokens.Session, record []byte, limit int) ([]string, error) {
	command := func(name, script string) once {
		return once{redis.NewCmd(ctx, name, script, 3, index, sessionKey(session.ID), tokenKey(session.Hash),
			member(session), milliseconds(time.Until(session.Expires)), entryMargin, limit,
			digest(session.User), milliseconds(time.Until(session.Ends)), record)}
	}
	cmd := command("evalsha", enterOne.Hash())
	err := s.logins.process(ctx, cmd)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		cmd = command("eval", enterScript)
		err = s.logins.process(ctx, cmd)
	}
	if err != nil {
		return nil, unavailable(ctx, "keeping a session", err)
	}
	over, err := cmd.StringSlice()
	if err != nil {
		return nil, unavailable(ctx, "keeping a session", err)
	}
	return over, nil
}

// entered says whether an index holds the member, unmarked.
func (s *Store) entered(ctx context.Context, index, member string) (bool, error) {
	return unmarked(ctx, s.client.ZScore(ctx, index, member))
}

// unmarked says whether the score is that of an entry which is there and not marked.
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

// end ends the session with the id, or all sessions where id is empty, of the user with that index, and returns how
// many there were. When it returns nil, their records are gone from Redis.
func (s *Store) end(ctx context.Context, index, id string) (int, error) {
	first := ""
	if id != "" {
		parsed, err := uuid.Parse(id)
		if err != nil || parsed.String() != id {
			return 0, nil
		}
		first = string(parsed[:])
	}
	members, err := markSome.Run(ctx, s.client, []string{index}, first).StringSlice()
	if err != nil && redis.IsOOMError(err) {
		members, err = markWhenFull.Run(ctx, s.client, []string{index}, first).StringSlice()
	}
	if err != nil {
		return 0, unavailable(ctx, "marking sessions as ended", err)
	}
	return s.deleteMarked(ctx, index, members)
}

// deleteMarked deletes the records of marked members, and their index entries once the records are gone. It returns
// how many sessions had a record.
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
			return 0, unavailable(ctx, "taking ended sessions out of the index", err)
		}
	}
	return len(ended), nil
}

// deleteRecords deletes the members' records, and adds to ended the ids of the sessions that had one.
func (s *Store) deleteRecords(ctx context.Context, members []string, ended map[string]bool) error {
	pipe := s.client.Pipeline()
	deleted := map[string]*redis.IntCmd{}
	for _, m := range members {
		id, h, ok := splitMember(m)
		if !ok {
			continue // no token: whoever wrote it there, nothing is opened by it
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

// formatSeen and readSeen write and read when and from where a session was last used.
func formatSeen(at time.Time, address string) string {
	return strconv.FormatInt(at.UnixMilli(), 10) + " " + strings.ToValidUTF8(address[:min(len(address), 100)], "?")
}

func readSeen(s *tokens.Session, text string) {
	at, address, _ := strings.Cut(text, " ")
	if ms, err := strconv.ParseInt(at, 10, 64); err == nil {
		s.LastSeen, s.LastAddress = time.UnixMilli(ms).UTC(), address
	}
}
