package e2e

import (
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

// The promise of the tokens, as a checker in the manner of Jepsen tests it: clients mint, use and end tokens at
// whole gateways while a nemesis does to them and to Redis what it can, and the history of all calls shows that
//
//   - no use was accepted, by any gateway, that began after a revoke of the token had returned;
//   - no live token was refused; "can't tell" is allowed under faults, and when all is healed each token has its answer;
//   - nobody was ever taken for another;
//   - no token is in the log of any process, nor in what Redis keeps.
//
// GATEPOST_SOAK is for how long it goes on (a minute by default), and GATEPOST_SEED makes the nemesis do what it
// did with that seed, which is logged.
func TestRevokedMeansRefused(t *testing.T) {
	lasts, seed := soak(t), seed(t)
	t.Run("checked inside Envoy", func(t *testing.T) { twoGateways(t, lasts/2, seed) })
	t.Run("one asks each time", func(t *testing.T) { twoGateways(t, lasts/2, seed+1, "--module", "off") })
	t.Run("one without a cache", func(t *testing.T) { twoGateways(t, lasts/2, seed+2, "--cache", "off") })
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
		return time.Minute
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

// twoGateways is the checker on two gateways at one Redis that forgets nothing, each by a line of its own. args are
// further arguments of the second one.
func twoGateways(t *testing.T, lasts time.Duration, seed uint64, args ...string) {
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	lines := []*line{startLine(t, redis.Addr), startLine(t, redis.Addr)}
	check(t, campaign{
		lasts: lasts, seed: seed, redis: redis, lines: lines,
		setups: []setup{
			{Redis: "redis://" + lines[0].Addr, Args: []string{"--log-level", "debug"}},
			{Redis: "redis://" + lines[1].Addr, Args: args},
		},
	})
}

// The embedded store promises the same, of the one gateway that it has: what it acknowledged it has not forgotten
// after a kill at any moment.
func TestRevokedMeansRefusedByTheEmbeddedStore(t *testing.T) {
	check(t, campaign{lasts: soak(t) / 3, seed: seed(t), setups: []setup{{Args: []string{"--log-level", "debug"}}}})
}

// campaign is one run of the checker.
type campaign struct {
	lasts  time.Duration
	seed   uint64
	setups []setup // one for each gateway
	redis  *redistest.Server
	lines  []*line
	shards *shards
}

// lifetime of the tokens: short, so that some expire under way, and long enough for those that are minted at the end of the
// faults to be tried after all has been healed.
const lifetime = 40 * time.Second

// refreshGrace is short, so that it ends under way, too.
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
		gateways = append(gateways, start(t, definitions, s))
	}
	h := newHistory(lifetime, refreshGrace)
	clients := newClients(t, h, c.seed, gateways...)
	healthy(t, clients)

	done, calm := make(chan struct{}), h.now()
	wait := clients.run(done)
	time.Sleep(c.lasts / 10)
	h.wasCalm(h.since(calm))
	n := &nemesis{
		t: t, random: rand.New(rand.NewPCG(c.seed, 0)), history: h, gateways: gateways, redis: c.redis, lines: c.lines,
		shards: c.shards,
	}
	n.rage(h.start.Add(calm + c.lasts))
	for _, g := range gateways {
		g.AwaitReady()
	}
	healthy(t, clients)
	// What was asked before all was well again, and has no answer yet, is not to be held against the calm.
	close(done)
	wait()

	calm = h.now()
	afterwards(t, clients)
	h.wasCalm(h.since(calm))
	conclude(t, clients, n)
}

// healthy waits until a new token of each gateway is taken by each.
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

// afterwards tries what must have outlived the faults, and what must not: without a fault each token has its answer.
func afterwards(t *testing.T, c *clients) {
	t.Helper()
	living, dead := c.history.living(), c.history.dead()
	if len(living) == 0 || len(dead) == 0 {
		t.Errorf("%d living and %d dead tokens are left to be tried: that shows nothing", len(living), len(dead))
	}
	for _, m := range append(last(living, 200), last(dead, 200)...) {
		for g := range c.gateways {
			envoytest.Eventually(t, "an answer without a fault", func() bool { return c.use(g, m) != unsure })
		}
	}
}

func last[E any](all []E, most int) []E { return all[max(0, len(all)-most):] }

// conclude judges, and says what there was to judge: a history in which little happened proves little.
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
			t.Errorf("gateway %d has hardly been used: the history shows nothing", i)
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
		t.Error("hardly a revoke was acknowledged: the history shows nothing")
	}
	refreshes, repeated := h.refreshes()
	t.Logf("%d refreshes acknowledged, %d of them repeated", refreshes, repeated)
	if repeated == 0 {
		t.Error("no refresh was repeated: the history shows nothing of the grace")
	}
	if t.Failed() {
		for _, fault := range n.done {
			t.Log(fault)
		}
	}
}

// The line tells the two kinds of connections apart: else a fault of one would be one of the other.
func TestALineKnowsTheTrackingConnection(t *testing.T) {
	redis := redistest.Start(t)
	l := startLine(t, redis.Addr)
	shop := startShop(t, setup{Redis: "redis://" + l.Addr})
	want(t, "a new token", shop.Do("GET", "/orders", "", "Authorization: "+shop.Login("ann")), http.StatusOK, "")
	if tracking, data := l.Tracking.Connections(), l.Data.Connections(); tracking != 1 || data < 1 {
		t.Errorf("%d tracking connections and %d for data, want 1 and some", tracking, data)
	}
}
