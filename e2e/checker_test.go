package e2e

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// TestRevokedMeansRefused checks the promise of the tokens in the manner of Jepsen. Clients mint,
// use and end tokens at whole gateways while a nemesis injects faults into them and into Redis. The
// history of all calls must show that
//
//   - no gateway accepted a use that began after a revoke of the token had returned;
//   - no gateway rejected a live token; a 503 is allowed during faults, but after healing each token
//     gets a definite response;
//   - no user was mistaken for another;
//   - no token is in the log of any process, nor in Redis.
//
// GATEPOST_SOAK is the duration (default: 30 s). GATEPOST_SEED, which is logged, repeats the
// faults of a run.
func TestRevokedMeansRefused(t *testing.T) {
	t.Parallel()
	lasts, seed := soak(t), seed(t)
	t.Run("checked inside Envoy, with clocks that are set", func(t *testing.T) {
		program := withClocks(t, race)
		twoGateways(t, []*clock{newClock(t, program), newClock(t, program)}, lasts/2, seed)
	})
	t.Run("without the module", func(t *testing.T) { twoGateways(t, nil, lasts/2, seed+1, "--module", "off") })
	t.Run("one without a cache", func(t *testing.T) { twoGateways(t, nil, lasts/2, seed+2, "--cache", "off") })
}

func soak(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("GATEPOST_SOAK")
	switch {
	case text != "":
		long, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("reading GATEPOST_SOAK: %v", err)
		}
		return long
	case testing.Short():
		return 16 * time.Second
	default:
		return 30 * time.Second
	}
}

func seed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64() >> 1
	if text := os.Getenv("GATEPOST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 63); err != nil {
			t.Fatalf("reading GATEPOST_SEED: %v", err)
		}
	}
	t.Logf("the nemesis does this again with GATEPOST_SEED=%d", seed)
	return seed
}

// twoGateways runs the checker on two gateways with one persistent Redis, each with its own line.
// clocks are those of the gateways, or nil; args are more arguments of the second gateway.
func twoGateways(t *testing.T, clocks []*clock, lasts time.Duration, seed uint64, args ...string) {
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	lines := []*line{startLine(t, redis.Addr), startLine(t, redis.Addr)}
	setups := []setup{
		{Redis: "redis://" + lines[0].Addr, Args: []string{"--log-level", "debug"}},
		{Redis: "redis://" + lines[1].Addr, Args: args},
	}
	for i, c := range clocks {
		setups[i] = c.of(setups[i])
	}
	check(t, campaign{lasts: lasts, seed: seed, redis: redis, lines: lines, clocks: clocks, setups: setups})
}

// With the embedded store, the one gateway that can use it keeps the same promise: nothing that it
// acknowledged is lost if it is killed at any moment.
func TestRevokedMeansRefusedByTheEmbeddedStore(t *testing.T) {
	t.Parallel()
	check(t, campaign{lasts: soak(t) / 3, seed: seed(t), setups: []setup{{Args: []string{"--log-level", "debug"}}}})
}

// If Envoy is not a child of Gatepost, it outlives it, and takes over the next one's table.
func TestRevokedMeansRefusedByAnEnvoyOfItsOwn(t *testing.T) {
	t.Parallel()
	check(t, campaign{lasts: soak(t) / 3, seed: seed(t), setups: []setup{{}}, apart: true})
}

// campaign is one run of the checker.
type campaign struct {
	lasts  time.Duration
	seed   uint64
	setups []setup // one per gateway
	redis  *redistest.Server
	lines  []*line
	shards *shards
	// watched is the Redis behind Sentinel, or nil.
	watched *watched
	clocks  []*clock
	apart   bool // Envoys are not children of the gateways
}

// start starts a gateway of the campaign.
func (c *campaign) start(t *testing.T, definitions string, s setup) *gateway {
	s.Program = cmp.Or(s.Program, racing(t))
	if !c.apart {
		return start(t, definitions, s)
	}
	g := prepareServed(t, definitions, s, overSockets)
	g.Run()
	g.StartEnvoy(envoytest.Options{})
	g.AwaitReady()
	return g.gateway
}

// The lifetime of tokens is short, so that some expire during the run, and long enough that tokens
// minted at the end of the faults can be tried after healing.
const lifetime = 40 * time.Second

// refreshGrace is short, so that it also ends during the run.
const refreshGrace = 3 * time.Second

