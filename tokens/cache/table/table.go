// Package table decides what the module in Envoy may answer by itself: it writes decisions into a table in shared memory, and
// takes them out before a revoke is answered; and it reads how many requests the module has let pass. The layout and the reader's half of the protocol are in envoy/module (table.h
// and module.c).
//
// # Memory ordering
//
// The readers are in another process, so the Go memory model says nothing about them; what counts is what the compiler emits.
// Every word of the file is written by a store of sync/atomic. Those are single instructions on naturally aligned words, and
// sequentially consistent: XCHG on amd64, STLR (store-release) on arm64. So the compiler neither merges, splits nor moves
// them, and a reader that sees a store sees all stores before it in program order. The cache coherence of the machine does not know
// processes: two mappings of one page are one memory. A reader that loads the sequence, the words and the sequence again, with the fences
// that table.h asks for, therefore sees a torn write as an odd or a changed sequence. A Go program could not read
// the table in this way under the race detector's rules without atomics; the only reader in Go is the writer, under its lock.
//
// An invalidation is complete when Drop or Reset returns: the stores have been executed, and the next load by any CPU sees them.
package table

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gatepost/tokens"
)

// Decisions is how many decisions a table of the default size has room for: 15 MiB. Of 100,000 decisions at once,
// 98 in 100 have a place; the others are asked about.
const Decisions = 160 << 10

// Entry is one decision: the request that was allowed, and what Envoy is to do with the same request.
type Entry struct {
	// Rule identifies the rule by its content, so a changed rule never finds an older decision.
	Rule [ruleBytes]byte
	// Inputs are the values of Authorization, Origin, Cookie and Sec-WebSocket-Protocol; empty if the rule does not use the header.
	Inputs [inputs]string
	// Token is the hash of the request's token: the decision ends when Drop is called with it.
	Token tokens.Hash
	// User is the user's id, as the upstream receives it.
	User string
	// Expires is when the token expires.
	Expires time.Time
}

// Ticket says what was known before a token was looked up: the epoch of the table, and for the cache the generation of the
// token's shard. A decision that follows from the look-up is written only if neither has changed.
type Ticket struct{ Epoch, Generation uint64 }

// Table is a table of decisions. A nil Table is one that takes nothing. Its methods may be called from many goroutines at once.
type Table struct {
	mu    sync.Mutex
	words mapping // nil: closed
	hits  *os.File
	key   [2]uint64
	epoch uint64
	now   func() Instant
	byToken
}

// Create makes a table with room for so many decisions in a file at path, in the place of what is there. No decision is in force
// until Extend is called. now reads the clocks; nil: Now.
func Create(path string, decisions int, now func() Instant) (*Table, error) {
	if now == nil {
		now = Now
	}
	buckets := min(max(1, decisions/bucketSlots), maxBuckets)
	words, publish, err := createFile(path, headerWords+buckets*bucketSlots*slotWords)
	if err != nil {
		return nil, fmt.Errorf("creating the table of decisions at %s: %w", path, err)
	}
	hits, err := createHits(path + ".hits") // before the table: a reader that finds a new table looks for it
	if err != nil {
		return nil, errors.Join(err, words.unmap())
	}
	t := &Table{words: words, hits: hits, now: now, byToken: newByToken(buckets * bucketSlots)}
	t.store(headerMagic, magic)
	t.store(headerBuckets, uint64(buckets))
	t.Reset(0)
	if err := publish(); err != nil {
		return nil, errors.Join(fmt.Errorf("creating the table of decisions: %w", err), words.unmap(), hits.Close())
	}
	return t, nil
}

// Close ends every decision and gives the memory back. The files stay: a reader may have them open.
func (t *Table) Close() error {
	if t == nil {
		return nil
	}
	t.Reset(t.epoch)
	t.mu.Lock()
	defer t.mu.Unlock()
	words := t.words
	t.words = nil
	if words == nil {
		return nil
	}
	return errors.Join(words.unmap(), t.hits.Close())
}

func (t *Table) store(at int, value uint64) { atomic.StoreUint64(&t.words[at], value) }

// guarded calls write between making the sequence at a place odd and making it even again. The lock is held.
func (t *Table) guarded(seq int, write func()) {
	before := t.words[seq]
	t.store(seq, before+1)
	write()
	t.store(seq, before+2)
}

