package revisions

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"

	"gatepost/definitions"
)

// errConflict reports that the newest revision is not the one that a new one was based on. The error is a *Conflict.
var errConflict = errors.New("somebody else has applied definitions meanwhile")

// Conflict is a revision that was not stored because another was stored before it.
type Conflict struct {
	// Base is the revision that it was based on; 0: none.
	Base int64
	// Newest is the revision in force; its Number is 0 if there is none.
	Newest Revision
}

func (c *Conflict) Error() string {
	if c.Newest.Number == 0 {
		return fmt.Sprintf("this is based on revision %d, but Redis holds no revision any more; nothing is stored", c.Base)
	}
	return fmt.Sprintf("this is based on revision %d, but the newest is %d, by %s at %s; nothing is stored",
		c.Base, c.Newest.Number, c.Newest.Who, c.Newest.Stored.Format(timeForm))
}

// Is makes a Conflict an errConflict.
func (c *Conflict) Is(target error) bool { return target == errConflict }

const timeForm = "2006-01-02 15:04:05 MST"

// addScript stores a revision if the newest is still the one that it is based on, forgets the oldest ones, and notifies
// the gateways. It returns the new number. If another is the newest, it returns that number with a minus, or 0 if there
// is none. KEYS: newest, about, texts. ARGV: the base ("0": none), what is known about it, the file, how many
// are kept, the channel. A revision is never as old as the one before it, whatever the clock does, and no number is
// used a second time while one that is higher is known.
var addScript = redis.NewScript(`
local newest = redis.call('GET', KEYS[1]) or '0'
if newest ~= ARGV[1] then
  return -tonumber(newest)
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local last = tonumber(newest)
for _, one in ipairs(redis.call('HKEYS', KEYS[2])) do
  last = math.max(last, tonumber(one) or 0)
end
local before = redis.call('HGET', KEYS[2], string.format('%d', last))
if before then
  now = math.max(now, (tonumber(string.match(before, '^%d+')) or 0) + 1)
end
local number = last + 1
local field = string.format('%d', number)
redis.call('HSET', KEYS[3], field, ARGV[3])
redis.call('HSET', KEYS[2], field, string.format('%d', now) .. ' ' .. ARGV[2])
redis.call('SET', KEYS[1], field)
for _, key in ipairs({KEYS[2], KEYS[3]}) do
  for _, old in ipairs(redis.call('HKEYS', key)) do
    if (tonumber(old) or 0) <= number - tonumber(ARGV[4]) then
      redis.call('HDEL', key, old)
    end
  end
end
redis.call('PUBLISH', ARGV[5], field)
return number
`)

// Add stores a file as the newest revision if base is the newest until now (0: there is none yet). The error is a
// *Conflict if it is not, ErrDamaged or ErrUnavailable. After ErrUnavailable it is not known whether the revision was
// stored. Add does not check the text: the caller has parsed it (definitions.Parse).
func (s *Store) Add(ctx context.Context, base int64, text []byte, note Note) (Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a := about{ID: rand.Text(), Sum: definitions.Hash(text), Who: note.Who, Message: note.Message, Change: note.Change}
	record, err := json.Marshal(a)
	if err != nil {
		return Revision{}, fmt.Errorf("storing a revision: %w", err)
	}
	number, err := addScript.Run(ctx, s.client, []string{newestKey, aboutKey, textsKey},
		strconv.FormatInt(base, 10), record, text, Kept, newsChannel).Int64()
	if err != nil {
		return s.notAdded(ctx, a.ID, err)
	}
	if number > 0 {
		return s.about(ctx, number)
	}
	conflict := &Conflict{Base: base}
	if number == 0 {
		return Revision{}, fmt.Errorf("storing a revision: %w", conflict)
	}
	conflict.Newest, err = s.about(ctx, -number)
	switch {
	case err != nil:
		return Revision{}, err
	case conflict.Newest.id == a.ID: // stored by a first try whose reply was lost
		return conflict.Newest, nil
	}
	return Revision{}, fmt.Errorf("storing a revision: %w", conflict)
}

// notAdded returns the result of an Add whose reply was an error: the newest revision is damaged, or a reply was lost.
func (s *Store) notAdded(ctx context.Context, id string, cause error) (Revision, error) {
	newest, err := s.Newest(ctx)
	switch {
	case err == nil && newest.id == id:
		return newest, nil
	case errors.Is(err, ErrDamaged):
		return Revision{}, fmt.Errorf("storing a revision: %w", err)
	}
	return Revision{}, s.wrapped("storing a revision", cause)
}

// History returns all revisions that are kept, the newest first. One that is damaged is left out, and is an error
// beside the others.
func (s *Store) History(ctx context.Context) ([]Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	kept, err := s.client.HGetAll(ctx, aboutKey).Result()
	if err != nil {
		return nil, s.wrapped("reading the history", err)
	}
	var all []Revision
	var failed []error
	for field, text := range kept {
		number, err := readNumber(field)
		if err != nil {
			failed = append(failed, fmt.Errorf("reading the history: %w", err))
			continue
		}
		r, err := readRevision(number, text)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b Revision) int { return cmp.Compare(b.Number, a.Number) })
	return all, errors.Join(failed...)
}
