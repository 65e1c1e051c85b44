package table

import (
	"encoding/binary"
	"iter"

	"gatepost/tokens"
)

// byToken finds the slots of a token. It is a hash table with chains in arrays, 8 bytes per slot and
// without pointers. It stores four bytes of a token's hash. Two tokens that share them are dropped
// together, which costs one extra check each.
type byToken struct {
	heads []uint32 // chain → its first slot plus one
	next  []uint32 // slot → the next slot of its chain plus one
	owner []uint32 // slot → the token of its decision; 0: it is not linked
	used  bool     // a slot was linked since the last clear
}

func newByToken(slots int) byToken {
	chains := 1
	for chains < slots/4 {
		chains *= 2
	}
	return byToken{
		heads: make([]uint32, chains), next: make([]uint32, slots), owner: make([]uint32, slots),
	}
}

func owner(h tokens.Hash) uint32 { return max(1, binary.LittleEndian.Uint32(h[8:])) }

func (b *byToken) head(owner uint32) *uint32 { return &b.heads[owner&uint32(len(b.heads)-1)] }

func (b *byToken) linked(slot int) bool { return b.owner[slot] != 0 }

// of yields the slots of a token. The caller may write them, but not link or unlink them.
func (b *byToken) of(h tokens.Hash) iter.Seq[int] {
	return func(yield func(int) bool) {
		for at := *b.head(owner(h)); at != 0; at = b.next[at-1] {
			if b.owner[at-1] == owner(h) && !yield(int(at-1)) {
				return
			}
		}
	}
}

// link assigns a slot, which must not be linked, to a token.
func (b *byToken) link(slot int, h tokens.Hash) {
	head := b.head(owner(h))
	b.owner[slot], b.used = owner(h), true
	b.next[slot], *head = *head, uint32(slot+1)
}

// unlink removes a slot from its token.
func (b *byToken) unlink(slot int) {
	if b.linked(slot) {
		b.prune(b.head(b.owner[slot]), func(one int) bool { return one == slot })
	}
}

// remove unlinks all slots of a token.
func (b *byToken) remove(h tokens.Hash) {
	b.prune(b.head(owner(h)), func(one int) bool { return b.owner[one] == owner(h) })
}

// prune unlinks the slots of a chain for which remove returns true.
func (b *byToken) prune(at *uint32, remove func(slot int) bool) {
	for *at != 0 {
		slot := int(*at - 1)
		if remove(slot) {
			b.owner[slot] = 0
			*at = b.next[slot]
		} else {
			at = &b.next[slot]
		}
	}
}

// clear unlinks every slot. It does not write to memory that was never used, so that it stays unallocated.
func (b *byToken) clear() {
	if b.used {
		clear(b.heads)
		clear(b.owner)
		b.used = false
	}
}
