// Package shield decides whether a login may be put to the user service now. It slows down whoever guesses
// passwords, by client address and by user name, and keeps a user service that is slow or down from being
// asked more than it can answer.
//
// Each gateway decides from its own memory, so a login that nothing is known against costs no round trip.
// Gateways tell each other of failed logins through a [Shared] place (Redis), which each asks about an address or
// a user at most once a second. Where that place is out of reach every gateway goes on counting by itself,
// and says so once in the log: guessing meets the same limits on each gateway, and nobody is locked out.
//
// A user name is counted whether or not there is such a user, so what the shield does tells nobody which
// names exist. Its price is that a stranger can make a user's logins wait, by up to [Limit.Cap] for each guess.
package shield

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"
)

// Settings says how much the shield lets pass. They may change from one login to the next.
type Settings struct {
	// Address limits the failed logins of one client address (of one /64 in IPv6, which one client owns).
	Address Limit
	// User limits the failed logins under one user name.
	User Limit
	// Concurrent is how many logins may be with the user service at once, from this gateway; 0: any number.
	Concurrent int
	// Breaker says when the user service is left alone.
	Breaker BreakerSettings
}

// Limit is an exponential limit of failures.
type Limit struct {
	// Failures is how many failures are let pass without a wait; 0: any number.
	Failures int
	// Forgive is how long it takes until one failure is forgiven.
	Forgive time.Duration
	// Base is the wait after the first failure above Failures; each further one doubles it.
	Base time.Duration
	// Cap is the longest wait.
	Cap time.Duration
}

// Config is what a Shield is made of.
type Config struct {
	// Shared is where gateways tell each other of failures; nil: this gateway is alone.
	Shared Shared
	// Logger hears when Shared is lost and found; nil: [slog.Default].
	Logger *slog.Logger
	// Now is the clock; nil: [time.Now].
	Now func() time.Time
	// Entries is how many addresses, and how many user names, are remembered; 0: 32768 of each, some 5 MB.
	Entries int
}

// Shared is where gateways tell each other of failures. A count that it returns is as old as the call.
type Shared interface {
	// Load returns the counts of keys, in their order.
	Load(ctx context.Context, keys []Key) ([]Count, error)
	// Fail adds a failure to a key under a limit, and returns what that makes of its count.
	Fail(ctx context.Context, key Key, limit Limit) (Count, error)
	// Forget forgets the failures of a key.
	Forget(ctx context.Context, key Key) error
}

// Count is what is held against a key. Both are spans of time from now, so that no two clocks are compared.
type Count struct {
	// Left is how long it takes until all its failures are forgiven: their number times [Limit.Forgive].
	Left time.Duration
	// Wait is how long it has to wait until the next login.
	Wait time.Duration
}

const (
	// freshness is how long a count that was read from Shared is gone by.
	freshness = time.Second
	// sharedTimeout bounds what a login waits for Shared, and sharedPause is how long Shared is left alone
	// after it failed, so that an outage does not cost each login the timeout.
	sharedTimeout = 250 * time.Millisecond
	sharedPause   = time.Second
)

// Refusal is the error of a login that may not go on now.
type Refusal struct {
	// Reason is why.
	Reason Reason
	// RetryAfter is when another try makes sense.
	RetryAfter time.Duration
}

// Reason is why a login may not go on.
type Reason string

// The reasons. Throttled is about the client (429), the others are about the user service (503).
const (
	Throttled Reason = "throttled"
	Busy      Reason = "busy"
	Broken    Reason = "broken"
)

func (r *Refusal) Error() string { return fmt.Sprintf("login %s for %s", r.Reason, r.RetryAfter) }

// Shield decides about logins. Its methods may be called at once from many goroutines.
type Shield struct {
	config           Config
	addresses, users *table
	breaker          breaker
	concurrent       atomic.Int64
	lostUntil        atomic.Int64 // Unix nanoseconds until which Shared is left alone; 0: it answers
}

// New returns a shield that holds nothing against anybody yet.
func New(c Config) *Shield {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Entries <= 0 {
		c.Entries = 32768
	}
	return &Shield{config: c, addresses: newTable(c.Entries), users: newTable(c.Entries)}
}

// Admit lets a login go on to the user service, or returns a *[Refusal]. Whoever gets a Pass must call its
// Done. The zero address and the empty user are not known and not counted.
func (s *Shield) Admit(ctx context.Context, set *Settings, address netip.Addr, user string) (*Pass, error) {
	p := &Pass{shield: s, settings: set}
	if address.IsValid() && set.Address.Failures > 0 {
		p.address = claim{table: s.addresses, key: AddressKey(address), limit: set.Address}
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
		p.address.giveBack()
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
	p.address.giveBack()
	p.user.giveBack()
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

// Pass is the leave to put one login to the user service.
type Pass struct {
	shield        *Shield
	settings      *Settings
	address, user claim
	probe, done   bool
}

// Done gives the pass back with what came of the login. Only the first call counts, so that a deferred
// Done(Unjudged) is the net under all other ways out.
func (p *Pass) Done(ctx context.Context, o Outcome) {
	if p.done {
		return
	}
	p.done = true
	s := p.shield
	s.concurrent.Add(-1)
	s.breaker.settle(p.settings.Breaker, s.config.Now(), o, p.probe)
	switch o {
	case Refused:
		s.fail(ctx, &p.address)
		s.fail(ctx, &p.user)
	case Opened:
		s.forget(ctx, &p.user) // and not the address's: who guesses may well have an account of his own
	}
	p.address.giveBack()
	p.user.giveBack()
}

// refresh brings counts up to date that were not asked for lately. What cannot be asked for stays as it is.
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
	s.ask(ctx, func(ctx context.Context) error {
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
	told := s.ask(ctx, func(ctx context.Context) error {
		count, err := s.config.Shared.Fail(ctx, c.key, c.limit)
		if err == nil {
			c.table.raise(c, count, s.config.Now())
		}
		return err
	})
	if !told {
		c.table.untold(c)
	}
}

func (s *Shield) forget(ctx context.Context, c *claim) {
	if c.table == nil || !c.table.forget(c) || s.config.Shared == nil {
		return // nothing was held against it, here or anywhere
	}
	s.ask(ctx, func(ctx context.Context) error { return s.config.Shared.Forget(ctx, c.key) })
}

// ask puts a question to Shared, bounded in time, and says whether it was answered.
func (s *Shield) ask(ctx context.Context, question func(context.Context) error) bool {
	now := s.config.Now().UnixNano()
	lost := s.lostUntil.Load()
	if lost > now {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sharedTimeout)
	defer cancel()
	if err := question(ctx); err != nil {
		if s.lostUntil.Swap(now+int64(sharedPause)) == 0 {
			s.config.Logger.LogAttrs(ctx, slog.LevelWarn,
				"failed logins cannot be shared with other gateways; this one goes on counting by itself",
				slog.Any("error", err))
		}
		return false
	}
	if lost != 0 && s.lostUntil.CompareAndSwap(lost, 0) {
		s.config.Logger.LogAttrs(ctx, slog.LevelInfo, "failed logins are shared with other gateways again")
	}
	return true
}
