package cache

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redistest"
)

var chaos = flag.Duration("chaos", 8*time.Second, "the duration of the test under faults")

// patience is how much longer a busy machine may need until enough has happened.
const patience = 5 * time.Minute

// subject is one token of the test under faults.
type subject struct {
	session *tokens.Session
	// tried is set before the first revoke. ended is the time (Unix nanoseconds, by the test's
	// clock) at which a revoke first returned nil.
	tried atomic.Bool
	ended atomic.Int64
}

// history records all tokens of the test. One clock is enough, because all gateways share a
// process.
type history struct {
	mu       sync.Mutex
	subjects []*subject
	start    time.Time

	count, uses, hits, accepted, refused, revoked atomic.Int64

	// diverged is set while only some gateways may use a new master. The others may refuse tokens
	// that were minted there, which is allowed. All other checks stay.
	diverged atomic.Bool
}

func (h *history) now() int64 { return int64(time.Since(h.start)) + 1 }

func (h *history) add(s *subject) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subjects = append(h.subjects, s)
}

// any returns one of the newest tokens, or nil.
func (h *history) any() *subject {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.subjects) == 0 {
		return nil
	}
	latest := h.subjects[max(0, len(h.subjects)-50):]
	return latest[rand.N(len(latest))]
}

// use looks a token up and checks the answer.
func (h *history) use(t *testing.T, g *gateway, s *subject) {
	ctx, cancel := context.WithTimeout(t.Context(), rand.N(800*time.Millisecond))
	defer cancel()
	ended, tried, diverged := s.ended.Load(), s.tried.Load(), h.diverged.Load()
	if g.module != nil && g.module.hits(s.session) {
		h.uses.Add(1)
		h.hits.Add(1)
		if ended != 0 {
			t.Errorf("the module allowed a use that began %v after the revoke returned", time.Duration(h.now()-ended))
		}
		return
	}
	ticket := g.Ticket(s.session.Hash)
	got, err := g.Principal(ctx, s.session.Hash)
	h.uses.Add(1)
	switch {
	case err == nil:
		h.accepted.Add(1)
		if !got.Has(s.session.Hash) || got.User() != s.session.User {
			t.Errorf("the token of %s returned the session of %s", s.session.User, got.User())
		}
		if ended != 0 {
			t.Errorf("a use that began %v after the revoke returned was accepted", time.Duration(h.now()-ended))
		}
		g.Grant(ticket, entryOf(s.session))
	case errors.Is(err, tokens.ErrUnknown):
		h.refused.Add(1)
		if !tried && !s.tried.Load() && !diverged {
			t.Errorf("a live token is unknown")
		}
	case !errors.Is(err, tokens.ErrUnavailable):
		t.Errorf("looking up: %v", err)
	}
}

func (h *history) revoke(t *testing.T, g *gateway, s *subject) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	s.tried.Store(true)
	var err error
	switch rand.N(4) {
	case 0:
		err = g.RevokeSession(ctx, s.session.User, s.session.ID)
	case 1:
		_, err = g.RevokeUser(ctx, s.session.User)
	default:
		err = g.Revoke(ctx, s.session.Hash)
	}
	if err == nil {
		s.ended.CompareAndSwap(0, h.now())
		h.revoked.Add(1)
	} else if !errors.Is(err, tokens.ErrUnavailable) && !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("revoking: %v", err)
	}
}

// Two gateways on one Redis, with all kinds of faults in random order. The recorded uses and
// revokes show whether an accepted use began after a revoke returned.
func TestRevokesHoldUnderFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("random faults take seconds: run without -short")
	}
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	var proxies []*faultproxy.Proxy
	var gateways []*gateway
	for range 2 {
		data, tracking := faultproxy.Start(t, server.Addr), faultproxy.Start(t, server.Addr)
		proxies = append(proxies, data, tracking)
		module := startModule(t)
		g := openStore(t, storeOn(t, realConn(t, "redis://"+data.Addr)), client(t, tracking.Addr), Config{Table: module.table}, RedisConfig{})
		g.module = module
		g.awaitHeld()
		gateways = append(gateways, g)
	}

	h := &history{start: time.Now()}
	over, end := context.WithCancel(t.Context())
	defer end()
	wait := h.traffic(t, over, gateways)
	for h.goesOn(t, func() bool { return h.covered() && h.hits.Load() >= 100 }) {
		fault(over, server, proxies[rand.N(len(proxies))])
	}
	end()
	wait()
	h.log(t)
	for _, g := range gateways {
		g.awaitHeld()
	}
}

// traffic starts clients at all gateways that run until over is done. wait waits for their end.
func (h *history) traffic(t *testing.T, over context.Context, gateways []*gateway) (wait func()) {
	var all sync.WaitGroup
	these := func(n int, do func(g *gateway)) {
		for i := range n {
			all.Go(func() {
				for over.Err() == nil {
					do(gateways[i%len(gateways)])
				}
			})
		}
	}
	these(2, func(g *gateway) { // logins
		s := &subject{session: session(fmt.Sprint("user", h.count.Add(1)))}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if g.Create(ctx, s.session, 0) == nil {
			h.add(s)
		}
		time.Sleep(rand.N(20 * time.Millisecond))
	})
	these(12, func(g *gateway) { // users
		if s := h.any(); s != nil {
			h.use(t, g, s)
		}
		time.Sleep(rand.N(6 * time.Millisecond))
	})
	these(4, func(g *gateway) { // logouts
		if s := h.any(); s != nil {
			h.revoke(t, g, s)
		}
		time.Sleep(rand.N(50 * time.Millisecond))
	})
	return all.Wait
}

// goesOn reports whether there must be more faults. A busy machine may need longer than chaos until there are enough.
func (h *history) goesOn(t *testing.T, enough func() bool) bool {
	t.Helper()
	switch lasted := time.Since(h.start); {
	case lasted < *chaos:
		return true
	case enough():
		return false
	case lasted < *chaos+patience:
		return true
	}
	t.Error("too little has happened for a result")
	return false
}

// covered reports whether there was enough for a result.
func (h *history) covered() bool {
	return h.accepted.Load() > 0 && h.refused.Load() > 0 && h.revoked.Load() > 0
}

func (h *history) log(t *testing.T) {
	t.Helper()
	t.Logf("%d uses: %d accepted, %d refused, %d hits of the module; %d revokes",
		h.uses.Load(), h.accepted.Load(), h.refused.Load(), h.hits.Load(), h.revoked.Load())
}

// fault injects one fault into Redis or a connection to it, and returns after a short pause.
func fault(over context.Context, server *redistest.Server, p *faultproxy.Proxy) {
	const longest = 1500 * time.Millisecond
	direction := faultproxy.Direction(rand.N(2))
	switch rand.N(9) {
	case 0:
		server.Freeze()
		_ = sleep(over, rand.N(longest))
		server.Thaw()
	case 1:
		server.Kill()
		_ = sleep(over, rand.N(longest/3))
		server.Restart()
	case 2:
		p.Cut()
	case 3:
		p.Refuse()
		p.Cut()
		_ = sleep(over, rand.N(longest))
	case 4:
		p.Swallow(direction)
		_ = sleep(over, rand.N(longest))
	case 5, 6:
		p.Hold(direction)
		_ = sleep(over, rand.N(longest))
	case 7, 8:
		p.Delay(direction, rand.N(longest))
		_ = sleep(over, rand.N(longest))
	}
	p.Heal()
	_ = sleep(over, rand.N(300*time.Millisecond))
}
