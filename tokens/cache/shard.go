package cache

import (
	"sync"
	"sync/atomic"
	"time"

	"gatepost/tokens"
)

// shard holds the principals of a part of the tokens, within its bounds. A cached principal takes
// its string, one slot in the ring and one cell in the index; a whole session would take four times
// that.
type shard struct {
	mu sync.RWMutex
	// generation counts the invalidations in this shard. Answers to look-ups from an earlier
	// generation are not cached.
	generation uint64
	// epoch is the epoch in which all cached principals were looked up.
	epoch uint64
	// slots finds the slot of a token in the ring.
	slots index
	// ring holds the cached principals in the order of the clock's hand.
	ring  []tokens.Principal
	hand  int
	bytes int
	// used marks the slots that were read since the hand passed them. Readers set marks under the
	// read lock.
	used bitset
	// loads are the look-ups in progress.
	loads map[tokens.Hash]*load
	// revoking counts the revokes in progress per token. The token is refused here meanwhile,
	// whatever the store answers.
	revoking                map[tokens.Hash]int
	hits, misses, evictions atomic.Uint64

	_ [64]byte // keeps two shards out of one cache line
}

func newShard() *shard {
	s := &shard{
		loads:    make(map[tokens.Hash]*load),
		revoking: make(map[tokens.Hash]int),
	}
	s.clear()
	return s
}

// get returns the cached principal of a token and its epoch, or zero values. It counts as a use.
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

// find returns the slot of a token. The caller holds the lock.
func (s *shard) find(h tokens.Hash) (at int, ok bool) {
	return s.slots.find(partOf(h), func(at int) bool { return s.ring[at].Has(h) })
}

// part returns the part of the token at a slot. The caller holds the lock.
func (s *shard) part(at int) part { return partOf(s.ring[at].Hash()) }

// put caches a principal that was looked up in an epoch, and evicts others as the bounds require.
// The caller holds the lock.
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
	// append would reserve more than maxEntries.
	if n := len(s.ring); n == cap(s.ring) && n >= maxEntries/2 {
		s.ring = append(make([]tokens.Principal, 0, maxEntries), s.ring...)
	}
	s.slots.add(partOf(hash), len(s.ring), s.part)
	s.ring = append(s.ring, principal)
	s.used.reach(len(s.ring))
	s.bytes += size
}

// evict drops the first principal that was not used since the hand passed it (the CLOCK algorithm).
// The caller holds the lock, and the ring is not empty.
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

// drop removes the principal at a slot and moves the last one there. The caller holds the lock.
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

// invalidate removes a token and discards every earlier look-up of the shard. The caller holds the
// lock.
func (s *shard) invalidate(h tokens.Hash) {
	s.generation++
	if at, ok := s.find(h); ok {
		s.drop(at)
	}
}

// dropExpired removes a token if its principal is still expired.
func (s *shard) dropExpired(h tokens.Hash, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.find(h); ok && !s.ring[at].Live(now) {
		s.drop(at)
	}
}

// clear empties the shard and discards every earlier look-up. The caller holds the lock.
func (s *shard) clear() {
	s.generation++
	s.forget()
}

// forget empties the shard. The caller holds the lock.
func (s *shard) forget() {
	s.slots = index{}
	s.ring, s.used, s.hand, s.bytes = nil, nil, 0, 0
}

// sizes returns the number of cached principals and their bytes.
func (s *shard) sizes() (entries, bytes int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.ring), s.bytes
}

// bitset has one bit per slot.
type bitset []uint64

// reach grows the bitset to the number of slots. New bits are clear.
func (m *bitset) reach(places int) {
	if places > 64*len(*m) {
		*m = append(*m, 0)
	}
}

// mark sets a bit. It is safe for concurrent use; most calls find the bit set and write nothing.
func (m bitset) mark(at int) {
	word, bit := &m[at/64], uint64(1)<<(at%64)
	if atomic.LoadUint64(word)&bit == 0 {
		atomic.OrUint64(word, bit)
	}
}

// unmark clears a bit and reports whether it was set. It must not run concurrently.
func (m bitset) unmark(at int) (was bool) {
	word, bit := &m[at/64], uint64(1)<<(at%64)
	was = *word&bit != 0
	*word &^= bit
	return was
}

// overhead is the cost of a cached principal besides its string: 16 bytes in the ring, 4 in the
// index, and the share of empty cells.
const overhead = 22

// sizeOf estimates the bytes that a cached principal takes. Short strings are allocated in steps of
// 16.
func sizeOf(h tokens.Principal) int { return overhead + (h.Size()+15)&^15 }
