package shield

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis stores counts in Redis, under keys with the prefix "gatepost:shl:". A count is the
// remaining TTL of two Redis keys in one hash slot: one until all failures are forgiven, one until
// the next login is allowed. So only Redis' clock counts, and keys expire by themselves.
type Redis struct{ Client redis.UniversalClient }

func leftKey(k Key) string { return "gatepost:shl:{" + k.Hex() + "}:left" }
func waitKey(k Key) string { return "gatepost:shl:{" + k.Hex() + "}:wait" }

// failScript is [table.fail] for all gateways. KEYS: left, wait. ARGV: failures, forgive, base and
// cap of the limit, with times in milliseconds.
var failScript = redis.NewScript(`
local failures, forgive, base, cap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local left = math.max(redis.call('PTTL', KEYS[1]), 0) + forgive
redis.call('SET', KEYS[1], '', 'PX', left)
local over = math.ceil(left / forgive) - failures
if over > 0 then
  redis.call('SET', KEYS[2], '', 'PX', math.floor(math.min(base * 2 ^ math.min(over - 1, 40), cap)))
end
return {left, math.max(redis.call('PTTL', KEYS[2]), 0)}
`)

// Load implements [Shared] in one round trip.
func (r Redis) Load(ctx context.Context, keys []Key) ([]Count, error) {
	replies := make([]*redis.DurationCmd, 0, 2*len(keys))
	_, err := r.Client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, k := range keys {
			replies = append(replies, p.PTTL(ctx, leftKey(k)), p.PTTL(ctx, waitKey(k)))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading failed logins: %w", opaque(err))
	}
	counts := make([]Count, len(keys))
	for i := range counts { // the TTL of a missing key is negative
		counts[i] = Count{Left: max(replies[2*i].Val(), 0), Wait: max(replies[2*i+1].Val(), 0)}
	}
	return counts, nil
}

// Fail implements [Shared].
func (r Redis) Fail(ctx context.Context, k Key, l Limit) (Count, error) {
	reply, err := failScript.Run(ctx, r.Client, []string{leftKey(k), waitKey(k)},
		l.Failures, max(l.Forgive.Milliseconds(), 1), max(l.Base.Milliseconds(), 1), max(l.Cap.Milliseconds(), 1)).Int64Slice()
	if err == nil && len(reply) != 2 {
		err = errors.New("unexpected answer")
	}
	if err != nil {
		return Count{}, fmt.Errorf("counting a failed login: %w", opaque(err))
	}
	return Count{
		Left: time.Duration(reply[0]) * time.Millisecond,
		Wait: time.Duration(reply[1]) * time.Millisecond,
	}, nil
}

// Forget implements [Shared].
func (r Redis) Forget(ctx context.Context, k Key) error {
	if err := r.Client.Del(ctx, leftKey(k), waitKey(k)).Err(); err != nil {
		return fmt.Errorf("forgetting failed logins: %w", opaque(err))
	}
	return nil
}

// opaque hides the driver's error. It keeps only the text.
func opaque(err error) error { return errors.New(err.Error()) }
