package shield

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Held is an address or a user whose logins are refused until a time.
type Held struct {
	// Address is the address of the last login: the network of an IPv6 address is held. It is the zero Addr for a user.
	Address netip.Addr
	// Key is the key of the address or of the user. The names of users are not kept.
	Key Key
	// Until is when the next login is admitted.
	Until time.Time
	// Forgiven is when all failures are forgiven.
	Forgiven time.Time
}

// Held returns the addresses and the users that wait, as far as this gateway knows, those that wait longest first.
// There are at most max of each.
func (s *Shield) Held(most int) (addresses, users []Held) {
	now := s.config.Now()
	return s.addresses.held(now, most), s.users.held(now, most)
}

func (t *table) held(now time.Time, most int) (held []Held) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, e := range t.entries {
		if e.until.After(now) {
			held = append(held, Held{Address: e.address, Key: key, Until: e.until, Forgiven: e.clear})
		}
	}
	slices.SortFunc(held, func(a, b Held) int { return cmp.Or(b.Until.Compare(a.Until), slices.Compare(a.Key[:], b.Key[:])) })
	return held[:min(len(held), most)]
}

// Forgive deletes the failures of an address or of a user, here and in Shared. The error is that of Shared; then the
// other gateways still count them.
func (s *Shield) Forgive(ctx context.Context, key Key) error {
	for _, table := range []*table{s.addresses, s.users} {
		table.forget(&claim{table: table, key: key})
	}
	if s.config.Shared == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sharedTimeout)
	defer cancel()
	if err := s.config.Shared.Forget(ctx, key); err != nil {
		return fmt.Errorf("forgiving failed logins: %w", err)
	}
	return nil
}
