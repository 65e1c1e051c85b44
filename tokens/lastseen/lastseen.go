// Package lastseen decides which uses of sessions are worth keeping, so that their owners can see when and from where
// each was last used, and a check writes nothing: once a minute and token at the most, by one goroutine, and what
// it cannot keep up with is left out.
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

// Config is what a Sampler needs.
type Config struct {
	// Store keeps the samples. Required.
	Store tokens.Toucher
	// Every is how often one token is sampled at the most; 0: a minute.
	Every time.Duration
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

const (
	defaultEvery = time.Minute
	// writeTimeout bounds one write. While the store is out of reach samples are left out.
	writeTimeout = 2 * time.Second
	// queued is how many samples wait for their write.
	queued = 1024
	// shards and perShard bound what is remembered: 64 Ki tokens within the time between two samples. Of those
	// beyond, no use is kept. So many fill a map of Go, and one more would make it twice as large.
	shards   = 74
	perShard = 896
)

// Sampler takes samples. Its methods may be called from many goroutines at once.
type Sampler struct {
	store tokens.Toucher
	every time.Duration
	queue chan sample // :: samples that are to be written

	shards [shards]shard

	stop    context.CancelFunc
	stopped chan struct{}
	mu      sync.RWMutex // held to send on queue, and to close it
	closed  bool

	written, failed, leftOut prometheus.Counter
}

// shard remembers when the tokens that belong to it were last sampled. A generation takes what comes in for the time
// between two samples and is remembered for as long again: nothing is searched for what is too old.
type shard struct {
	mu         sync.Mutex
	young, old map[part]milliseconds // :: part of a token's hash → when it was sampled
	began      time.Time             // the young generation
}

// part is four bytes of a hash after the two that choose the shard: among the thousand of a shard two tokens are hardly ever
// taken for one (one in four million); where they are, a use is left out.
type part uint32

// milliseconds since 1970, of which the lowest bits are enough to tell how long ago within two generations. With both, what is remembered
// of a token is eight bytes.
type milliseconds uint32

type sample struct {
	principal tokens.Principal
	at        time.Time
	address   string
}

// New returns a sampler and starts its goroutine, which Close ends. It fails where a metric of its name is
// registered already.
func New(c Config) (*Sampler, error) {
	if c.Every <= 0 {
		c.Every = defaultEvery
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Sampler{store: c.Store, every: c.Every, queue: make(chan sample, queued), stop: cancel, stopped: make(chan struct{})}
	samples := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "gatepost_last_seen_samples_total",
		Help: "Uses of sessions that were to be kept, by what came of it (written, failed, left out because there were too many).",
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

// Record takes down a use of a session from an address, where it is time for it. It never waits for the store, and
// keeps a copy of the address alone.
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

// due says whether the token has not been sampled for so long, and has it sampled now. Without room for one more
// it says so, and nothing is remembered.
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

// write writes samples one after another until the queue is closed, or ctx ends.
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
			s.failed.Inc() // the store's own metrics say what of it failed
			continue
		}
		s.written.Inc()
	}
}

// Close ends the sampling; what has not been written is left out. The store may be closed after it. It may be
// called again.
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
