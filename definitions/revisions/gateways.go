package revisions

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// Beat is the interval of a gateway's reports.
	Beat = time.Second
	// silent is the time without a report after which a gateway counts as frozen, disconnected or dead.
	silent = 5 * time.Second
	// forgotten is the time without a report after which a gateway is removed. Until then its Envoy may outlive it and
	// serve the revision of its last report.
	forgotten = time.Minute
)

// Report is the state of a gateway, for other gateways and for commands.
type Report struct {
	// ID is unique to the process.
	ID string `json:"id"`
	// Name identifies the gateway to an operator: its host and its admin address.
	Name string `json:"name"`
	// Newest is the newest revision that it has seen.
	Newest Mark `json:"newest"`
	// Serving is the revision that it has published to its Envoys.
	Serving Mark `json:"serving"`
	// Verified reports whether it has an Envoy, and all its Envoys serve Serving.
	Verified bool `json:"proven"`
	// Refused is the reason that Newest is not served and will not be: it is not valid here, or an Envoy rejected it.
	Refused string `json:"refused,omitempty"`
	// Pending is what the gateway waits for, if Serving is not verified.
	Pending string `json:"pending,omitempty"`
	// Envoys is the number of connected Envoys.
	Envoys int `json:"envoys"`
}

// Mark identifies a revision, even if Redis has lost some and repeats their numbers. The zero Mark is no revision.
type Mark struct {
	Number int64  `json:"number"`
	Sum    string `json:"sha256"` // of the file
}

// Mark returns what identifies the revision.
func (r Revision) Mark() Mark { return Mark{r.Number, r.Sum} }

// Gateway is a gateway as Redis knows it.
type Gateway struct {
	Report
	// Known is the time since its first report, and Quiet since its last, by the clock of Redis.
	Known, Quiet time.Duration
}

// reported is a Report as it is stored.
type reported struct {
	Report
	Since int64 `json:"since"` // in milliseconds
}

// reportScript stores a report and removes the gateways that have stopped reporting. KEYS: gateways, reports. ARGV: the
// id, the report without its closing brace, after how many milliseconds a gateway is removed.
var reportScript = redis.NewScript(`
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local since = now
local before = redis.call('HGET', KEYS[2], ARGV[1])
if before then
  since = tonumber(string.match(before, '"since":(%d+)}$')) or now
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ',"since":' .. string.format('%d', since) .. '}')
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[3]))) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
end
return 1
`)

// listScript returns the clock of Redis in milliseconds, and for each gateway the time of its last report and the
// report. KEYS: gateways, reports.
var listScript = redis.NewScript(`
local clock = redis.call('TIME')
local out = {string.format('%d', clock[1] * 1000 + math.floor(clock[2] / 1000))}
local known = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #known, 2 do
  out[#out + 1] = known[i + 1]
  out[#out + 1] = redis.call('HGET', KEYS[2], known[i]) or ''
end
return out
`)

// leaveScript removes a gateway. KEYS: gateways, reports. ARGV: its id.
var leaveScript = redis.NewScript(`
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
`)

var registerKeys = []string{gatewaysKey, reportsKey}

// Report stores the state of a gateway for the others. Call it every [Beat], and after each change.
func (s *Store) Report(ctx context.Context, r Report) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("reporting what is served: %w", err)
	}
	open := text[:len(text)-1]
	err = reportScript.Run(ctx, s.client, registerKeys, r.ID, open, forgotten.Milliseconds()).Err()
	return s.wrapped("reporting what is served", err)
}

// Leave removes a gateway that ends. [Store.Await] does not wait for its Envoys any more.
func (s *Store) Leave(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return s.wrapped("removing the gateway", leaveScript.Run(ctx, s.client, registerKeys, id).Err())
}

// Gateways returns the gateways that have reported and not left, sorted by name. It leaves out a gateway that has not
// reported for a minute, and one that another of the same name has replaced.
func (s *Store) Gateways(ctx context.Context) ([]Gateway, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	reply, err := listScript.Run(ctx, s.client, registerKeys).StringSlice()
	if err != nil {
		return nil, s.wrapped("listing the gateways", err)
	}
	all, err := readGateways(reply)
	if err != nil {
		return nil, fmt.Errorf("listing the gateways: %w", err)
	}
	return all, nil
}

func readGateways(reply []string) ([]Gateway, error) {
	if len(reply) == 0 || len(reply)%2 == 0 {
		return nil, fmt.Errorf("%w: the list has no end", ErrDamaged)
	}
	now, err := readTime(reply[0])
	if err != nil {
		return nil, err
	}
	var all []Gateway
	for i := 1; i < len(reply); i += 2 {
		last, err := readTime(reply[i])
		if err != nil {
			return nil, err
		}
		var kept reported
		if json.Unmarshal([]byte(reply[i+1]), &kept) != nil || kept.ID == "" {
			return nil, fmt.Errorf("%w: %s is not what gatepost writes; delete it, the gateways write it again", ErrDamaged, reportsKey)
		}
		g := Gateway{Report: kept.Report, Known: now.Sub(time.UnixMilli(kept.Since)), Quiet: max(0, now.Sub(last))}
		if g.Quiet < forgotten {
			all = append(all, g)
		}
	}
	known := slices.Clone(all)
	all = slices.DeleteFunc(all, func(g Gateway) bool {
		return slices.ContainsFunc(known, func(other Gateway) bool { return other.follows(g) })
	})
	slices.SortFunc(all, func(a, b Gateway) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// follows reports whether g replaces another that has died without leaving.
func (g Gateway) follows(other Gateway) bool {
	return g.Name == other.Name && g.ID != other.ID && g.Known < other.Quiet
}

// readTime reads milliseconds, as scripts and scores have them.
func readTime(text string) (time.Time, error) {
	var ms float64
	if err := json.Unmarshal([]byte(text), &ms); err != nil {
		return time.Time{}, fmt.Errorf("%w: a time is no number", ErrDamaged)
	}
	return time.UnixMilli(int64(ms)), nil
}
