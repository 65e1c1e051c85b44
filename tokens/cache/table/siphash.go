package table

import (
	"encoding/binary"
	"math/bits"
)

// tag is a 128-bit SipHash-2-4 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012).
type tag [2]uint64

func siphash(key [2]uint64, message []byte) (t tag) {
	v := [4]uint64{
		0x736f6d6570736575 ^ key[0], 0x646f72616e646f6d ^ key[1] ^ 0xee,
		0x6c7967656e657261 ^ key[0], 0x7465646279746573 ^ key[1],
	}
	absorb := func(m uint64) {
		v[3] ^= m
		sipRounds(&v, 2)
		v[0] ^= m
	}
	rest := message
	for ; len(rest) >= 8; rest = rest[8:] {
		absorb(binary.LittleEndian.Uint64(rest))
	}
	var last [8]byte
	copy(last[:], rest)
	last[7] = byte(len(message))
	absorb(binary.LittleEndian.Uint64(last[:]))
	v[2] ^= 0xee
	for half := range t {
		sipRounds(&v, 4)
		t[half] = v[0] ^ v[1] ^ v[2] ^ v[3]
		v[1] ^= 0xdd
	}
	return t
}

func sipRounds(v *[4]uint64, n int) {
	for range n {
		v[0] += v[1]
		v[1] = bits.RotateLeft64(v[1], 13) ^ v[0]
		v[0] = bits.RotateLeft64(v[0], 32)
		v[2] += v[3]
		v[3] = bits.RotateLeft64(v[3], 16) ^ v[2]
		v[0] += v[3]
		v[3] = bits.RotateLeft64(v[3], 21) ^ v[0]
		v[2] += v[1]
		v[1] = bits.RotateLeft64(v[1], 17) ^ v[2]
		v[2] = bits.RotateLeft64(v[2], 32)
	}
}
