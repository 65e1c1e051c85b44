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
	s.places.add(partOf(hashes[0]), 0, nil) // as if it had been there and gone
	s.places.drop(partOf(hashes[0]), 0, nil)
	for step := range 20_000 {
		h := hashes[r.IntN(len(hashes))]
		switch r.IntN(5) {
		case 0:
			s.callBack(h)
			if kept, _ := s.get(h); !kept.IsZero() {
				t.Fatalf("step %d: a token that was called back is found", step)
			}
		default:
			s.put(holder(h, "ann"), 0, 300, 1<<20)
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
		if s.places.n != len(s.ring) || len(there) != len(s.ring) || len(s.used) != len(s.ring) {
			t.Fatalf("step %d: %d in the index, %d in the ring, %d of them different", step, s.places.n, len(s.ring), len(there))
		}
	}
}
