package shield

import (
	"sync"
	"time"
)

// table is what one gateway holds against keys. It is bounded: where it is full, of a few entries picked at
// random the one with the least against it makes way, so a flood of new keys does not wash out those that count.
type table struct {
	max int

	mu      sync.Mutex
	entries map[Key]*entry
}

type entry struct {
	clear    time.Time // when all its failures are forgiven
	until    time.Time // before this no login goes on
	inFlight int       // logins that went on and have not come back
	asked    time.Time // when Shared was last asked about it
	changes  int       // how often it was changed here
	untold   bool      // some of its failures never reached Shared
}

// claim is one login's hold on one key of a table. The zero claim counts nothing.
type claim struct {
	table *table
	key   Key
	limit Limit

	held    *entry // on which the login counts as in flight; it may have made way since
	changes int    // the entry's changes when Shared was asked
}

// evictionSample is how many entries are looked at for the one that makes way.
const evictionSample = 16

func newTable(limit int) *table {
	return &table{max: limit, entries: make(map[Key]*entry)}
}

// take lets a login go on, or returns how long it has to wait. Logins that are in flight count as if they had
// failed, so guessing many at once gains nothing.
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
	c.held = e
	return 0
}

func (c *claim) giveBack() {
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

// forget takes back all that is held against a key, and says whether anything was.
func (t *table) forget(c *claim) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[c.key]
	if e == nil || e.clear.IsZero() {
		return false
	}
	e.changes++
	e.clear, e.until, e.untold = time.Time{}, time.Time{}, false
	return true
}

// due says whether Shared is to be asked about a key now. It says so once in a while: whoever else comes in
// the meantime goes by what is known.
func (t *table) due(c *claim, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(c.key, now)
	if now.Sub(e.asked) < freshness {
		return false
	}
	e.asked = now
	c.changes = e.changes
	return true
}

// replace takes over what Shared knows, save where more is known here: failures that never reached Shared, or
// one that came while it was being asked.
func (t *table) replace(c *claim, n Count, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entry(c.key, now)
	if e.untold && e.clear.After(now) || e.changes != c.changes {
		e.raise(n, now)
		return
	}
	e.clear, e.until, e.untold = time.Time{}, time.Time{}, false
	e.raise(n, now)
}

// raise takes over what Shared knows where it is more.
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

func (t *table) untold(c *claim) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[c.key]; e != nil {
		e.untold = true
	}
}

// entry returns the entry of a key, made where there is none. The lock is held.
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

// makeRoom drops one entry. A map is walked from a random place, which makes its first few a sample.
func (t *table) makeRoom(now time.Time) {
	var victim Key
	least, seen := time.Duration(-1), 0
	for k, e := range t.entries {
		against := max(e.clear.Sub(now), e.until.Sub(now), 0)
		if e.inFlight > 0 {
			against += time.Hour // a login in flight is settled on its entry
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

// failures is how many failures are not forgiven yet, of a count that is clear in left.
func (l Limit) failures(left time.Duration) int {
	if left <= 0 {
		return 0
	}
	return int((left + l.Forgive - 1) / l.Forgive)
}

// wait is how long a key has to wait after the failure that made its count clear in left.
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
