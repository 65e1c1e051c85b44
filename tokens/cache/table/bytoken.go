package table

import (
	"encoding/binary"
	"iter"

	"gatepost/tokens"
)

// byToken finds the slots of a token: a hash table with chains through arrays, of 16 bytes a slot and without pointers. It knows
// of a token eight bytes of its hash; two tokens that share them are dropped together, which costs one question each.
type byToken struct {
	heads []uint32 // :: chain → its first slot plus one
	next  []uint32 // :: slot → the next one of its chain plus one
	owner []uint64 // :: slot → whose decision is in it
	since []uint32 // :: slot → the generation in which it was linked
	// generation counts the clears. A slot that was linked in an older one is linked no more.
	generation uint32
}

func newByToken(slots int) byToken {
	chains := 1
	for chains < slots/4 {
		chains *= 2
	}
	return byToken{
		heads: make([]uint32, chains), next: make([]uint32, slots), owner: make([]uint64, slots), since: make([]uint32, slots),
	}
}

func owner(h tokens.Hash) uint64 { return binary.LittleEndian.Uint64(h[8:]) }

func (b *byToken) head(owner uint64) *uint32 { return &b.heads[owner&uint64(len(b.heads)-1)] }

func (b *byToken) linked(slot int) bool { return b.since[slot] == b.generation }

// of yields the slots of a token. They may be written meanwhile, but not linked or unlinked.
func (b *byToken) of(h tokens.Hash) iter.Seq[int] {
	return func(yield func(int) bool) {
		for at := *b.head(owner(h)); at != 0; at = b.next[at-1] {
			if b.owner[at-1] == owner(h) && !yield(int(at-1)) {
				return
			}
		}
	}
}

// link says that a slot, which is not linked, is a token's.
func (b *byToken) link(slot int, h tokens.Hash) {
	head := b.head(owner(h))
	b.owner[slot], b.since[slot] = owner(h), b.generation
	b.next[slot], *head = *head, uint32(slot+1)
}

// unlink says that a slot is nobody's.
func (b *byToken) unlink(slot int) {
	if b.linked(slot) {
		b.prune(b.head(b.owner[slot]), func(one int) bool { return one == slot })
	}
}

// remove unlinks all slots of a token.
func (b *byToken) remove(h tokens.Hash) {
	b.prune(b.head(owner(h)), func(one int) bool { return b.owner[one] == owner(h) })
}

// prune unlinks the slots of a chain that are to go.
func (b *byToken) prune(at *uint32, gone func(slot int) bool) {
	for *at != 0 {
		slot := int(*at - 1)
		if gone(slot) {
			b.since[slot] = b.generation - 1
			*at = b.next[slot]
		} else {
			at = &b.next[slot]
		}
	}
}

// clear unlinks every slot.
func (b *byToken) clear() {
	clear(b.heads)
	b.generation++
}
