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

// offer is a successor that a caller offers for a token.
func offer(t testing.TB, old *tokens.Session) tokens.Successor {
	return storetest.Successor(old.Renewed(storetest.NewHash(t), time.Now(), time.Hour))
}

// A refresh whose connection is cut before a command reaches Redis, or before its reply comes back, logs nobody out: the
// retry gets a token that lives, and the same one as the first call, if that was given one.
func TestARefreshThatIsCutAnywhereCanBeRepeated(t *testing.T) {
	server := redistest.Start(t)
	direct := open(t, server)
	proxy := faultproxy.Start(t, server.Addr)
	cut := mustOpen(t, "redis://"+proxy.Addr)
	defer cut.Close()
	warm := create(t, cut, "warm") // then Redis knows the scripts, and each command is sent once
	if _, err := cut.Rotate(t.Context(), warm.Hash, offer(t, warm), time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, direction := range []faultproxy.Direction{faultproxy.Up, faultproxy.Down} {
		for _, refuse := range []bool{false, true} {
			failed := 0
			for commands := range 8 {
				older := create(t, direct, "ann") // there is a token before, to be ended too
				second := offer(t, older)
				if _, err := direct.Rotate(t.Context(), older.Hash, second, time.Hour); err != nil {
					t.Fatal(err)
				}
				old := second.Session
				if _, err := cut.Lookup(t.Context(), old.Hash); err != nil { // with a connection that is open
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
			if refuse && failed < 7 { // GET, the index, two records, the exchange, what was before, the index
				t.Errorf("of 8 refreshes %d failed: not every command was cut", failed)
			}
		}
	}
}

var errCut = errors.New("cut by the test")

// outcome is what befalls a command.
type outcome int

const (
	carriedOut outcome = iota
	cutBefore          // it does not reach Redis, nor does any after it
	cutAfter           // its reply is lost, and nothing after it reaches Redis
)

// actor is a client of Redis whose commands wait for their turn, those of a pipeline one by one: in a Cluster they come in
// any order.
type actor struct {
	*Store
	raw      redis.UniversalClient
	waiting  chan bool // true: it waits for a turn; false: it is done
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

// take waits for a turn and has the command carried out, or not.
func (a *actor) take(cmd redis.Cmder, do func() error) error {
	fate := cutBefore
	if !a.gone {
		a.waiting <- true
		fate = <-a.turns
		a.gone = fate != carriedOut
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

// begin has the actor do something, up to its first command.
func (a *actor) begin(do func()) {
	a.gone, a.finished = false, false
	go func() { do(); a.waiting <- false }()
	a.finished = !<-a.waiting
}

// step gives the actor one turn, and returns when it waits for the next.
func (a *actor) step(fate outcome) {
	if !a.finished {
		a.turns <- fate
		a.finished = !<-a.waiting
	}
}

// orders is how many orders of commands are tried of the many that there are.
const orders = 600

// Two callers refresh one token while its session is ended, and their commands come in any order, of which some are cut.
// A token that anybody was given is dead once the end has returned, and without an end all are given the same one.
func TestEveryOrderOfRefreshesAndAnEndIsSafe(t *testing.T) {
	seed := rand.Uint64() >> 1
	if text := os.Getenv("GATEPOST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 63); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the same orders with GATEPOST_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	nodes := redistest.StartCluster(t, 3)
	for name, url := range map[string]string{
		"one server": "redis://" + redistest.Start(t).Addr,
		"a Cluster":  "redis://" + nodes[0].Addr + "," + nodes[1].Addr + "/?cluster=true",
	} {
		t.Run(name, func(t *testing.T) {
			direct := mustOpen(t, url)
			defer direct.Close()
			actors := []*actor{newActor(t, url), newActor(t, url), newActor(t, url)}
			both, ended := 0, 0
			for i := range orders {
				o := &order{t: t, random: random, direct: direct, actors: actors, user: fmt.Sprint("user", i), ends: i%3 != 0}
				given := o.play()
				o.judge(given)
				if len(given) == 2 {
					both++
				}
				if o.ends && len(given) > 0 {
					ended++
				}
				if t.Failed() {
					t.Fatalf("order %d: %s", i, strings.Join(o.said, ", "))
				}
			}
			if both < orders/100 || ended < orders/100 {
				t.Errorf("of %d orders both callers got a token in %d, and one before an end in %d: that shows little", orders, both, ended)
			}
		})
	}
}

// order is one order of the commands of two refreshes and an end.
type order struct {
	t      *testing.T
	random *rand.Rand
	direct *Store
	actors []*actor
	user   string
	ends   bool // the third actor ends the session
	old    *tokens.Session
	said   []string
}

// play returns what the callers were given.
func (o *order) play() (given []tokens.Successor) {
	before := create(o.t, o.direct, o.user)
	next := offer(o.t, before)
	if _, err := o.direct.Rotate(o.t.Context(), before.Hash, next, time.Hour); err != nil {
		o.t.Fatal(err)
	}
	o.old = next.Session
	var results [2]tokens.Successor
	var errs [3]error
	for i, a := range o.actors[:2] {
		offered := offer(o.t, o.old)
		a.begin(func() { results[i], errs[i] = a.Rotate(o.t.Context(), o.old.Hash, offered, time.Hour) })
	}
	if o.ends {
		o.actors[2].begin(func() { _, errs[2] = o.actors[2].RevokeUser(o.t.Context(), o.user) })
	} else {
		o.actors[2].finished = true
	}
	late := 2 + o.random.IntN(8) // how rarely the end has its turn: it is short, and would mostly be over first
	for !o.actors[0].finished || !o.actors[1].finished || !o.actors[2].finished {
		who, fate := o.random.IntN(2), carriedOut
		if o.random.IntN(late) == 0 {
			who = 2
		}
		if who < 2 && o.random.IntN(30) == 0 {
			fate = []outcome{cutBefore, cutAfter}[o.random.IntN(2)]
		}
		if o.actors[who].finished {
			continue
		}
		o.said = append(o.said, fmt.Sprint(who, []string{"", " cut before", " cut after"}[fate]))
		o.actors[who].step(fate)
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

func (o *order) judge(given []tokens.Successor) {
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
			o.t.Errorf("the token that was given: %v", err)
		}
		if n, err := o.direct.RevokeUser(o.t.Context(), o.user); n != 1 || err != nil {
			o.t.Errorf("ended %d sessions, %v", n, err)
		}
	}
	for _, h := range append(hashes(given), o.old.Hash) {
		if _, err := o.direct.Lookup(o.t.Context(), h); !errors.Is(err, tokens.ErrUnknown) {
			o.t.Errorf("after the end a token that was given: %v", err)
		}
	}
	if given, err := o.direct.Rotate(o.t.Context(), o.old.Hash, offer(o.t, o.old), time.Hour); err == nil {
		if _, err := o.direct.Lookup(o.t.Context(), given.Session.Hash); err == nil {
			o.t.Error("after the end a refresh gets a token that lives")
		}
	}
}

func hashes(given []tokens.Successor) (all []tokens.Hash) {
	for _, one := range given {
		all = append(all, one.Session.Hash)
	}
	return all
}
