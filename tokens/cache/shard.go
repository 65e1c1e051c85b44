package cache

import (
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"gatepost/tokens"
)

// shard holds the sessions of a part of the hashes, no more than its bounds.
type shard struct {
	mu sync.RWMutex
	// generation counts what was called back in this shard. What was asked for in an older one is not kept.
	generation uint64
	entries    map[tokens.Hash]*entry
	// ring is the same entries in the order of the clock's hand.
	ring  []*entry
	hand  int
	bytes int
	// flights are the look-ups that are under way.
	flights map[tokens.Hash]*flight
	// ending are the tokens that this gateway is revoking, with how often: they open nothing here, whatever the store says.
	ending map[tokens.Hash]int

	hits, misses, evictions atomic.Uint64

	_ [64]byte // so that two shards share no cache line
}

// entry is a kept session. All but used is never changed.
type entry struct {
	session *tokens.Session
	epoch   uint64
	bytes   int
	at      int // its place in the ring; under the shard's lock
	used    atomic.Bool
}

func newShard() *shard {
	s := &shard{
		flights: make(map[tokens.Hash]*flight),
		ending:  make(map[tokens.Hash]int),
	}
	s.clear()
	return s
}

// get returns the kept entry of a token, or nil.
func (s *shard) get(h tokens.Hash) *entry {
	s.mu.RLock()
	e := s.entries[h]
	s.mu.RUnlock()
	return e
}

// put keeps a session, and evicts what was not used lately where the bounds ask for it. The lock is held.
func (s *shard) put(session *tokens.Session, epoch uint64, maxEntries, maxBytes int) {
	e := &entry{session: session, epoch: epoch, bytes: sizeOf(session)}
	if e.bytes > maxBytes {
		return
	}
	if old := s.entries[session.Hash]; old != nil {
		s.drop(old)
	}
	for len(s.ring) >= maxEntries || s.bytes+e.bytes > maxBytes {
		s.evict()
	}
	e.at = len(s.ring)
	s.ring = append(s.ring, e)
	s.entries[session.Hash] = e
	s.bytes += e.bytes
}

// evict drops the first entry under the hand that was not used since the hand passed it (the CLOCK algorithm). The
// lock is held, and there is an entry.
func (s *shard) evict() {
	for {
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		e := s.ring[s.hand]
		if !e.used.Swap(false) {
			s.drop(e)
			s.evictions.Add(1)
			return
		}
		s.hand++
	}
}

// drop forgets an entry of the shard. The lock is held.
func (s *shard) drop(e *entry) {
	delete(s.entries, e.session.Hash)
	last := len(s.ring) - 1
	s.ring[e.at] = s.ring[last]
	s.ring[e.at].at = e.at
	s.ring[last] = nil
	s.ring = s.ring[:last]
	s.bytes -= e.bytes
}

// callBack forgets a token and every look-up of the shard that was sent before. The lock is held.
func (s *shard) callBack(h tokens.Hash) {
	s.generation++
	if e := s.entries[h]; e != nil {
		s.drop(e)
	}
}

// dropExpired forgets the entry unless it was replaced.
func (s *shard) dropExpired(e *entry, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[e.session.Hash] == e && !e.session.Live(now) {
		s.drop(e)
	}
}

// clear forgets every entry. The lock is held, or the shard is new.
func (s *shard) clear() {
	s.generation++
	s.entries = make(map[tokens.Hash]*entry)
	s.ring, s.hand, s.bytes = nil, 0, 0
}

// sizes returns how much is kept.
func (s *shard) sizes() (entries, bytes int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.ring), s.bytes
}

// overhead is what an entry costs beside its strings: the structs, a map cell (key, pointer, control byte, at the
// load that a growing map has on average) and the place in the ring.
const overhead = int(unsafe.Sizeof(entry{})+unsafe.Sizeof(tokens.Session{})) + 96

// sizeOf estimates the memory that keeping a session takes, in bytes.
func sizeOf(s *tokens.Session) int {
	n := overhead + len(s.ID) + len(s.User) + len(s.ClientAddress) + len(s.UserAgent) + len(s.LastAddress)
	for _, scope := range s.Scopes {
		n += int(unsafe.Sizeof(scope)) + len(scope)
	}
	return n
}
