package cache

import (
	"math/rand/v2"
	"testing"

	"gatepost/tokens"
)

// The test adds, removes and evicts tokens, many of which share the bits that the index stores.
func TestIndexMatchesRing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	hashes := make([]tokens.Hash, 600)
	for i := range hashes {
		hashes[i][31] = byte(i)
		hashes[i][30] = byte(i >> 8)
		hashes[i][1] = byte(r.IntN(3)) << 6 // few home cells, at both ends of the table
		hashes[i][2] = byte(r.IntN(2))
		hashes[i][8] = byte(r.IntN(4))
	}
	s := newShard()
	s.slots.add(partOf(hashes[0]), 0, nil) // leaves an empty, allocated index
	s.slots.drop(partOf(hashes[0]), 0, nil)
	for step := range 20_000 {
		h := hashes[r.IntN(len(hashes))]
		switch r.IntN(5) {
		case 0:
			s.invalidate(h)
			if kept, _ := s.get(h); !kept.IsZero() {
				t.Fatalf("step %d: an invalidated token is found", step)
			}
		default:
			s.put(principal(h, "ann"), 0, 300, 1<<20)
			if kept, _ := s.get(h); !kept.Has(h) {
				t.Fatalf("step %d: a cached token is not found", step)
			}
		}
		if step%100 > 0 {
			continue
		}
		there := map[tokens.Hash]bool{}
		for _, one := range s.ring {
			there[one.Hash()] = true
		}
		for _, h := range hashes {
			if kept, _ := s.get(h); kept.Has(h) != there[h] || !there[h] && !kept.IsZero() {
				t.Fatalf("step %d: in the ring: %v, found: %v", step, there[h], kept)
			}
		}
		if s.slots.n != len(s.ring) || len(there) != len(s.ring) {
			t.Fatalf("step %d: %d in the index, %d in the ring, %d of them distinct", step, s.slots.n, len(s.ring), len(there))
		}
	}
}

// A use mark moves with its token to another slot, and a token that takes over a slot has no mark.
func TestUseMarkFollowsToken(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	s := newShard()
	used := map[tokens.Hash]bool{} // per cached token
	for step := range 5_000 {
		h := tokens.Hash{1: byte(r.IntN(200))}
		switch r.IntN(3) {
		case 0:
			s.invalidate(h)
			delete(used, h)
		case 1:
			s.put(principal(h, "ann"), 0, 300, 1<<20)
			used[h] = false
		default:
			if kept, _ := s.get(h); !kept.IsZero() {
				used[h] = true
			}
		}
		for at, one := range s.ring {
			marked := s.used.unmark(at)
			if marked != used[one.Hash()] {
				t.Fatalf("step %d: used is %v, marked is %v", step, used[one.Hash()], marked)
			}
			if marked {
				s.used.mark(at)
			}
		}
	}
}
