package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// unit is a request in the script's numbers.
const unit = 1_000_000

// source is GCRA for all counters of a request: it is counted in all of them, or in none if one is full. KEYS: the
// counters. ARGV: requests, seconds and burst of each. It returns 1 if the request is allowed, and the debt of each
// counter.
//
// A request adds a debt of 1,000,000 units. A tick is a millionth of the limit's time, and pays `requests` units. So
// all numbers are integers below 2^53, which Lua keeps exactly. A key expires when its debt is paid. Only Redis'
// clock counts. If it is set back, debts are paid from then on.
const source = `
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local unit, reply, writes = 1000000, {1}, {}
for i, key in ipairs(KEYS) do
  local requests, seconds, burst = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local tick, debt = math.floor(now / seconds), 0
  local at, owed = string.match(redis.call('GET', key) or '', '^(%d+) (%d+)$')
  if owed then
    debt = math.max(owed - math.max(tick - at, 0) * requests, 0)
  end
  if debt + unit > burst * unit then
    reply[1] = 0
  end
  reply[i + 1], writes[i] = debt, {tick, requests, seconds}
end
if reply[1] == 1 then
  for i, key in ipairs(KEYS) do
    local tick, requests, seconds = unpack(writes[i])
    local debt = reply[i + 1] + unit
    reply[i + 1] = debt
    redis.call('SET', key, string.format('%.0f %.0f', tick, debt), 'PX', math.ceil(math.ceil(debt / requests) * seconds / 1000))
  end
end
return reply
`

var script = redis.NewScript(source)

// count counts a request in Redis, if all its counters allow it.
func count(ctx context.Context, client redis.Scripter, counters []counter) (verdict, error) {
	keys, args := make([]string, len(counters)), make([]any, 0, 3*len(counters))
	for i, c := range counters {
		keys[i] = c.key
		args = append(args, c.limit.Requests, int(c.limit.Per/time.Second), c.limit.Burst)
	}
	reply, err := script.Run(ctx, client, keys, args...).Int64Slice()
	if err == nil && len(reply) != len(counters)+1 {
		err = errors.New("unexpected answer")
	}
	if err != nil {
		return verdict{}, fmt.Errorf("counting a request: %w", err)
	}
	return verdictOf(counters, reply[0] == 1, reply[1:]), nil
}

// verdict is what becomes of a request. Its numbers are those of the counter that allows the fewest further requests.
type verdict struct {
	allowed          bool
	of               int // the index of the counter
	limit, remaining int
	// wait is how long until one more request is allowed. If some are allowed now, it is 0.
	wait time.Duration
}

// verdictOf returns the verdict for the debts of counters, which already include an allowed request.
func verdictOf(counters []counter, allowed bool, debts []int64) verdict {
	v := verdict{allowed: allowed, remaining: -1}
	for i, c := range counters {
		free := int64(c.limit.Burst)*unit - debts[i]
		remaining, wait := int(free/unit), time.Duration(0)
		if remaining <= 0 {
			ticks := (unit - free + int64(c.limit.Requests) - 1) / int64(c.limit.Requests)
			remaining, wait = 0, time.Duration(ticks)*(c.limit.Per/unit)
		}
		if v.remaining < 0 || remaining < v.remaining || remaining == v.remaining && wait > v.wait {
			v.of, v.limit, v.remaining, v.wait = i, c.limit.Burst, remaining, wait
		}
	}
	return v
}
