package rollout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/definitions"
	"gatepost/xds"
)

// control reports to a rollout what a test wants its Envoys to do.
type control struct {
	*Rollout
	nodes   map[string]int64 // :: node → stream
	streams int64
	trusted bool
}

// trust makes the Envoys that connect from now on trusted ones.
func (c *control) trust() { c.trusted = true }

// publishes has a version published, while the Envoys of these nodes, and no others, are connected and have
// acknowledged another or the same.
func (c *control) publishes(id, acked string, nodes ...string) {
	c.mu.Lock()
	c.machine.publish(&version{
		snapshot: &xds.Snapshot{Version: id}, definitions: &definitions.Definitions{Name: id, Gateway: &definitions.Gateway{}},
		listen: netip.MustParseAddrPort("0.0.0.0:5500"),
	}, time.Now())
	c.mu.Unlock()
	for node, stream := range c.nodes {
		if !slices.Contains(nodes, node) {
			c.post(xds.Disconnected{ID: stream})
			delete(c.nodes, node)
		}
	}
	for _, node := range nodes {
		c.acks(node, acked)
	}
	if acked == id && len(nodes) > 0 {
		c.post(xds.Delivered{Version: id})
	}
}

// acks has an Envoy connected that has acknowledged a version; empty: none.
func (c *control) acks(node, acked string) {
	if c.nodes[node] == 0 {
		c.streams++
		c.nodes[node] = c.streams
		c.post(xds.Connected{Peer: xds.Peer{ID: c.streams, Node: node, Address: "127.0.0.1:1", Trusted: c.trusted}})
	}
	if acked != "" {
		c.post(xds.Acked{ID: c.nodes[node], Version: acked, At: time.Now()})
	}
}

// envoys answer as a test wants, and note how often they were asked.
type envoys struct {
	mu      sync.Mutex
	answers func() (string, error)
	asked   int
}

func (e *envoys) ask(context.Context, string) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked++
	return e.answers()
}

func (e *envoys) say(version string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answers = func() (string, error) { return version, err }
}

func (e *envoys) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked
}

// verifying runs a rollout, without a control plane, in a bubble of time until the test ends.
func verifying(t *testing.T, test func(t *testing.T, c *control, e *envoys, log *strings.Builder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e, log := &envoys{}, &strings.Builder{}
		logger := slog.New(slog.NewTextHandler(log, nil))
		server := newControl(t, xds.Config{Logger: logger})
		defer server.Close()
		r, err := New(Config{
			Control: server, Ask: e.ask, LastGood: definitions.LastGood{Dir: t.TempDir()}, Logger: logger, Registerer: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = r.Run(ctx) })
		test(t, &control{Rollout: r, nodes: map[string]int64{}}, e, log)
		cancel()
		running.Wait()
	})
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestAnEnvoyIsVerifiedWhenItAnswersWithWhatItAcknowledged(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, _ *strings.Builder) {
		e.say("v1", nil)
		c.publishes("v1", "", "a")
		synctest.Wait()
		if got := c.Status(); got.Applied() || got.Envoys[0].Verified || e.count() != 0 {
			t.Fatalf("before the acknowledgement: %+v, asked %d times", got, e.count())
		}
		c.publishes("v1", "v1", "a")
		synctest.Wait()
		got := c.Status()
		if !got.Applied() || !got.Answered() || !got.Envoys[0].Verified || !got.Envoys[0].Counts || got.Envoys[0].Serving != "v1" || got.Envoys[0].Doubt != "" {
			t.Fatalf("after it: %+v", got)
		}
		wait(time.Hour)
		if e.count() != 1 {
			t.Errorf("asked %d times, want once", e.count())
		}
	})
}

func TestAnAcknowledgementAloneIsNotEnough(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, log *strings.Builder) {
		e.say("v1", nil)
		c.publishes("v2", "v2", "a")
		wait(time.Minute)
		got := c.Status()
		if got.Applied() || got.Envoys[0].Verified || got.Envoys[0].Serving != "v1" || !strings.Contains(got.Envoys[0].Doubt, "v1") {
			t.Fatalf("an Envoy that serves another version: %+v", got)
		}
		if told := strings.Count(log.String(), "does not serve the version"); told != 1 {
			t.Errorf("the log has it %d times, want once:\n%s", told, log)
		}
		if e.count() > 30 {
			t.Errorf("asked %d times in a minute", e.count())
		}
		e.say("v2", nil)
		wait(lastAgain)
		if got := c.Status(); !got.Applied() || got.Envoys[0].Doubt != "" {
			t.Fatalf("when it serves it: %+v", got)
		}
	})
}

