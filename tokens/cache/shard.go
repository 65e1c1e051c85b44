package cache

import (
	"sync"
	"sync/atomic"
	"time"

	"gatepost/tokens"
)

// shard holds the principals of a part of the tokens, no more than its bounds. A kept principal is its string, a place in
// the ring and one in the index: a session with all that is known of it would be four times that.
type shard struct {
	mu sync.RWMutex
	// generation counts what was called back in this shard. What was asked for in an older one is not kept.
	generation uint64
	// epoch is the one in which all that is kept was asked for.
	epoch uint64
	// slots finds the slot of a token in the ring.
	slots index
	// ring is who is kept, in the order of the clock's hand.
	ring  []tokens.Principal
	hand  int
	bytes int
	// used are the places in the ring that were asked for since the hand passed them. They are marked under the lock for reading.
	used bitset
	// loads are the look-ups that are under way.
	loads map[tokens.Hash]*load
	// revoking are the tokens that this gateway is revoking, with how often: they open nothing here, whatever the store says.
	revoking map[tokens.Hash]int

	hits, misses, evictions atomic.Uint64

	_ [64]byte // so that two shards share no cache line
}

func newShard() *shard {
	s := &shard{
		loads:    make(map[tokens.Hash]*load),
		revoking: make(map[tokens.Hash]int),
	}
	s.clear()
	return s
}

// get returns the kept principal of a token and the epoch in which it was asked for, or nobody. It counts as a use.
func (s *shard) get(h tokens.Hash) (tokens.Principal, uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok := s.find(h)
	if !ok {
		return tokens.Principal{}, 0
	}
	s.used.mark(at)
	return s.ring[at], s.epoch
}

// find returns the place of a token. The lock is held.
func (s *shard) find(h tokens.Hash) (at int, ok bool) {
	return s.slots.find(partOf(h), func(at int) bool { return s.ring[at].Has(h) })
}

// part is the one of the token at a place. The lock is held.
func (s *shard) part(at int) part { return partOf(s.ring[at].Hash()) }

// put keeps a principal that was asked for in an epoch, and evicts what was not used lately where the bounds ask for it. The lock is held.
func (s *shard) put(principal tokens.Principal, epoch uint64, maxEntries, maxBytes int) {
	size := sizeOf(principal)
	if size > maxBytes {
		return
	}
	if s.epoch != epoch {
		s.forget()
		s.epoch = epoch
	}
	hash := principal.Hash()
	if old, ok := s.find(hash); ok {
		s.drop(old)
	}
	for len(s.ring) >= maxEntries || s.bytes+size > maxBytes {
		s.evict()
	}
	if n := len(s.ring); n == cap(s.ring) && n >= maxEntries/2 { // it will hardly be larger than that: append would make room for more
		s.ring = append(make([]tokens.Principal, 0, maxEntries), s.ring...)
	}
	s.slots.add(partOf(hash), len(s.ring), s.part)
	s.ring = append(s.ring, principal)
	s.used.reach(len(s.ring))
	s.bytes += size
}

// evict drops the first under the hand that was not used since the hand passed it (the CLOCK algorithm). The
// lock is held, and somebody is kept.
func (s *shard) evict() {
	for {
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		if !s.used.unmark(s.hand) {
			s.drop(s.hand)
			s.evictions.Add(1)
			return
		}
		s.hand++
	}
}

// drop forgets who is at a place; the last takes it. The lock is held.
func (s *shard) drop(at int) {
	s.bytes -= sizeOf(s.ring[at])
	s.slots.drop(s.part(at), at, s.part)
	last := len(s.ring) - 1
	s.used.unmark(at)
	if at != last {
		s.ring[at] = s.ring[last]
		if s.used.unmark(last) {
			s.used.mark(at)
		}
		s.slots.move(s.part(at), last, at)
	}
	s.ring[last] = tokens.Principal{}
	s.ring = s.ring[:last]
}

// callBack forgets a token and every look-up of the shard that was sent before. The lock is held.
func (s *shard) callBack(h tokens.Hash) {
	s.generation++
	if at, ok := s.find(h); ok {
		s.drop(at)
	}
}

// dropExpired forgets a token unless it was replaced by one that lives.
func (s *shard) dropExpired(h tokens.Hash, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.find(h); ok && !s.ring[at].Live(now) {
		s.drop(at)
	}
}

// clear forgets everybody and every look-up that was sent before. The lock is held, or the shard is new.
func (s *shard) clear() {
	s.generation++
	s.forget()
}

// forget forgets everybody. The lock is held.
func (s *shard) forget() {
	s.slots = index{}
	s.ring, s.used, s.hand, s.bytes = nil, nil, 0, 0
}

// sizes returns how much is kept.
func (s *shard) sizes() (entries, bytes int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.ring), s.bytes
}

// bitset says of places whether they are marked, in a bit each.
type bitset []uint64

// reach makes room for so many places. Those that are new are not marked.
func (m *bitset) reach(places int) {
	if places > 64*len(*m) {
		*m = append(*m, 0)
	}
}

// mark may be called by many goroutines at once; most find what they would write.
func (m bitset) mark(at int) {
	word, bit := &m[at/64], uint64(1)<<(at%64)
	if atomic.LoadUint64(word)&bit == 0 {
		atomic.OrUint64(word, bit)
	}
}

// unmark says whether the place was marked. Nothing else may be called meanwhile.
func (m bitset) unmark(at int) (was bool) {
	word, bit := &m[at/64], uint64(1)<<(at%64)
	was = *word&bit != 0
	*word &^= bit
	return was
}

// overhead is what keeping a principal costs beside its string: 16 bytes in the ring and 4 in the index, of which some are empty.
const overhead = 22

// sizeOf estimates the memory that keeping a principal takes, in bytes. Short strings are allocated in steps of 16.
func sizeOf(h tokens.Principal) int { return overhead + (h.Size()+15)&^15 }
