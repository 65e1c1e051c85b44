package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"gatepost/tokens"
	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"
)

// offer returns a successor of a session's token.
func offer(t testing.TB, old *tokens.Session) tokens.Successor {
	return storetest.Successor(old.Renewed(storetest.NewHash(t), time.Now(), time.Hour))
}

// A refresh is cut before a command reaches Redis or before its reply returns. The retry must
// return a live token, and the same one as the first call if that succeeded.
func TestCutRefreshCanBeRepeated(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	direct := open(t, server)
	proxy := faultproxy.Start(t, server.Addr)
	cut := mustOpen(t, "redis://"+proxy.Addr)
	defer cut.Close()
	warm := create(t, cut, "warm") // loads the scripts, so later each command is sent once
	if _, err := cut.Rotate(t.Context(), warm.Hash, offer(t, warm), time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, direction := range []faultproxy.Direction{faultproxy.Up, faultproxy.Down} {
		for _, refuse := range []bool{false, true} {
			failed := 0
			for commands := range 8 {
				older := create(t, direct, "ann") // an earlier token, which must end too
				second := offer(t, older)
				if _, err := direct.Rotate(t.Context(), older.Hash, second, time.Hour); err != nil {
					t.Fatal(err)
				}
				old := second.Session
				if _, err := cut.Lookup(t.Context(), old.Hash); err != nil { // opens a connection
					t.Fatal(err)
				}
				proxy.CutAfter(direction, commands, refuse)
				first, err := cut.Rotate(t.Context(), old.Hash, offer(t, old), time.Hour)
				proxy.Heal()
				if err != nil {
					failed++
				}
				if err != nil && !errors.Is(err, tokens.ErrUnavailable) {
					t.Errorf("cut after %d commands in direction %v, new connections refused: %v: %v", commands, direction, refuse, err)
				}
				again, retried := cut.Rotate(t.Context(), old.Hash, offer(t, old), time.Hour)
				if retried != nil {
					t.Errorf("cut after %d commands in direction %v, new connections refused: %v: the retry: %v", commands, direction, refuse, retried)
					continue
				}
				if err == nil && again.Session.Hash != first.Session.Hash {
					t.Errorf("cut after %d commands: the retry got another token", commands)
				}
				for _, h := range []tokens.Hash{old.Hash, again.Session.Hash} {
					if _, err := direct.Lookup(t.Context(), h); err != nil {
						t.Errorf("cut after %d commands: a token of the session: %v", commands, err)
					}
				}
				if n, err := direct.RevokeUser(t.Context(), "ann"); n != 1 || err != nil {
					t.Errorf("cut after %d commands: ended %d sessions, %v", commands, n, err)
				}
				for _, h := range []tokens.Hash{older.Hash, old.Hash, again.Session.Hash} {
					if _, err := direct.Lookup(t.Context(), h); !errors.Is(err, tokens.ErrUnknown) {
						t.Errorf("cut after %d commands: after the end of the session: %v", commands, err)
					}
				}
			}
			if refuse && failed < 7 { // GET, index, two records, exchange, earlier tokens, index
				t.Errorf("%d of 8 refreshes failed: not every command was cut", failed)
			}
		}
	}
}

var errCut = errors.New("cut by the test")

// outcome is what happens to a command.
type outcome int

const (
	executed  outcome = iota
	cutBefore         // neither the command nor a later one reaches Redis
	cutAfter          // its reply is lost, and no later command reaches Redis
)

// actor is a client of Redis. Its commands wait for their turn. Commands of a pipeline wait one by
// one, because a Cluster runs them in any order.
type actor struct {
	*Store
	raw      redis.UniversalClient
	waiting  chan bool // true: a command waits for its turn; false: the actor is done
	turns    chan outcome
	gone     bool
	finished bool
}

func newActor(t *testing.T, url string) *actor {
	s, raw := mustOpen(t, url), mustOpen(t, url)
	t.Cleanup(func() { _, _ = s.Close(), raw.Close() })
	a := &actor{Store: s, raw: raw.client, waiting: make(chan bool), turns: make(chan outcome)}
	s.client.AddHook(a)
	return a
}

func (a *actor) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a *actor) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return a.take(cmd, func() error { return next(ctx, cmd) })
	}
}

func (a *actor) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		var first error
		for _, cmd := range cmds {
			if err := a.take(cmd, func() error { return a.raw.Process(ctx, cmd) }); err != nil && first == nil {
				first = err
			}
		}
		return first
	}
}

// take waits for a turn and runs the command, or fails it.
func (a *actor) take(cmd redis.Cmder, do func() error) error {
	fate := cutBefore
	if !a.gone {
		a.waiting <- true
		fate = <-a.turns
		a.gone = fate != executed
	}
	if fate == cutBefore {
		cmd.SetErr(errCut)
		return errCut
	}
	err := do()
	if fate == cutAfter {
		cmd.SetErr(errCut)
		return errCut
	}
	return err
}

// begin starts do and returns at its first command.
func (a *actor) begin(do func()) {
	a.gone, a.finished = false, false
	go func() { do(); a.waiting <- false }()
	a.finished = !<-a.waiting
}

// step gives the actor one turn and returns at its next command.
func (a *actor) step(fate outcome) {
	if !a.finished {
		a.turns <- fate
		a.finished = !<-a.waiting
	}
}

