// Package shield decides whether a login may be sent to the user service now. It slows down
// password guessing, by client address and by user name, and protects a slow or failing user
// service from load.
//
// Each gateway decides from its own memory, so a login without earlier failures costs no round
// trip. Gateways share failed logins through a [Shared] store (Redis). Each gateway queries it at
// most once a second per address or user. If the store is unavailable, each gateway counts on its
// own and logs that once. Guessing then meets the same limits on each gateway, and no user is
// locked out.
//
// Unknown user names are counted too, so the shield does not reveal which names exist. As a
// consequence, a stranger can delay a user's logins, by up to [Limit.Cap] per guess.
package shield

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"gatepost/redisconn"
)

// Settings configures the limits. They may change from one login to the next.
type Settings struct {
	// Address limits the failed logins of one client address (of one /64 in IPv6, which one client
	// owns).
	Address Limit
	// User limits the failed logins under one user name.
	User Limit
	// Concurrent is the maximum number of concurrent logins at the user service, from this gateway;
	// 0: no limit.
	Concurrent int
	// Breaker configures the circuit breaker of the user service.
	Breaker BreakerSettings
}

// Limit is an exponential backoff of failures.
type Limit struct {
	// Failures is the number of failures without a wait; 0: no limit.
	Failures int
	// Forgive is the time after which one failure is forgiven.
	Forgive time.Duration
	// Base is the wait after the first failure above Failures. Each further failure doubles it.
	Base time.Duration
	// Cap is the longest wait.
	Cap time.Duration
}

// Config configures a Shield.
type Config struct {
	// Shared stores the failures of all gateways; nil: there is only this gateway.
	Shared Shared
	// Logger logs when Shared becomes unavailable and available. Nil: nothing is logged.
	Logger *slog.Logger
	// Now is the clock. Nil: [time.Now].
	Now func() time.Time
	// Entries is the maximum number of addresses, and of user names; 0: 32768 of each, about 5 MB.
	Entries int
}

// Shared stores the failures of all gateways. A returned count is valid at the time of the call.
type Shared interface {
	// Load returns the counts of keys, in their order.
	Load(ctx context.Context, keys []Key) ([]Count, error)
	// Fail adds a failure to a key under a limit and returns the new count.
	Fail(ctx context.Context, key Key, limit Limit) (Count, error)
	// Forget deletes the failures of a key.
	Forget(ctx context.Context, key Key) error
}

// Count is the count of a key. Both fields are durations from now, so clocks are not compared.
type Count struct {
	// Left is the time until all failures are forgiven: their number times [Limit.Forgive].
	Left time.Duration
	// Wait is the time until the next login is allowed.
	Wait time.Duration
}

const (
	// freshness is how long a count read from Shared is used.
	freshness = time.Second
	// sharedTimeout bounds a call of Shared.
	sharedTimeout = 250 * time.Millisecond
)

// Refusal is the error of a login that is refused now.
type Refusal struct {
	// Reason is the reason.
	Reason Reason
	// RetryAfter is the time until another attempt may succeed.
	RetryAfter time.Duration
}

// Reason is the reason of a Refusal.
type Reason string

// The reasons. Throttled concerns the client (429), the others the user service (503).
const (
	Throttled Reason = "throttled"
	Busy      Reason = "busy"
	Broken    Reason = "broken"
)

func (r *Refusal) Error() string { return fmt.Sprintf("login %s for %s", r.Reason, r.RetryAfter) }

// Shield decides about logins. Its methods are safe for concurrent use.
type Shield struct {
	config           Config
	addresses, users *table
	breaker          breaker
	concurrent       atomic.Int64
	// shared is the circuit breaker of Shared.
	shared redisconn.Guard
}

// New returns a shield without any failures.
func New(c Config) (*Shield, error) {
	if c.Entries < 0 {
		return nil, fmt.Errorf("shield: Entries is %d", c.Entries)
	}
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Entries == 0 {
		c.Entries = 32768
	}
	return &Shield{
		config: c, addresses: newTable(c.Entries), users: newTable(c.Entries),
		shared: redisconn.Guard{
			Timeout: sharedTimeout, Logger: c.Logger, Now: c.Now,
			Lost: "failed logins cannot be shared with other gateways; this one goes on counting by itself",
			Back: "failed logins are shared with other gateways again",
		},
	}, nil
}

