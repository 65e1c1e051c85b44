// Package table decides which requests the module in Envoy may answer by itself. It writes
// decisions into a table in shared memory and removes them before a revoke returns. It also reads
// how many requests the module has allowed. The layout and the reader's half of the protocol are in
// envoy/module (table.h and module.c).
//
// # Memory ordering
//
// The readers are in another process, so the Go memory model does not cover them; the instructions
// that the compiler emits do. Every word of the file is written by a store of sync/atomic. Such a
// store is one sequentially consistent instruction on a naturally aligned word: XCHG on amd64, STLR
// (store-release) on arm64. So the compiler neither merges, splits nor moves stores, and a reader
// that sees a store sees all earlier stores in program order. Cache coherence works on physical
// memory, so two mappings of one page behave as one. A reader loads the sequence, the words and the
// sequence again, with the fences that table.h requires. It sees a torn write as an odd or a
// changed sequence. The only reader in Go is the writer, under its lock, so the race detector has
// nothing to report.
//
// An invalidation is complete when Drop or Reset returns: the stores have been executed, and the
// next load by any CPU sees them.
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

// Decisions is the capacity of a table of the default size: 15 MiB. Of 100,000 concurrent
// decisions, 98 % have a slot; for the others Envoy calls Gatepost.
const Decisions = 160 << 10

// Entry is one decision: an allowed request, and how Envoy handles the same request.
type Entry struct {
	// Rule identifies the rule by its content, so a changed rule never finds an older decision.
	Rule [ruleBytes]byte
	// Inputs are the values of Authorization, Origin, Cookie and Sec-WebSocket-Protocol. A value is
	// empty if the rule does not use the header.
	Inputs [inputs]string
	// Token is the hash of the request's token: the decision ends when Drop is called with it.
	Token tokens.Hash
	// User is the user's id, as sent to the upstream.
	User string
	// Session is the public id of the session, for the access log; zeros if it is not known. A slot
	// has no room for it if the user's id is longer than 39 bytes.
	Session [16]byte
	// Expires is when the token expires.
	Expires time.Time
}

// Ticket is the state before a token was looked up: the epoch of the table, and for the cache the
// generation of the token's shard. A resulting decision is written only if neither has changed.
type Ticket struct{ Epoch, Generation uint64 }

// Table is a table of decisions. A nil Table ignores all calls. Its methods are safe for concurrent
// use.
type Table struct {
	mu    sync.Mutex
	words mapping // nil: closed
	hits  *os.File
	key   [2]uint64
	epoch uint64
	now   func() Instant
	byToken
}

// Create creates a table of the given capacity in a file at path, replacing any other. No decision
// is valid until Extend is called. now reads the clocks; nil: Now.
func Create(path string, decisions int, now func() Instant) (*Table, error) {
	if now == nil {
		now = Now
	}
	buckets := min(max(1, decisions/bucketSlots), maxBuckets)
	hits, err := createHits(path + ".hits") // first, because a reader of a new table opens it
	if err != nil {
		return nil, err
	}
	words, publish, err := createFile(path, headerWords+buckets*bucketSlots*slotWords)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("creating the table of decisions at %s: %w", path, err), hits.Close())
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

// Close ends every decision and frees the memory. The files stay, because a reader may have them
// open.
func (t *Table) Close() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset(0)
	words := t.words
	t.words = nil
	if words == nil {
		return nil
	}
	return errors.Join(words.unmap(), t.hits.Close())
}

func (t *Table) store(at int, value uint64) { atomic.StoreUint64(&t.words[at], value) }

// guarded calls write while the sequence at a word is odd, and then makes it even. The caller holds
// the lock.
func (t *Table) guarded(seq int, write func()) {
	before := t.words[seq]
	t.store(seq, before+1)
	write()
	t.store(seq, before+2)
}

// Extend makes the decisions in the table valid until then.
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

// Reset ends every decision, and begins the epoch if it is newer. Decisions are used again after
// the next Extend. Reset need not clear the slots: under the new key no older decision is found.
func (t *Table) Reset(epoch uint64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset(epoch)
}

// reset is Reset. The caller holds the lock.
func (t *Table) reset(epoch uint64) {
	if t.words == nil {
		return
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails (crypto/rand)
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

// Drop ends the decisions about a token. After it returns, no reader finds them.
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
		t.write(slot, tag{}, 0, 0, nil)
	}
	t.remove(h)
}

// Put writes a decision. If its bucket is full, Put replaces the decision that ends first. Put does
// nothing if another epoch has begun, or if the entry does not fit into a slot or a reader's
// buffer.
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
	t.write(slot, is, uint64(e.Expires.UnixNano()), uint64(now+is.lifetime()), e)
	t.link(slot, e.Token)
}

// message returns the input of the tag; see table.h.
func (e *Entry) message(b []byte) []byte {
	b = append(b, e.Rule[:]...)
	for _, value := range e.Inputs {
		b = append(binary.LittleEndian.AppendUint16(b, uint16(len(value))), value...)
		if len(b) > maxMessage { // before a length exceeds 16 bits
			break
		}
	}
	return b
}

// A decision is used for MinLifetime to MaxLifetime. Then Envoy calls Gatepost again, so Gatepost
// learns within a minute that a session is in use.
const (
	MinLifetime = 45 * time.Second
	MaxLifetime = time.Minute
)

// lifetime returns how long a decision is used. It varies, so decisions written together do not
// expire together.
func (is tag) lifetime() time.Duration {
	return MaxLifetime - time.Duration(is[1]%uint64(MaxLifetime-MinLifetime))
}

// choose returns the slot for a tag: the slot that has it, else the slot that ends first (an empty
// one has ended). The caller holds the lock.
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

// end returns when the decision in a slot ends; 0 if there is none.
func (t *Table) end(slot int) uint64 {
	if !t.linked(slot) {
		return 0
	}
	return t.words[t.place(slot)+slotUntil]
}

func (t *Table) place(slot int) int { return headerWords + slot*slotWords }

// write fills a slot, with zeros for a nil entry. The caller holds the lock.
func (t *Table) write(slot int, is tag, expires, until uint64, e *Entry) {
	var text [1 + userBytes]byte
	if e != nil {
		text[0] = byte(copy(text[1:], e.User))
		if len(e.User) <= userWithSession {
			session := text[8*(slotSession-slotUser):]
			binary.NativeEndian.PutUint64(session, binary.BigEndian.Uint64(e.Session[:8]))
			binary.NativeEndian.PutUint64(session[8:], binary.BigEndian.Uint64(e.Session[8:]))
		}
	}
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
