package redisstore

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"

	"github.com/redis/go-redis/v9"
)

// pipelines counts the pipelines of a client and can block them.
type pipelines struct {
	sent  atomic.Int64
	held  sync.RWMutex  // locked to block pipelines
	stuck chan struct{} // the first pipeline blocks until it is closed; nil: it does not
}

func (p *pipelines) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (p *pipelines) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (p *pipelines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if p.sent.Add(1) == 1 && p.stuck != nil {
			<-p.stuck
		}
		p.held.RLock()
		defer p.held.RUnlock()
		return next(ctx, cmds)
	}
}

// hold blocks further pipelines and resets the count.
func (p *pipelines) hold() {
	p.held.Lock()
	p.sent.Store(0)
}

// await waits until n pipelines have been sent or blocked.
func (p *pipelines) await(t *testing.T, n int64) {
	t.Helper()
	redistest.Eventually(t, "a pipeline", func() bool { return p.sent.Load() == n })
}

// counted opens a store and counts its pipelines.
func counted(t *testing.T) (*Store, *pipelines) {
	t.Helper()
	s := open(t, redistest.Start(t))
	sent := new(pipelines)
	s.client.AddHook(sent)
	s.logins.maxWait = time.Hour // on a busy machine a slow pipeline must not count as hanging
	return s, sent
}

// echo sends text to Redis and checks that the reply is the same text.
func echo(t *testing.T, s *Store, text string) {
	t.Helper()
	cmd := redis.NewCmd(t.Context(), "echo", text)
	if err := s.logins.process(t.Context(), cmd); err != nil || cmd.Val() != text {
		t.Errorf("echo %q: %v, %v", text, cmd.Val(), err)
	}
}

// waiting waits until n callers wait for the next pipeline.
func waiting(t *testing.T, s *Store, n int) {
	t.Helper()
	redistest.Eventually(t, strconv.Itoa(n)+" waiting callers", func() bool {
		s.logins.mu.Lock()
		defer s.logins.mu.Unlock()
		return len(s.logins.waiting) == n
	})
}

func TestConcurrentCommandsShareAPipeline(t *testing.T) {
	t.Parallel()
	s, sent := counted(t)
	echo(t, s, "alone")
	sent.hold()
	var wg sync.WaitGroup
	wg.Go(func() { echo(t, s, "first") })
	sent.await(t, 1)
	const others = batchSize + 10
	for i := range others {
		wg.Go(func() { echo(t, s, strconv.Itoa(i)) })
	}
	waiting(t, s, others)
	sent.held.Unlock()
	wg.Wait()
	if n := sent.sent.Load(); n != 3 { // one for the first command, two for the others
		t.Errorf("%d pipelines were sent", n)
	}
}

func TestHangingPipelineDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	s, sent := counted(t)
	s.logins.maxWait = time.Millisecond
	sent.stuck = make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { echo(t, s, "first") })
	sent.await(t, 1)
	for range 3 { // while one pipeline hangs
		echo(t, s, "later")
	}
	for range 3 { // concurrently too
		wg.Go(func() { echo(t, s, "together") })
	}
	redistest.Eventually(t, "all other commands to be sent", func() bool {
		s.logins.mu.Lock()
		defer s.logins.mu.Unlock()
		return len(s.logins.waiting) == 0 && s.logins.running == 1
	})
	close(sent.stuck)
	wg.Wait()
}

func TestCanceledLoginIsNotSent(t *testing.T) {
	t.Parallel()
	s, sent := counted(t)
	create(t, s, "ann")
	sent.hold()
	var wg sync.WaitGroup
	wg.Go(func() { create(t, s, "bob") })
	sent.await(t, 1)
	gone := storetest.New(t, "carl")
	ctx, hangUp := context.WithCancel(t.Context())
	wg.Go(func() {
		if err := s.Create(ctx, gone, 0); !errors.Is(err, tokens.ErrUnavailable) {
			t.Errorf("the canceled login: %v", err)
		}
	})
	waiting(t, s, 1)
	hangUp()
	sent.held.Unlock()
	wg.Wait()
	create(t, s, "dora") // sent after the waiting commands
	if _, err := s.Lookup(t.Context(), gone.Hash); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("its token: %v", err)
	}
	if list, err := s.Sessions(t.Context(), "carl"); len(list) != 0 || err != nil {
		t.Errorf("its session: %v, %v", list, err)
	}
}

func TestLoginReloadsLostScript(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	create(t, s, "ann")
	server.Do("SCRIPT", "FLUSH")
	assertWorks(t, s, create(t, s, "ann"))
	if n := server.Do("ZCARD", userKey("ann")); n != "2" {
		t.Errorf("%s sessions", n)
	}
}

func TestLoginIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	s, sent := counted(t)
	create(t, s, "ann")
	sent.sent.Store(0)
	for range 10 {
		create(t, s, "ann")
	}
	if n := sent.sent.Load(); n != 10 {
		t.Errorf("10 logins took %d round trips", n)
	}
}

// commands counts the single commands of a client.
type commands struct{ sent atomic.Int64 }

func (c *commands) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.sent.Add(1)
		return next(ctx, cmd)
	}
}
func (c *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestRevokeIsTwoRoundTripsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	s, sent := counted(t)
	alone := new(commands)
	s.client.AddHook(alone)
	if err := s.Revoke(t.Context(), create(t, s, "ann").Hash); err != nil { // loads the script
		t.Fatal(err)
	}
	session := create(t, s, "ann")
	if err := s.Touch(t.Context(), session.Principal(), time.Now(), "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	alone.sent.Store(0)
	sent.sent.Store(0)
	if err := s.Revoke(t.Context(), session.Hash); err != nil {
		t.Fatal(err)
	}
	if n, pipelines := alone.sent.Load(), sent.sent.Load(); n != 2 || pipelines != 0 {
		t.Errorf("a revoke took %d commands and %d pipelines", n, pipelines)
	}
	if keys, err := s.client.Keys(t.Context(), "gatepost:*").Result(); err != nil || len(keys) != 0 {
		t.Errorf("after the last session of the only user: %v, %v", keys, err)
	}
}