func TestATrustedEnvoyThatCannotBeAskedHoldsUpNobodyForLong(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, log *strings.Builder) {
		c.trust()
		e.say("", errors.New("no route to host"))
		c.publishes("v1", "v1", "a")
		wait(patience / 2)
		if c.Status().Applied() {
			t.Fatal("applied before the Envoy had time to answer")
		}
		wait(2 * patience)
		got := c.Status()
		if !got.Applied() || got.Answered() || got.Envoys[0].Verified || got.Envoys[0].Doubt != "no route to host" {
			t.Fatalf("after that: %+v", got)
		}
		c.publishes("v2", "v1", "a")
		synctest.Wait()
		if c.Status().Applied() {
			t.Fatal("applied without an acknowledgement")
		}
		c.publishes("v2", "v2", "a")
		synctest.Wait()
		if !c.Status().Applied() {
			t.Fatal("the next change waits for an Envoy that is known not to answer")
		}
		wait(time.Hour)
		if told := strings.Count(log.String(), "cannot be asked"); told != 1 {
			t.Errorf("the log has it %d times, want once:\n%s", told, log)
		}
		e.say("v2", nil)
		wait(lastAgain)
		if got := c.Status(); !got.Answered() {
			t.Fatalf("when it answers after all: %+v", got)
		}
	})
}

// Every client of --grpc can send an acknowledgement.
func TestAnAcknowledgementOfAStrangerIsNone(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, _ *strings.Builder) {
		e.say("", errors.New("connection refused"))
		c.publishes("v1", "v1", "stranger")
		wait(time.Hour)
		got := c.Status()
		if err := got.Missing(); got.Applied() || err == nil || !strings.Contains(err.Error(), "stranger") || !strings.Contains(err.Error(), "connection refused") {
			t.Fatalf("with a stranger alone: applied %v, missing %v", got.Applied(), err)
		}
	})
}

// It can also answer at its own address.
func TestAnswersOfAStrangerDoNotCountBesideATrustedEnvoy(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, _ *strings.Builder) {
		e.say("v1", nil)
		c.publishes("v1", "v1", "stranger")
		synctest.Wait()
		c.trust()
		for _, step := range []struct {
			what, acked    string // acked by the trusted Envoy
			applied, ready bool
		}{
			{"the trusted Envoy has acknowledged nothing", "", false, false},
			{"it has another version", "v0", false, true},
			{"it has the version", "v1", true, true},
		} {
			c.acks("envoy", step.acked)
			synctest.Wait()
			got := c.Status()
			if got.Envoys[1].Serving != "v1" || got.Applied() != step.applied || (got.Missing() == nil) != step.ready {
				t.Errorf("%s: applied %v, missing %v, %+v", step.what, got.Applied(), got.Missing(), got.Envoys)
			}
		}
	})
}

func TestAStrangerHoldsUpNobody(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, _ *strings.Builder) {
		calls := 0
		e.answers = func() (string, error) {
			if calls++; calls == 1 {
				return "v1", nil
			}
			return "", errors.New("connection refused")
		}
		c.publishes("v1", "v1", "a", "stranger")
		synctest.Wait()
		if got := c.Status(); !got.Applied() || got.Missing() != nil {
			t.Fatalf("an Envoy that answers and a stranger: %+v", got)
		}
	})
}

func TestEveryEnvoyHasToAnswer(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, _ *strings.Builder) {
		c.publishes("v1", "v1")
		synctest.Wait()
		if c.Status().Applied() {
			t.Fatal("applied with no Envoy at all")
		}
		calls := 0
		e.answers = func() (string, error) {
			if calls++; calls == 1 {
				return "v1", nil
			}
			return "v0", nil
		}
		c.publishes("v1", "v1", "a", "b")
		wait(time.Second)
		if got := c.Status(); got.Applied() || got.Envoys[0].Verified == got.Envoys[1].Verified {
			t.Fatalf("one of two serves another version: %+v", got)
		}
		e.say("v1", nil)
		wait(lastAgain)
		if got := c.Status(); !got.Answered() {
			t.Fatalf("both serve it: %+v", got)
		}
	})
}