// Extend has the decisions in the table be used until then, and no longer.
func (t *Table) Extend(until Instant) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.words == nil {
		return
	}
	t.guarded(headerSeq, func() {
		t.store(headerUntilBoot, uint64(until.Boot))
		t.store(headerUntilWall, uint64(until.Wall.UnixNano()))
	})
}

// Reset ends every decision, and begins an epoch unless it has begun already. The next decision is used after the next Extend.
// The decisions need not be looked at: under the new key none is found.
func (t *Table) Reset(epoch uint64) {
	if t == nil {
		return
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails (crypto/rand)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.words == nil {
		return
	}
	t.epoch = max(t.epoch, epoch)
	t.key = [2]uint64{binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])}
	t.clear()
	t.guarded(headerSeq, func() {
		t.store(headerKey0, t.key[0])
		t.store(headerKey1, t.key[1])
		t.store(headerUntilBoot, 0)
		t.store(headerUntilWall, 0)
	})
}

// Drop ends the decisions about a token. When it returns, no reader finds them any more.
func (t *Table) Drop(h tokens.Hash) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.words == nil {
		return
	}
	for slot := range t.of(h) {
		t.write(slot, tag{}, 0, 0, "")
	}
	t.remove(h)
}

// Put writes a decision, over the one that ends first if its bucket is full. It does nothing if another epoch has begun, or if
// no slot or reader can take the entry.
func (t *Table) Put(epoch uint64, e *Entry) {
	if t == nil || e.User == "" || len(e.User) > userBytes || e.Inputs[0] == "" {
		return
	}
	var room [512]byte
	message := e.message(room[:0])
	if len(message) > maxMessage {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.words == nil || epoch != t.epoch {
		return
	}
	is := siphash(t.key, message)
	now := t.now().Boot
	slot := t.choose(is, uint64(now))
	t.unlink(slot)
	t.write(slot, is, uint64(e.Expires.UnixNano()), uint64(now+is.lifetime()), e.User)
	t.link(slot, e.Token)
}

// message is what the tag is computed from; see table.h.
func (e *Entry) message(b []byte) []byte {
	b = append(b, e.Rule[:]...)
	for _, value := range e.Inputs {
		b = append(binary.LittleEndian.AppendUint16(b, uint16(len(value))), value...)
		if len(b) > maxMessage { // before a length of more than 16 bits
			break
		}
	}
	return b
}

// A decision is used for MinLifetime to MaxLifetime before Gatepost is asked again, so that it learns within a minute that a session
// is in use.
const (
	MinLifetime = 45 * time.Second
	MaxLifetime = time.Minute
)

// lifetime is how long a decision is used. Decisions that were written together do not all end together.
func (is tag) lifetime() time.Duration {
	return MaxLifetime - time.Duration(is[1]%uint64(MaxLifetime-MinLifetime))
}

// choose returns the slot for a tag: the one that has it, else the one that ends first; an empty one has ended. The lock is held.
func (t *Table) choose(is tag, now uint64) (best int) {
	buckets := uint64(len(t.owner) / bucketSlots)
	first := int(is[0] >> 32 * buckets >> 32 * bucketSlots)
	best = first
	for slot := first; slot < first+bucketSlots; slot++ {
		at := t.place(slot)
		if t.words[at+slotTag0] == is[0] && t.words[at+slotTag1] == is[1] {
			return slot
		}
		if t.end(slot) < t.end(best) {
			best = slot
		}
	}
	return best
}

// end returns when the decision in a slot ends; 0 if none is in force there.
func (t *Table) end(slot int) uint64 {
	if !t.linked(slot) {
		return 0
	}
	return t.words[t.place(slot)+slotUntil]
}

func (t *Table) place(slot int) int { return headerWords + slot*slotWords }

// write fills a slot. The lock is held.
func (t *Table) write(slot int, is tag, expires, until uint64, user string) {
	var text [1 + userBytes]byte
	text[0] = byte(copy(text[1:], user))
	at := t.place(slot)
	t.guarded(at+slotSeq, func() {
		t.store(at+slotTag0, is[0])
		t.store(at+slotTag1, is[1])
		t.store(at+slotExpires, expires)
		t.store(at+slotUntil, until)
		for i := 0; i < len(text); i += 8 {
			t.store(at+slotUser+i/8, binary.NativeEndian.Uint64(text[i:]))
		}
	})
}
