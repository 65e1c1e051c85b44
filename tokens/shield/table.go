package shield

import (
	"net/netip"
	"sync"
	"time"
)

// table holds the counts of one gateway. It is bounded: if it is full, the entry with the lowest
// count of a random sample is evicted. So a flood of new keys does not evict keys with many
// failures.
type table struct {
	max int

	mu      sync.Mutex
	entries map[Key]*entry
}

type entry struct {
	clear    time.Time // all failures are forgiven then
	until    time.Time // no login is admitted before
	inFlight int       // admitted logins without an outcome
	queried  time.Time // the last query of Shared
	changes  int       // counts the changes here
	unshared bool      // Shared lacks some of its failures
	// address is the client address of the last login; zero in the table of users, whose names are not kept: what was
	// typed may be a password.
	address netip.Addr
}

// claim is the hold of one login on a key of a table. The zero claim counts nothing.
type claim struct {
	table *table
	key   Key
	limit Limit
	// address is the client address, if the key is that of one.
	address netip.Addr

	held    *entry // counts the login as in flight; may be evicted since
	changes int    // the entry's changes at the query of Shared
}

// evictionSample is the number of entries among which one is evicted.
const evictionSample = 16

func newTable(limit int) *table {
	return &table{max: limit, entries: make(map[Key]*entry)}
}

// take admits a login, or returns how long it has to wait. Logins in flight count as failures, so
// concurrent guesses gain nothing.
func (c *claim) take(now time.Time) time.Duration {
	if c.table == nil {
		return 0
	}
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	e := c.table.entry(c.key, now)
	if wait := e.until.Sub(now); wait > 0 {
		return wait
	}
	if room := c.limit.Failures + 1 - c.limit.failures(e.clear.Sub(now)); e.inFlight >= max(1, room) {
		return c.limit.Base
	}
	e.inFlight++
	c.held, e.address = e, c.address
	return 0
}

func (c *claim) release() {
	if c.held == nil {
		return
	}
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	c.held.inFlight--
	c.held = nil
}

// fail counts a failure.
func (t *table) fail(c *claim, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(c.key, now)
	e.changes++
	if e.clear.Before(now) {
		e.clear = now
	}
	e.clear = e.clear.Add(c.limit.Forgive)
	if wait := c.limit.wait(e.clear.Sub(now)); wait > 0 {
		e.until = now.Add(wait)
	}
}

// forget deletes the failures of a key and reports whether there were any.
func (t *table) forget(c *claim) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[c.key]
	if e == nil || e.clear.IsZero() {
		return false
	}
	e.changes++
	e.clear, e.until, e.unshared = time.Time{}, time.Time{}, false
	return true
}

// due reports whether Shared has to be queried about a key now. At most one caller per freshness
// gets true; the others use the known count.
func (t *table) due(c *claim, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(c.key, now)
	if now.Sub(e.queried) < freshness {
		return false
	}
	e.queried = now
	c.changes = e.changes
	return true
}

// replace sets the count from Shared. It only raises the count if this gateway knows of more
// failures: some that Shared lacks, or some since the query.
func (t *table) replace(c *claim, n Count, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(c.key, now)
	if e.unshared && e.clear.After(now) || e.changes != c.changes {
		e.raise(n, now)
		return
	}
	e.clear, e.until, e.unshared = time.Time{}, time.Time{}, false
	e.raise(n, now)
}

// raise raises the count to that of Shared.
func (t *table) raise(c *claim, n Count, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entry(c.key, now).raise(n, now)
}

func (e *entry) raise(n Count, now time.Time) {
	if forgiven := now.Add(n.Left); n.Left > 0 && forgiven.After(e.clear) {
		e.clear = forgiven
	}
	if until := now.Add(n.Wait); n.Wait > 0 && until.After(e.until) {
		e.until = until
	}
}

func (t *table) unshared(c *claim) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[c.key]; e != nil {
		e.unshared = true
	}
}

// entry returns the entry of a key and creates it if needed. The caller holds the lock.
func (t *table) entry(k Key, now time.Time) *entry {
	if e := t.entries[k]; e != nil {
		return e
	}
	if len(t.entries) >= t.max {
		t.makeRoom(now)
	}
	e := new(entry)
	t.entries[k] = e
	return e
}

// makeRoom evicts one entry. Iteration over a map starts at a random entry, so its first ones are a
// sample.
func (t *table) makeRoom(now time.Time) {
	var victim Key
	least, seen := time.Duration(-1), 0
	for k, e := range t.entries {
		against := max(e.clear.Sub(now), e.until.Sub(now), 0)
		if e.inFlight > 0 {
			against += time.Hour // its outcome must be recorded on its entry
		}
		if least < 0 || against < least {
			victim, least = k, against
		}
		if seen++; seen == evictionSample || least == 0 {
			break
		}
	}
	delete(t.entries, victim)
}

// failures returns the number of failures that are not forgiven yet, if all are forgiven after
// left.
func (l Limit) failures(left time.Duration) int {
	if left <= 0 {
		return 0
	}
	return int((left + l.Forgive - 1) / l.Forgive)
}

// wait returns how long a key has to wait after a failure, if all failures are forgiven after left.
func (l Limit) wait(left time.Duration) time.Duration {
	over := l.failures(left) - l.Failures
	if over <= 0 {
		return 0
	}
	wait := l.Base
	for range over - 1 {
		if wait *= 2; wait >= l.Cap {
			return l.Cap
		}
	}
	return min(wait, l.Cap)
}