func TestAnEnvoyThatComesBackIsAskedAgain(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, _ *strings.Builder) {
		e.say("v1", nil)
		c.publishes("v1", "v1", "a")
		synctest.Wait()
		c.publishes("v1", "v1")
		synctest.Wait()
		e.say("", errors.New("connection refused"))
		c.publishes("v1", "v1", "a")
		wait(time.Second)
		if got := c.Status(); got.Envoys[0].Verified {
			t.Fatalf("what it answered before it went is held for true: %+v", got)
		}
	})
}

func TestWhoWaitsHearsOfEachChange(t *testing.T) {
	verifying(t, func(t *testing.T, c *control, e *envoys, _ *strings.Builder) {
		e.say("v1", nil)
		var waiting sync.WaitGroup
		waiting.Go(func() {
			for changed := c.StatusChanged(); !c.Status().Applied(); changed = c.StatusChanged() {
				<-changed
			}
		})
		c.publishes("v1", "", "a")
		synctest.Wait()
		c.publishes("v1", "v1", "a")
		waiting.Wait() // a deadlock here fails the bubble
	})
}

func TestWhereAnEnvoyIsAsked(t *testing.T) {
	for _, c := range []struct{ listen, peer, host, want string }{
		{"0.0.0.0:5500", "@", "", "127.0.0.1:5500"},
		{"0.0.0.0:5500", "", "", "127.0.0.1:5500"},
		{"[::]:5500", "@", "", "127.0.0.1:5500"},
		{"0.0.0.0:5500", "127.0.0.1:40000", "", "127.0.0.1:5500"},
		{"0.0.0.0:5500", "[::1]:40000", "", "127.0.0.1:5500"},
		{"0.0.0.0:5500", "192.0.2.7:40000", "", "192.0.2.7:5500"},
		{"[::]:5500", "[2001:db8::7]:40000", "", "[2001:db8::7]:5500"},
		{"0.0.0.0:5500", "[::ffff:192.0.2.7]:40000", "", "192.0.2.7:5500"},
		{"127.0.0.1:5500", "@", "", "127.0.0.1:5500"},
		{"127.0.0.2:5500", "127.0.0.1:40000", "", "127.0.0.2:5500"},
		{"[::1]:5500", "@", "", "[::1]:5500"},
		{"192.0.2.1:5500", "@", "", "192.0.2.1:5500"},
		{"192.0.2.1:5500", "192.0.2.7:40000", "", "192.0.2.1:5500"},
		{"127.0.0.1:5500", "192.0.2.7:40000", "", ""},
		{"0.0.0.0:5500", "@", "envoy", "envoy:5500"},
		{"0.0.0.0:5500", "192.0.2.7:40000", "2001:db8::7", "[2001:db8::7]:5500"},
	} {
		got, err := beacon(netip.MustParseAddrPort(c.listen), xds.Peer{Address: c.peer, Host: c.host})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("listening on %s, from %s, host %q: %q %v, want %q", c.listen, c.peer, c.host, got, err, c.want)
		}
	}
}

func TestWhatAnswersAsk(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"a version":       {200, `"0123456789abcdef"`, "0123456789abcdef"},
		"another service": {200, "<html>", ""},
		"no version":      {200, `""`, ""},
		"not found":       {404, `"0123456789abcdef"`, ""},
		"a redirect":      {302, `"0123456789abcdef"`, ""},
		"no end":          {200, `"` + strings.Repeat("x", 1<<20) + `"`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != definitions.VersionPath {
					t.Errorf("asked for %s", r.URL.Path)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				_, _ = fmt.Fprint(w, c.body)
			}))
			defer server.Close()
			got, err := askVersion(t.Context(), strings.TrimPrefix(server.URL, "http://"))
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
	if got, err := askVersion(t.Context(), "127.0.0.1:1"); err == nil {
		t.Errorf("where nobody listens: %q", got)
	}
}
