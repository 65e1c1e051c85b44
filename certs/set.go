package certs

import (
	"bytes"
	"maps"
	"sync"
)

// Set has the certificates and CAs that were accepted last, by names that only Gatepost and Envoy use. What was put
// into it stays, so that a version of the configuration that is served again finds what it names. It is safe for
// concurrent use.
type Set struct {
	onChange func()

	mu    sync.Mutex
	pairs map[string]Pair
	roots map[string]Roots
}

// NewSet returns an empty set. onChange is called after each change, without a lock, and may call the set.
func NewSet(onChange func()) *Set {
	return &Set{onChange: onChange, pairs: map[string]Pair{}, roots: map[string]Roots{}}
}

// Put adds a certificate, or replaces the one with this name.
func (s *Set) Put(name string, p Pair) {
	s.mu.Lock()
	former, there := s.pairs[name]
	s.pairs[name] = p
	s.mu.Unlock()
	if !there || !bytes.Equal(former.Chain, p.Chain) || !bytes.Equal(former.Key.text, p.Key.text) {
		s.onChange()
	}
}

// PutRoots adds CAs, or replaces those with this name.
func (s *Set) PutRoots(name string, r Roots) {
	s.mu.Lock()
	former, there := s.roots[name]
	s.roots[name] = r
	s.mu.Unlock()
	if !there || !bytes.Equal(former.PEM, r.PEM) {
		s.onChange()
	}
}

// Pair returns the certificate with a name.
func (s *Set) Pair(name string) (p Pair, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok = s.pairs[name]
	return p, ok
}

// Roots returns the CAs with a name.
func (s *Set) Roots(name string) (r Roots, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok = s.roots[name]
	return r, ok
}

// All returns every certificate by its name, and every list of CAs by its own.
func (s *Set) All() (map[string]Pair, map[string]Roots) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.pairs), maps.Clone(s.roots)
}
