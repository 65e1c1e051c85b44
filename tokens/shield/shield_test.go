package shield

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/tokens/redistest"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

var home, office = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")

// clock is a clock that the test controls.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// testShield is a shield under test with its settings and clock.
type testShield struct {
	t *testing.T
	*Shield
	*clock
	set Settings
}

func newTestShield(t *testing.T, shared Shared) *testShield {
	t.Helper()
	c := &clock{now: time.Unix(1_700_000_000, 0)}
	s, err := New(Config{Shared: shared, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return &testShield{t: t, clock: c, set: Settings{
		Address:    Limit{Failures: 100, Forgive: 36 * time.Second, Base: time.Second, Cap: 15 * time.Minute},
		User:       Limit{Failures: 5, Forgive: 30 * time.Minute, Base: time.Second, Cap: 15 * time.Minute},
		Concurrent: 256,
		Breaker:    BreakerSettings{Failures: 10, Pause: time.Second, Cap: 30 * time.Second},
	},
		Shield: s}
}

func (g *testShield) try(a netip.Addr, user string, o Outcome) error {
	g.t.Helper()
	p, err := g.Admit(g.t.Context(), &g.set, a, user)
	if err == nil {
		p.Done(g.t.Context(), o)
	}
	return err
}

func (g *testShield) admits(a netip.Addr, user string, o Outcome) {
	g.t.Helper()
	if err := g.try(a, user, o); err != nil {
		g.t.Fatalf("login of %q from %s: %v, want it admitted", user, a, err)
	}
}

func (g *testShield) refuses(a netip.Addr, user string, reason Reason, wait time.Duration) {
	g.t.Helper()
	var r *Refusal
	if err := g.try(a, user, Unjudged); !errors.As(err, &r) || r.Reason != reason || r.RetryAfter != wait {
		g.t.Fatalf("login of %q from %s: %v, want %s for %s", user, a, err, reason, wait)
	}
}

func TestWaitDoublesAfterEachFailure(t *testing.T) {
	g := newTestShield(t, nil)
	for range 5 {
		g.admits(home, "ann", Refused)
	}
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512} {
		g.admits(home, "ann", Refused)
		g.refuses(home, "ann", Throttled, wait*time.Second)
		g.refuses(office, "ann", Throttled, wait*time.Second) // for any address
		g.admits(home, "bob", Opened)                         // no other user
		g.pass(wait * time.Second)
	}
	g.admits(home, "ann", Refused)
	g.refuses(home, "ann", Throttled, 15*time.Minute)
}

func TestFailuresAreForgiven(t *testing.T) {
	g := newTestShield(t, nil)
	for range 6 {
		g.admits(home, "ann", Refused)
	}
	g.pass(6 * 30 * time.Minute)
	for range 6 {
		g.admits(home, "ann", Refused)
	}
	g.refuses(home, "ann", Throttled, time.Second)
}

func TestSuccessClearsUserOnly(t *testing.T) {
	g := newTestShield(t, nil)
	for range 100 {
		g.admits(home, "", Refused)
	}
	for range 5 {
		g.admits(office, "ann", Refused)
	}
	g.admits(home, "ann", Opened)
	for range 6 {
		g.admits(office, "ann", Refused)
	}
	g.refuses(office, "ann", Throttled, time.Second)
	g.admits(home, "eve", Refused) // the 101st failure from home
	g.refuses(home, "eve", Throttled, time.Second)
	g.refuses(home, "bob", Throttled, time.Second)
}

func TestAddressIsNotLockedOutForLong(t *testing.T) {
	g := newTestShield(t, nil)
	for range 1000 { // an attacker behind a shared address guesses at every chance
		if err := g.try(home, "", Refused); err != nil {
			var r *Refusal
			errors.As(err, &r)
			if r.RetryAfter > 2*g.set.Address.Forgive {
				t.Fatalf("an address waits %s, want at most about %s", r.RetryAfter, g.set.Address.Forgive)
			}
			g.pass(r.RetryAfter)
		}
	}
}

func TestSpellingsOfOneUserShareAKey(t *testing.T) {
	for _, name := range []string{"ann", "ANN", " Ann\t", "ａｎｎ", "a\u200dnn", "\ufeffann", "ᴬnn", "änn", "a\u034fnn", "an\u3164n"} {
		if UserKey(name) != UserKey("ann") {
			t.Errorf("%q is not ann", name)
		}
	}
	for _, pair := range [][2]string{{"Straße", "STRASSE"}, {"e\u0301va", "Éva"}, {"ΣΊΣΥΦΟΣ", "σίσυφοσ"},
		{"Mıke", "MIKE"}, {"İrem", "irem"}, {"ann \u00a0 lee", "Ann Lee"}} {
		if UserKey(pair[0]) != UserKey(pair[1]) {
			t.Errorf("%q is not %q", pair[0], pair[1])
		}
		if once := Normalise(pair[0]); Normalise(once) != once {
			t.Errorf("%q is not fully normalised", once)
		}
	}
	if UserKey("ann") == UserKey("anna") || UserKey("192.0.2.1") == AddressKey(home) {
		t.Error("different inputs have one key")
	}
}

func TestIPv6ClientsAreNetworks(t *testing.T) {
	key := func(a string) Key { return AddressKey(netip.MustParseAddr(a)) }
	if key("2001:db8::1") != key("2001:db8::ffff:1%eth0") {
		t.Error("two addresses of one /64 differ")
	}
	if key("2001:db8::1") == key("2001:db8:0:1::1") || key("192.0.2.1") == key("192.0.2.2") {
		t.Error("two clients have one key")
	}
	if key("::ffff:192.0.2.1") != key("192.0.2.1") {
		t.Error("an IPv4 address written as IPv6 is another client")
	}
}

func TestConcurrentGuessesGainNothing(t *testing.T) {
	g := newTestShield(t, nil)
	var passes []*Pass
	for {
		p, err := g.Admit(t.Context(), &g.set, home, "ann")
		if err != nil {
			break
		}
		passes = append(passes, p)
	}
	if len(passes) != 6 { // as many as sequentially without a wait
		t.Fatalf("%d logins in flight, want 6", len(passes))
	}
	for _, p := range passes {
		p.Done(t.Context(), Refused)
		p.Done(t.Context(), Refused) // only the first counts
	}
	g.refuses(home, "ann", Throttled, time.Second)
	g.pass(time.Second)
	p, err := g.Admit(t.Context(), &g.set, home, "ann")
	if err != nil {
		t.Fatal(err)
	}
	g.refuses(home, "ann", Throttled, time.Second) // sequential from now on
	p.Done(t.Context(), Opened)
	g.admits(home, "ann", Opened)
}

func TestConcurrentLoginsAreLimited(t *testing.T) {
	g := newTestShield(t, nil)
	g.set.Concurrent = 2
	a, err := g.Admit(t.Context(), &g.set, home, "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := g.Admit(t.Context(), &g.set, home, "")
	if err != nil {
		t.Fatal(err)
	}
	g.refuses(office, "ann", Busy, time.Second)
	a.Done(t.Context(), Unjudged)
	g.admits(office, "ann", Opened)
	b.Done(t.Context(), Unjudged)
	if n := g.concurrent.Load(); n != 0 {
		t.Errorf("%d logins remain in flight", n)
	}
}

func TestBreaker(t *testing.T) {
	g := newTestShield(t, nil)
	for range 9 {
		g.admits(home, "", Unanswered)
	}
	g.admits(home, "", Refused) // an answer resets the count
	for range 10 {
		g.admits(home, "", Unanswered)
	}
	g.refuses(home, "", Broken, time.Second)
	for _, pause := range []time.Duration{2, 4, 8, 16, 30, 30} {
		g.pass(30 * time.Second)
		probe, err := g.Admit(t.Context(), &g.set, home, "")
		if err != nil {
			t.Fatal(err)
		}
		g.refuses(office, "", Broken, time.Second) // one probe at a time
		probe.Done(t.Context(), Unanswered)
		g.refuses(home, "", Broken, pause*time.Second)
	}
	g.pass(30 * time.Second)
	g.admits(home, "", Unjudged) // a probe without a result is repeated
	g.admits(home, "", Opened)
	g.admits(home, "", Opened)
}

func TestFloodOfNamesDoesNotEvictFailures(t *testing.T) {
	g := newTestShield(t, nil)
	g.users, g.addresses = newTable(1000), newTable(1000)
	for range 6 {
		g.admits(netip.Addr{}, "ann", Refused)
	}
	for i := range 20_000 {
		g.admits(netip.Addr{}, fmt.Sprint("nobody", i), Refused)
	}
	g.refuses(netip.Addr{}, "ann", Throttled, time.Second)
	if n := len(g.users.entries); n > 1000 {
		t.Errorf("%d names are stored, want at most 1000", n)
	}
}

// outage is a Shared that fails while broken is set.
type outage struct {
	Shared
	mu     sync.Mutex
	broken bool
	calls  int
}

func (o *outage) fails() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls++
	return o.broken
}

func (o *outage) set(broken bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broken = broken
}

var errOutage = errors.New("connection refused")

func (o *outage) Load(ctx context.Context, k []Key) ([]Count, error) {
	if o.fails() {
		return nil, errOutage
	}
	return o.Shared.Load(ctx, k)
}

func (o *outage) Fail(ctx context.Context, k Key, l Limit) (Count, error) {
	if o.fails() {
		return Count{}, errOutage
	}
	return o.Shared.Fail(ctx, k, l)
}

func (o *outage) Forget(ctx context.Context, k Key) error {
	if o.fails() {
		return errOutage
	}
	return o.Shared.Forget(ctx, k)
}

func TestGatewayCountsLocallyDuringOutage(t *testing.T) {
	var log strings.Builder
	o := &outage{Shared: newRedis(t), broken: true}
	g := newTestShield(t, o)
	g.shared.Logger = slog.New(slog.NewTextHandler(&log, nil))
	for range 6 {
		g.admits(home, "zebedee", Refused)
	}
	g.refuses(home, "zebedee", Throttled, time.Second)
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, &log)
	}
	if strings.Contains(log.String(), "zebedee") {
		t.Errorf("the log names a user:\n%s", &log)
	}
	if o.calls > 2 {
		t.Errorf("%d calls within the pause", o.calls)
	}

	o.set(false)
	g.pass(2 * time.Second) // the store is available and empty: unshared failures still count
	g.admits(home, "zebedee", Refused)
	g.refuses(home, "zebedee", Throttled, 2*time.Second)
	if n := strings.Count(log.String(), "shared with other gateways again"); n != 1 {
		t.Errorf("%d recoveries logged, want 1:\n%s", n, &log)
	}
}