// Admit admits a login, or returns a *[Refusal]. The caller must call Done of the returned Pass.
// The zero address and the empty user are unknown and not counted.
func (s *Shield) Admit(ctx context.Context, set *Settings, address netip.Addr, user string) (*Pass, error) {
	p := &Pass{shield: s, settings: set}
	if address.IsValid() && set.Address.Failures > 0 {
		p.address = claim{table: s.addresses, key: AddressKey(address), limit: set.Address, address: address}
	}
	if user != "" && set.User.Failures > 0 {
		p.user = claim{table: s.users, key: UserKey(user), limit: set.User}
	}
	s.refresh(ctx, &p.address, &p.user)

	now := s.config.Now()
	if wait := p.address.take(now); wait > 0 {
		return nil, &Refusal{Throttled, wait}
	}
	if wait := p.user.take(now); wait > 0 {
		p.address.release()
		return nil, &Refusal{Throttled, wait}
	}
	if n := s.concurrent.Add(1); set.Concurrent > 0 && n > int64(set.Concurrent) {
		s.abandon(p)
		return nil, &Refusal{Busy, time.Second}
	}
	wait, probe := s.breaker.admit(set.Breaker, now)
	if wait > 0 {
		s.abandon(p)
		return nil, &Refusal{Broken, wait}
	}
	p.probe = probe
	return p, nil
}

func (s *Shield) abandon(p *Pass) {
	s.concurrent.Add(-1)
	p.address.release()
	p.user.release()
}

// Outcome is the result of an admitted login.
type Outcome int

const (
	// Unjudged means that the user service did not decide, for a reason on our side.
	Unjudged Outcome = iota
	// Opened means that the user service accepted the user and the password.
	Opened
	// Refused means that the user service rejected the login.
	Refused
	// Unanswered means that the user service was down, too slow, or reported an error of its own.
	Unanswered
)

// Pass is the permission to send one login to the user service.
type Pass struct {
	shield        *Shield
	settings      *Settings
	address, user claim
	probe, done   bool
}

// Done returns the pass with the outcome of the login. Only the first call counts, so a deferred
// Done(Unjudged) covers all other returns.
func (p *Pass) Done(ctx context.Context, o Outcome) {
	if p.done {
		return
	}
	p.done = true
	s := p.shield
	s.concurrent.Add(-1)
	s.breaker.record(p.settings.Breaker, s.config.Now(), o, p.probe)
	switch o {
	case Refused:
		s.fail(ctx, &p.address)
		s.fail(ctx, &p.user)
	case Opened:
		s.forget(ctx, &p.user) // not the address's: an attacker may also have an account
	}
	p.address.release()
	p.user.release()
}

// refresh loads counts that were not queried lately from Shared. If it fails, they stay unchanged.
func (s *Shield) refresh(ctx context.Context, claims ...*claim) {
	if s.config.Shared == nil {
		return
	}
	now := s.config.Now()
	var stale [2]*claim
	n := 0
	for _, c := range claims {
		if c.table != nil && c.table.due(c, now) {
			stale[n] = c
			n++
		}
	}
	if n == 0 {
		return
	}
	keys := make([]Key, n)
	for i, c := range stale[:n] {
		keys[i] = c.key
	}
	_ = s.shared.Call(ctx, func(ctx context.Context) error {
		counts, err := s.config.Shared.Load(ctx, keys)
		if err != nil {
			return err
		}
		for i, c := range stale[:n] {
			c.table.replace(c, counts[i], s.config.Now())
		}
		return nil
	})
}

func (s *Shield) fail(ctx context.Context, c *claim) {
	if c.table == nil {
		return
	}
	c.table.fail(c, s.config.Now())
	if s.config.Shared == nil {
		return
	}
	err := s.shared.Call(ctx, func(ctx context.Context) error {
		count, err := s.config.Shared.Fail(ctx, c.key, c.limit)
		if err == nil {
			c.table.raise(c, count, s.config.Now())
		}
		return err
	})
	if err != nil {
		c.table.unshared(c)
	}
}

func (s *Shield) forget(ctx context.Context, c *claim) {
	if c.table == nil || !c.table.forget(c) || s.config.Shared == nil {
		return // there are no failures, here or in Shared
	}
	_ = s.shared.Call(ctx, func(ctx context.Context) error { return s.config.Shared.Forget(ctx, c.key) })
}
