package ratelimit

import (
	"sync"
	"time"
)

// maxFull is the largest number of counters that are known to be full. They take about 2 MiB.
const maxFull = 10_000

// full knows counters that allow no request for a while. Nothing makes that time shorter, because a full counter counts
// no request. So requests of a client above its limit are refused without Redis, and also if Redis does not answer.
// Otherwise a flood of them could make Redis late, and would then be allowed. Its methods are safe for concurrent use.
type full struct {
	mu    sync.Mutex
	until map[string]time.Time // :: key of a counter → its end
}

// add notes that a counter is full until a time. If there is no room, it forgets another one: Redis is asked about it.
func (f *full) add(c counter, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until == nil {
		f.until = map[string]time.Time{}
	}
	if _, there := f.until[c.key]; !there && len(f.until) >= maxFull {
		for other := range f.until {
			delete(f.until, other)
			break
		}
	}
	f.until[c.key] = until
}

// verdict returns the verdict on a request of which a counter is known to be full.
func (f *full) verdict(counters []counter, now time.Time) (v verdict, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range counters {
		until, there := f.until[c.key]
		switch wait := until.Sub(now); {
		case there && wait <= 0:
			delete(f.until, c.key)
		case wait > v.wait:
			v = verdict{limit: c.limit.Burst, wait: wait}
		}
	}
	return v, v.wait > 0
}
