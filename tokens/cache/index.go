package cache

import (
	"encoding/binary"

	"gatepost/tokens"
)

// part is the part of a hash that an index uses: eight bytes, after the one that selects the shard.
type part uint64

func partOf(h tokens.Hash) part { return part(binary.LittleEndian.Uint64(h[1:])) }

// index maps tokens to their slots in a ring. It is a hash table with open addressing that stores
// only the slot and a dozen bits of the hash. The zero index is empty. Only concurrent reads are
// safe.
type index struct {
	cells []cell // a power of two in length, at least an eighth empty
	n     int
}

// cell is the slot of a token plus one, and 12 bits of its part above that. The bits tell most
// other tokens apart without a read of the ring. 0 means empty.
type cell uint32

const (
	slotBits = 20
	// maxSlots is the number of slots that fit, with one to spare.
	maxSlots = 1<<slotBits - 1
	minSize  = 8
)

func cellOf(p part, at int) cell { return cell(p>>(64-12))<<slotBits | cell(at+1) }
func (c cell) slot() int         { return int(c&maxSlots) - 1 }
func (c cell) mayBe(p part) bool {
	return c>>slotBits == cell(p>>(64-12))
}

// find returns the slot of a token. is reports whether the slot holds that token.
func (x *index) find(p part, is func(at int) bool) (at int, ok bool) {
	if i, ok := x.cell(p, is); ok {
		return x.cells[i].slot(), true
	}
	return 0, false
}

func (x *index) cell(p part, is func(at int) bool) (i uint64, ok bool) {
	if x.n == 0 {
		return 0, false
	}
	mask := uint64(len(x.cells) - 1)
	for i = uint64(p) & mask; x.cells[i] != 0; i = (i + 1) & mask {
		if c := x.cells[i]; c.mayBe(p) && is(c.slot()) {
			return i, true
		}
	}
	return 0, false
}

// add inserts the slot of a token that is not in the index. parts returns the part of a slot's
// token.
func (x *index) add(p part, at int, parts func(at int) part) {
	if x.n+1 > len(x.cells)/8*7 {
		old := x.cells
		x.cells, x.n = make([]cell, max(2*len(old), minSize)), 0
		for _, c := range old {
			if c != 0 {
				x.insert(parts(c.slot()), c.slot())
			}
		}
	}
	x.insert(p, at)
}

func (x *index) insert(p part, at int) {
	mask := uint64(len(x.cells) - 1)
	i := uint64(p) & mask
	for x.cells[i] != 0 {
		i = (i + 1) & mask
	}
	x.cells[i] = cellOf(p, at)
	x.n++
}

// move changes the slot of a token.
func (x *index) move(p part, from, to int) {
	if i, ok := x.cell(p, func(at int) bool { return at == from }); ok {
		x.cells[i] = cellOf(p, to)
	}
}

// drop removes the token at a slot. It moves later cells of the probe sequence up to close the gap.
func (x *index) drop(p part, at int, parts func(at int) part) {
	gap, ok := x.cell(p, func(one int) bool { return one == at })
	if !ok {
		return
	}
	mask := uint64(len(x.cells) - 1)
	for i := (gap + 1) & mask; x.cells[i] != 0; i = (i + 1) & mask {
		home := uint64(parts(x.cells[i].slot())) & mask
		if (i-home)&mask >= (i-gap)&mask { // the gap is on the way from home
			x.cells[gap], gap = x.cells[i], i
		}
	}
	x.cells[gap] = 0
	x.n--
}