// Two callers refresh one token while its session is ended, by its user or by the token. Their
// commands run in a random order, and some are cut. After the end, no returned token is live;
// without an end, all calls return the same one.
func TestRandomOrdersOfRefreshesAndEndAreSafe(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64() >> 1
	if text := os.Getenv("GATEPOST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 63); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("repeat with GATEPOST_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	orders := 300
	if testing.Short() {
		orders = 100
	}
	for name, start := range map[string]func(*testing.T) (address string){
		"one server": func(t *testing.T) string { return redistest.Start(t).Addr },
		"a Cluster": func(t *testing.T) string {
			nodes := redistest.StartCluster(t, 3)
			return nodes[0].Addr + "," + nodes[1].Addr + "/?cluster=true"
		},
	} {
		t.Run(name, func(t *testing.T) {
			url := "redis://" + start(t)
			direct := mustOpen(t, url)
			defer direct.Close()
			actors := []*actor{newActor(t, url), newActor(t, url), newActor(t, url)}
			both, ended := 0, 0
			for i := range orders {
				o := &order{t: t, random: random, direct: direct, actors: actors, user: fmt.Sprint("user", i), ends: i%3 != 0, byToken: i%2 == 0}
				given := o.play()
				o.check(given)
				if len(given) == 2 {
					both++
				}
				if o.ends && len(given) > 0 {
					ended++
				}
				if t.Failed() {
					t.Fatalf("order %d: %s", i, strings.Join(o.steps, ", "))
				}
			}
			if both < orders/100 || ended < orders/100 {
				t.Errorf("of %d orders both callers got a token in %d, and one got a token before an end in %d: too few", orders, both, ended)
			}
		})
	}
}

// order is one random order of the commands of two refreshes and an end.
type order struct {
	t      *testing.T
	random *rand.Rand
	direct *Store
	actors []*actor
	user   string
	ends   bool // the third actor ends the session
	// byToken is whether it revokes the token, which is the session's first; otherwise the session was refreshed before.
	byToken bool
	old     *tokens.Session
	steps   []string
}

// play runs the order and returns the successors that the callers got.
func (o *order) play() (given []tokens.Successor) {
	o.old = create(o.t, o.direct, o.user)
	if !o.byToken {
		next := offer(o.t, o.old)
		if _, err := o.direct.Rotate(o.t.Context(), o.old.Hash, next, time.Hour); err != nil {
			o.t.Fatal(err)
		}
		o.old = next.Session
	}
	var results [2]tokens.Successor
	var errs [3]error
	for i, a := range o.actors[:2] {
		offered := offer(o.t, o.old)
		a.begin(func() { results[i], errs[i] = a.Rotate(o.t.Context(), o.old.Hash, offered, time.Hour) })
	}
	switch {
	case o.ends && o.byToken:
		o.actors[2].begin(func() { errs[2] = o.actors[2].Revoke(o.t.Context(), o.old.Hash) })
	case o.ends:
		o.actors[2].begin(func() { _, errs[2] = o.actors[2].RevokeUser(o.t.Context(), o.user) })
	default:
		o.actors[2].finished = true
	}
	late := 2 + o.random.IntN(8) // the end is short, so it gets fewer turns
	for !o.actors[0].finished || !o.actors[1].finished || !o.actors[2].finished {
		index, fate := o.random.IntN(2), executed
		if o.random.IntN(late) == 0 {
			index = 2
		}
		if index < 2 && o.random.IntN(30) == 0 {
			fate = []outcome{cutBefore, cutAfter}[o.random.IntN(2)]
		}
		if o.actors[index].finished {
			continue
		}
		o.steps = append(o.steps, fmt.Sprint(index, []string{"", " cut before", " cut after"}[fate]))
		o.actors[index].step(fate)
	}
	if errs[2] != nil {
		o.t.Errorf("the end: %v", errs[2])
	}
	for i, err := range errs[:2] {
		switch {
		case err == nil:
			given = append(given, results[i])
		case !errors.Is(err, tokens.ErrUnavailable) && !o.ends:
			o.t.Errorf("a refresh: %v", err)
		}
	}
	return given
}

func (o *order) check(given []tokens.Successor) {
	if !o.ends {
		again, err := o.direct.Rotate(o.t.Context(), o.old.Hash, offer(o.t, o.old), time.Hour)
		if err != nil {
			o.t.Errorf("a retry: %v", err)
			return
		}
		for _, one := range append(given, again) {
			if one.Session.Hash != again.Session.Hash {
				o.t.Error("two callers got two tokens")
			}
		}
		if _, err := o.direct.Lookup(o.t.Context(), again.Session.Hash); err != nil {
			o.t.Errorf("the returned token: %v", err)
		}
		if n, err := o.direct.RevokeUser(o.t.Context(), o.user); n != 1 || err != nil {
			o.t.Errorf("ended %d sessions, %v", n, err)
		}
	}
	for _, h := range append(hashes(given), o.old.Hash) {
		if _, err := o.direct.Lookup(o.t.Context(), h); !errors.Is(err, tokens.ErrUnknown) {
			o.t.Errorf("a returned token after the end: %v", err)
		}
	}
	if given, err := o.direct.Rotate(o.t.Context(), o.old.Hash, offer(o.t, o.old), time.Hour); err == nil {
		if _, err := o.direct.Lookup(o.t.Context(), given.Session.Hash); err == nil {
			o.t.Error("a refresh after the end returned a live token")
		}
	}
}

func hashes(given []tokens.Successor) (all []tokens.Hash) {
	for _, one := range given {
		all = append(all, one.Session.Hash)
	}
	return all
}
