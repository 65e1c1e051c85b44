package cache

import (
	"encoding/binary"

	"gatepost/tokens"
)

// part is what an index knows of a token: eight bytes of its hash after the one that chooses the shard.
type part uint64

func partOf(h tokens.Hash) part { return part(binary.LittleEndian.Uint64(h[1:])) }

// index finds the places of tokens in a ring: a hash table with open addressing, which knows of each token no more than its place and
// a dozen bits. The zero index is empty. It is safe for concurrent reading alone.
type index struct {
	cells []cell // a power of two of them, of which at least an eighth is empty
	n     int
}

// cell is the place of a token plus one, and above it bits of its part, by which most others are told apart without a look at the
// ring; 0: it is empty.
type cell uint32

const (
	placeBits = 20
	// maxPlaces is how many places can be told, with one to spare.
	maxPlaces = 1<<placeBits - 1
	leastSize = 8
)

func cellOf(p part, at int) cell { return cell(p>>(64-12))<<placeBits | cell(at+1) }
func (c cell) place() int        { return int(c&maxPlaces) - 1 }
func (c cell) likely(p part) bool {
	return c>>placeBits == cell(p>>(64-12))
}

// find returns the place of a token of which is says that it is the one.
func (x *index) find(p part, is func(at int) bool) (at int, ok bool) {
	if i, ok := x.cell(p, is); ok {
		return x.cells[i].place(), true
	}
	return 0, false
}

func (x *index) cell(p part, is func(at int) bool) (i uint64, ok bool) {
	if x.n == 0 {
		return 0, false
	}
	mask := uint64(len(x.cells) - 1)
	for i = uint64(p) & mask; x.cells[i] != 0; i = (i + 1) & mask {
		if c := x.cells[i]; c.likely(p) && is(c.place()) {
			return i, true
		}
	}
	return 0, false
}

// add takes down the place of a token that is not in the index. parts gives the part of each that is.
func (x *index) add(p part, at int, parts func(at int) part) {
	if x.n+1 > len(x.cells)/8*7 {
		old := x.cells
		x.cells, x.n = make([]cell, max(2*len(old), leastSize)), 0
		for _, c := range old {
			if c != 0 {
				x.insert(parts(c.place()), c.place())
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

// move says that the token at a place is at another now.
func (x *index) move(p part, from, to int) {
	if i, ok := x.cell(p, func(at int) bool { return at == from }); ok {
		x.cells[i] = cellOf(p, to)
	}
}

// drop forgets the token at a place. Those behind it move up, so that each is found without a gap before it.
func (x *index) drop(p part, at int, parts func(at int) part) {
	gap, ok := x.cell(p, func(one int) bool { return one == at })
	if !ok {
		return
	}
	mask := uint64(len(x.cells) - 1)
	for i := (gap + 1) & mask; x.cells[i] != 0; i = (i + 1) & mask {
		home := uint64(parts(x.cells[i].place())) & mask
		if (i-home)&mask >= (i-gap)&mask { // its way from home leads over the gap
			x.cells[gap], gap = x.cells[i], i
		}
	}
	x.cells[gap] = 0
	x.n--
}