func check(t *testing.T, c campaign) {
	definitions := fmt.Sprintf(`
tokens:
  lifetime: %ds
  refresh_grace: %ds
  authenticator: {url: "%s/users/authenticate"}
services:
  - {name: orders, path: /orders, upstreams: ["%s"]}
`, int(lifetime.Seconds()), int(refreshGrace.Seconds()), knownUsers(t).URL, orders(t).URL)
	var gateways []*gateway
	for _, s := range c.setups {
		gateways = append(gateways, c.start(t, definitions, s))
	}
	h := newHistory(lifetime, refreshGrace)
	clients := newClients(t, h, c.seed, gateways...)
	healthy(t, clients)

	done, calm := make(chan struct{}), h.now()
	wait := clients.run(done)
	time.Sleep(c.lasts / 10)
	h.wasCalm(h.since(calm))
	decidedInside(t, gateways)
	n := &nemesis{
		t: t, random: rand.New(rand.NewPCG(c.seed, 0)), history: h, gateways: gateways, redis: c.redis, lines: c.lines,
		shards: c.shards, watched: c.watched, clocks: c.clocks,
	}
	n.rage(h.start.Add(calm + c.lasts))
	for _, g := range gateways {
		g.AwaitReady()
	}
	healthy(t, clients)
	envoytest.Eventually(t, "a repeated refresh", func() bool {
		_, repeated := h.refreshes()
		return repeated > 0
	})
	// Calls that started before everything was healed do not count as calm.
	close(done)
	wait()

	calm = h.now()
	afterwards(t, clients)
	h.wasCalm(h.since(calm))
	conclude(t, clients, n)
}

// decidedInside fails the test if a gateway whose Envoy checks tokens by itself did not do so.
func decidedInside(t *testing.T, gateways []*gateway) {
	t.Helper()
	for i, g := range gateways {
		hits := g.Metric(`gatepost_decisions_total{decision="allow",reason="module"`)
		t.Logf("gateway %d: %v uses were decided inside Envoy before the first fault", i, hits)
		if g.Status().GetModule().GetLibrary() != "" && hits == 0 {
			t.Errorf("gateway %d: the module was not used", i)
		}
	}
}

// healthy waits until every gateway accepts new tokens of every gateway.
func healthy(t *testing.T, c *clients) {
	t.Helper()
	for from := range c.gateways {
		envoytest.Eventually(t, fmt.Sprintf("a login at gateway %d, and its use everywhere", from), func() bool {
			m := c.loginAs(from, fmt.Sprintf("%s-%d", kept, c.users.Add(1)))
			if m == nil {
				return false
			}
			for at := range c.gateways {
				if c.use(at, m) != accepted {
					return false
				}
			}
			return true
		})
	}
}

// afterwards tries the tokens that must have survived and those that must not. Without faults,
// every call must get a definite response.
func afterwards(t *testing.T, c *clients) {
	t.Helper()
	living, dead := c.history.living(), c.history.dead()
	if len(living) == 0 || len(dead) == 0 {
		t.Errorf("%d living and %d dead tokens are left: too few to test anything", len(living), len(dead))
	}
	for _, m := range append(last(living, 200), last(dead, 200)...) {
		for g := range c.gateways {
			envoytest.Eventually(t, "an answer without a fault", func() bool { return c.use(g, m) != unsure })
		}
	}
}

func last[E any](all []E, most int) []E { return all[max(0, len(all)-most):] }

// conclude reports the violations, and fails if too little happened for the history to be
// meaningful.
func conclude(t *testing.T, c *clients, n *nemesis) {
	t.Helper()
	h := c.history
	violations := h.violations()
	for i, v := range violations {
		if i == 20 {
			t.Errorf("and %d more", len(violations)-i)
			break
		}
		t.Error(v)
	}
	texts := map[string]string{}
	for i, g := range c.gateways {
		texts[fmt.Sprintf("the log of gateway %d and its Envoy", i)] = g.Log()
		t.Logf("gateway %d: %d uses accepted, %d refused, %d unanswered", i, h.count(accepted, i), h.count(refused, i), h.count(unsure, i))
		if h.count(accepted, i) < 10 || h.count(refused, i) < 10 {
			t.Errorf("gateway %d was hardly used: the history is not meaningful", i)
		}
	}
	for _, server := range n.servers() {
		files, err := filepath.Glob(filepath.Join(server.Dir, "*", "*"))
		if logs, _ := filepath.Glob(filepath.Join(server.Dir, "*.log")); err == nil {
			files = append(files, logs...)
		}
		if len(files) < 2 {
			t.Errorf("Redis has left %q: neither log nor data to look into", files)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts[file] = string(data)
		}
	}
	for _, leak := range h.leaks(texts) {
		t.Error(leak)
	}
	t.Logf("%d tokens, %d ends acknowledged, %d faults", len(h.tokens), c.ends.Load(), len(n.done))
	if c.ends.Load() < 3 {
		t.Error("hardly any revoke was acknowledged: the history is not meaningful")
	}
	refreshes, repeated := h.refreshes()
	t.Logf("%d refreshes acknowledged, %d of them repeated", refreshes, repeated)
	if t.Failed() {
		for _, fault := range n.done {
			t.Log(fault)
		}
	}
}

// The line must recognize the tracking connection; otherwise a fault would hit the wrong kind.
func TestLineRecognizesTheTrackingConnection(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	l := startLine(t, redis.Addr)
	shop := startShop(t, setup{Redis: "redis://" + l.Addr})
	want(t, "a new token", shop.Do("GET", "/orders", "", "Authorization: "+shop.Login("ann")), http.StatusOK, "")
	if tracking, data := l.Tracking.Connections(), l.Data.Connections(); tracking != 1 || data < 1 {
		t.Errorf("%d tracking connections and %d for data, want 1 and some", tracking, data)
	}
}
