// Package lastseen decides which uses of sessions are recorded, so owners can see when and from
// where each session was last used. A check writes nothing itself: one goroutine writes at most one
// sample per minute and token, and drops samples that it cannot write in time.
package lastseen

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/tokens"
)

// Config configures a Sampler.
type Config struct {
	// Store stores the samples. Required.
	Store tokens.Toucher
	// Every is the shortest time between two samples of one token; 0: a minute.
	Every time.Duration
	// Registerer takes the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer
}

const (
	defaultEvery = time.Minute
	// writeTimeout bounds one write. While the store is unavailable, samples are dropped.
	writeTimeout = 2 * time.Second
	// queued is the maximum number of samples that wait to be written.
	queued = 1024
	// shards and perShard bound the memory: 64 Ki tokens between two samples. Uses of further
	// tokens are dropped. 896 entries fill a Go map; one more would double its size.
	shards   = 74
	perShard = 896
)

// Sampler records samples. Its methods are safe for concurrent use.
type Sampler struct {
	store tokens.Toucher
	every time.Duration
	queue chan sample // samples to write

	shards [shards]shard

	stop    context.CancelFunc
	stopped chan struct{}
	mu      sync.RWMutex // held to send on queue, and to close it
	closed  bool

	written, failed, leftOut prometheus.Counter
}

// shard stores when its tokens were last sampled. A generation collects entries for the time
// between two samples and is kept for as long again, so no search for old entries is needed.
type shard struct {
	mu         sync.Mutex
	young, old map[part]milliseconds // part of a token's hash → when it was sampled
	began      time.Time             // start of the young generation
}

// part is four bytes of a hash after the two that select the shard. Two of the thousand tokens of a
// shard rarely share it (one in four million); then one use is dropped.
type part uint32

// milliseconds are the low bits of the milliseconds since 1970, enough for the time between two
// generations. With part, an entry takes eight bytes.
type milliseconds uint32

type sample struct {
	principal tokens.Principal
	at        time.Time
	address   string
}

// New returns a sampler and starts its goroutine, which Close stops. It fails if its metric is
// already registered.
func New(c Config) (*Sampler, error) {
	if c.Every <= 0 {
		c.Every = defaultEvery
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Sampler{store: c.Store, every: c.Every, queue: make(chan sample, queued), stop: cancel, stopped: make(chan struct{})}
	samples := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatepost_last_seen_samples_total",
		Help: "Samples of session uses by outcome (written, failed, or left out because there were too many).",
	}, []string{"outcome"})
	s.written, s.failed, s.leftOut = samples.WithLabelValues("written"), samples.WithLabelValues("failed"), samples.WithLabelValues("left_out")
	if c.Registerer != nil {
		if err := c.Registerer.Register(samples); err != nil {
			cancel()
			return nil, fmt.Errorf("registering the metrics of last uses: %w", err)
		}
	}
	go s.write(ctx)
	return s, nil
}

// Record samples a use of a session from an address if a sample is due. It never waits for the
// store, and copies the address only then.
func (s *Sampler) Record(principal tokens.Principal, address string) {
	now, hash := time.Now(), principal.Hash()
	switch due, room := s.shards[shardOf(hash)].due(hash, now, s.every); {
	case !room:
		s.leftOut.Inc()
	case due:
		s.send(sample{principal, now, strings.Clone(address)})
	}
}

func shardOf(h tokens.Hash) int { return int(binary.LittleEndian.Uint16(h[:])) % shards }

// due reports whether a sample of the token is due, and records it. room is false if the shard is
// full; then nothing is recorded.
func (s *shard) due(h tokens.Hash, now time.Time, every time.Duration) (due, room bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.young == nil || now.Sub(s.began) >= every {
		s.old, s.young, s.began = s.young, map[part]milliseconds{}, now
	}
	key, at := part(binary.LittleEndian.Uint32(h[2:])), milliseconds(now.UnixMilli())
	last, known := s.young[key]
	if !known {
		last, known = s.old[key]
	}
	if known && at-last < milliseconds(every.Milliseconds()) {
		return false, true
	}
	if len(s.young) >= perShard {
		return false, false
	}
	s.young[key] = at
	return true, true
}

func (s *Sampler) send(one sample) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return
	}
	select {
	case s.queue <- one:
	default:
		s.leftOut.Inc()
	}
}

// write writes samples until the queue is closed or ctx ends.
func (s *Sampler) write(ctx context.Context) {
	defer close(s.stopped)
	for one := range s.queue {
		if ctx.Err() != nil {
			return
		}
		bounded, cancel := context.WithTimeout(ctx, writeTimeout)
		err := s.store.Touch(bounded, one.principal, one.at, one.address)
		cancel()
		if err != nil {
			s.failed.Inc() // the store has its own error metrics
			continue
		}
		s.written.Inc()
	}
}

// Close stops the sampling and drops unwritten samples. The store may be closed after it. Close may
// be called more than once.
func (s *Sampler) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.queue)
	}
	s.mu.Unlock()
	s.stop()
	<-s.stopped
}
