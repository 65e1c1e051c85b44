package cache

import (
	"math/rand/v2"
	"testing"

	"gatepost/tokens"
)

// TestTheIndexFindsWhoIsInTheRingAndNobodyElse keeps, forgets and evicts tokens of which many share what the index knows of them.
func TestTheIndexFindsWhoIsInTheRingAndNobodyElse(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	hashes := make([]tokens.Hash, 600)
	for i := range hashes {
		hashes[i][31] = byte(i)
		hashes[i][30] = byte(i >> 8)
		hashes[i][1] = byte(r.IntN(3)) << 6 // few homes, at the end of the table and at its beginning
		hashes[i][2] = byte(r.IntN(2))
		hashes[i][8] = byte(r.IntN(4))
	}
	s := newShard()
	s.slots.add(partOf(hashes[0]), 0, nil) // as if it had been there and gone
	s.slots.drop(partOf(hashes[0]), 0, nil)
	for step := range 20_000 {
		h := hashes[r.IntN(len(hashes))]
		switch r.IntN(5) {
		case 0:
			s.callBack(h)
			if kept, _ := s.get(h); !kept.IsZero() {
				t.Fatalf("step %d: a token that was called back is found", step)
			}
		default:
			s.put(principal(h, "ann"), 0, 300, 1<<20)
			if kept, _ := s.get(h); !kept.Has(h) {
				t.Fatalf("step %d: a token that was kept is not found", step)
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
			t.Fatalf("step %d: %d in the index, %d in the ring, %d of them different", step, s.slots.n, len(s.ring), len(there))
		}
	}
}

// TestAUseIsOfATokenAndNotOfAPlace: who is moved to another place takes along that it was used, and who comes to a place where another
// was has not been used.
func TestAUseIsOfATokenAndNotOfAPlace(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	s := newShard()
	used := map[tokens.Hash]bool{} // of those that are kept
	for step := range 5_000 {
		h := tokens.Hash{1: byte(r.IntN(200))}
		switch r.IntN(3) {
		case 0:
			s.callBack(h)
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
				t.Fatalf("step %d: a token was used: %v, and counts as used: %v", step, used[one.Hash()], marked)
			}
			if marked {
				s.used.mark(at)
			}
		}
	}
}
