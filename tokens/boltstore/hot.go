package boltstore

import (
	"sync"

	"gatepost/tokens"
)

// hotLimit is how many sessions are kept in memory: some 5 MiB. The file's own pages are the system's to keep.
const hotLimit = 8192

// hot holds the sessions that were looked up lately, so that a look-up of one allocates nothing and touches no
// file. It holds what the file holds or less: whoever changes the file calls forget before telling anyone.
type hot struct {
	mu       sync.RWMutex
	sessions map[tokens.Hash]*tokens.Session // nil: closed
	gen      uint64                          // counts the changes
}

func newHot() *hot { return &hot{sessions: map[tokens.Hash]*tokens.Session{}} }

func (c *hot) get(h tokens.Hash) *tokens.Session {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.sessions[h]
}

// generation is to be taken before the file is read, and handed to add with what was read.
func (c *hot) generation() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.gen
}

// add keeps a session that was read, unless anything was ended since: the reading may be from before that.
func (c *hot) add(read uint64, s *tokens.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions == nil || c.gen != read {
		return
	}
	if len(c.sessions) >= hotLimit {
		c.thin()
	}
	c.sessions[s.Hash] = s
}

// thin makes room by dropping some, whichever come: one that is used comes back with its next use.
func (c *hot) thin() {
	drop := hotLimit / 16
	for h := range c.sessions {
		if drop--; drop < 0 {
			return
		}
		delete(c.sessions, h)
	}
}

// forget drops the tokens that open nothing any more.
func (c *hot) forget(ended []tokens.Hash) {
	if len(ended) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	for _, h := range ended {
		delete(c.sessions, h)
	}
}

func (c *hot) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions = nil
}
