package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/redisconn"
	"gatepost/tokens"
)

func TestLeaseEndsByFasterClock(t *testing.T) {
	now := time.Now()
	var l lease
	if l.held(now) {
		t.Error("a new lease is held")
	}
	l.extend(now, time.Second)
	for after, want := range map[time.Duration]bool{0: true, 999 * time.Millisecond: true, time.Second: false, time.Hour: false} {
		if got := l.held(now.Add(after)); got != want {
			t.Errorf("after %v: held %v", after, got)
		}
	}
	// The machine was suspended: the wall clock went on, the monotonic clock stopped.
	l.term.Store(&term{end: now.Add(time.Second), wall: now.Add(-time.Minute).UnixNano()})
	if l.held(now) {
		t.Error("a lease is held after its end by the wall clock")
	}
	l.extend(now, time.Second)
	l.end()
	if l.held(now) {
		t.Error("an ended lease is held")
	}
}

// docs/operations.md, "A slow Redis", has three round trips. They follow from the lease, its heartbeats, the commands
// of the handshake (HELLO, CLIENT TRACKING, SUBSCRIBE, ROLE) and the timeout of a call.
func TestLimitsOfASlowRedisAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	options, err := redisconn.ParseURL("redis://127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	tracker, err := Track(client(t, "127.0.0.1:1"), RedisConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer tracker.Close()
	const handshake = 4
	call := options.Timeout.Milliseconds()
	for _, row := range []string{
		fmt.Sprintf("| %d ms | a gateway cannot begin to track Redis", (tracker.lease / handshake).Milliseconds()),
		fmt.Sprintf("| %d ms | a question fails", call),
		fmt.Sprintf("| %d ms, or %d ms after an interruption | tokens in memory", (tracker.lease - tracker.lease/heartbeats).Milliseconds(), call),
	} {
		if !strings.Contains(string(page), "\n"+row) {
			t.Errorf("the page has no row %q", row)
		}
	}
}

func TestLeaseHolders(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	g := gateways{since: start, lastHeartbeat: map[string]time.Time{}}
	record := func(id string, ms int) { g.record(notice{"here", id, "", 0}, at(ms)) }
	record("a", 100)
	record("b", 900)
	record("a", 1050)
	if _, ok := g.leaseHolders(at(1000), time.Second); ok {
		t.Error("all gateways are known after less than a lease")
	}
	for ms, want := range map[int]string{1100: "a b", 1915: "a b", 2000: "a", 2100: ""} {
		holders, ok := g.leaseHolders(at(ms), time.Second)
		var got []string
		for _, id := range []string{"a", "b"} {
			if holders[id] {
				got = append(got, id)
			}
		}
		if !ok || strings.Join(got, " ") != want {
			t.Errorf("at %d ms: %v (%v), want %q", ms, got, ok, want)
		}
	}
}

func TestTooManyGatewaysAreNotAllKnown(t *testing.T) {
	start := time.Now()
	g := gateways{since: start, lastHeartbeat: map[string]time.Time{}}
	for range 3 * maxGateways {
		id := randomHash()
		g.record(notice{"here", id.Hex(), "", 0}, start)
	}
	if len(g.lastHeartbeat) > maxGateways+1 {
		t.Errorf("%d are remembered", len(g.lastHeartbeat))
	}
	if _, ok := g.leaseHolders(start.Add(2*time.Second), time.Second); ok {
		t.Error("all gateways are known although there are too many")
	}
}

func TestNoticesRoundTrip(t *testing.T) {
	for _, n := range []notice{{"here", "0a", "", 250}, {"settle", "0a", "node", 1 << 40}} {
		if got, ok := parseNotice(n.String()); !ok || got != n {
			t.Errorf("%v was parsed as %v (%v)", n, got, ok)
		}
	}
	for _, text := range []string{"", "here", "here   1", "here a  -1", "here a  x", "here a b 1 2"} {
		if n, ok := parseNotice(text); ok {
			t.Errorf("%q was parsed as %v", text, n)
		}
	}
}

func TestReadMessages(t *testing.T) {
	text := func(kind byte, s string) message { return message{kind: kind, text: s} }
	for in, want := range map[string]message{
		"+OK\r\n":                     text('+', "OK"),
		"-ERR no\r\n":                 text('-', "ERR no"),
		":-12\r\n":                    text(':', "-12"),
		"$5\r\na\r\nbc\r\n":           text('$', "a\r\nbc"),
		"$0\r\n\r\n":                  text('$', ""),
		"$-1\r\n":                     {kind: '$', null: true},
		"_\r\n":                       {kind: '_', null: true},
		"*-1\r\n":                     {kind: '*', null: true},
		"=7\r\ntxt:abc\r\n":           text('=', "abc"),
		"%1\r\n+a\r\n:1\r\n":          {kind: '%', items: []message{text('+', "a"), text(':', "1")}},
		"|1\r\n+ttl\r\n:1\r\n+OK\r\n": text('+', "OK"),
		">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n": {kind: '>', items: []message{text('$', "invalidate"), {kind: '*', items: []message{text('$', "a")}}}},
		">2\r\n$10\r\ninvalidate\r\n_\r\n":             {kind: '>', items: []message{text('$', "invalidate"), {kind: '_', null: true}}},
	} {
		got, err := newReader(strings.NewReader(in)).read()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("reading %q: got %v, %v, want %v", in, got, err, want)
		}
	}
}

func TestInvalidMessagesAreErrors(t *testing.T) {
	deep := strings.Repeat("*1\r\n", maxDepth+2)
	for _, in := range []string{"\r\n", "+\n", "?1\r\n", "$x\r\n", "$-2\r\n", "$99999999999\r\n", "$1\r\nab\r\n", "*9999999\r\n",
		"+" + strings.Repeat("x", 2*maxLine), deep, "*2\r\n+a\r\n", "$5\r\nab", "=2\r\nab\r\n"} {
		if m, err := newReader(strings.NewReader(in)).read(); err == nil {
			t.Errorf("reading %.40q: got %v, want an error", in, m)
		} else if !errors.Is(err, errProtocol) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%.40q: %v", in, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, seed := range []string{"+OK\r\n", ">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\na\r\n\r\n", "%1\r\n+a\r\n:1\r\n", "|1\r\n+a\r\n+b\r\n_\r\n", "*1\r\n*1\r\n*-1\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newReader(bytes.NewReader(in))
		read := 0
		for {
			m, err := r.read()
			if err != nil {
				break
			}
			read += sizeOfMessage(m)
			if read > 16*len(in) {
				t.Fatalf("%d bytes were read as %d", len(in), read)
			}
		}
	})
}

func sizeOfMessage(m message) int {
	n := 1 + len(m.text)
	for _, item := range m.items {
		n += sizeOfMessage(item)
	}
	return n
}

func FuzzCommandsRoundTrip(f *testing.F) {
	f.Add("PUBLISH", "a\r\nb")
	f.Fuzz(func(t *testing.T, a, b string) {
		m, err := newReader(bytes.NewReader(appendCommand(nil, a, b))).read()
		if err != nil || len(m.items) != 2 || m.items[0].text != a || m.items[1].text != b {
			t.Fatalf("%q %q was read as %v, %v", a, b, m, err)
		}
	})
}

func TestClusterMasters(t *testing.T) {
	const nodes = `bbb 127.0.0.1:7001@17001 master - 0 1426238316232 2 connected 5461-10922
ccc 127.0.0.1:7002@17002,host master - 0 1426238318243 3 connected
aaa 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-5460
ddd 127.0.0.1:7003@17003 slave aaa 0 1426238317741 1 connected
eee 127.0.0.1:7004@17004 master,fail - 1426238316232 1426238316232 4 disconnected
fff 127.0.0.1:7005@17005 handshake - 0 0 0 connected
ggg 127.0.0.1:7006@17006 master,fail? - 0 0 5 connected 10923-16383
`
	ids, myself := clusterMasters(nodes)
	if ids != "aaa bbb ccc ggg" || myself != "aaa" {
		t.Fatalf("%q, %q", ids, myself)
	}
	for node := range clusterNodes(nodes) {
		if node.id == "ccc" && node.address != "127.0.0.1:7002" {
			t.Errorf("the address before the hostname is %q", node.address)
		}
	}
}

// A look-up runs in a goroutine of the cache, so the cache must recover its panics.
func TestPanicInLookupFailsAllCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		release := make(chan bool)
		var nobody *tokens.Session
		store := &fullStore{before: func(context.Context, tokens.Hash) error {
			<-release
			nobody.User = "x"
			return nil
		}}
		c, err := New(store, &alwaysHeld{}, Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), MaxLookups: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		h := randomHash()
		errs := make(chan error, 2)
		for range 2 {
			go func() { _, err := c.Principal(t.Context(), h); errs <- err }()
		}
		synctest.Wait() // both callers wait for one look-up
		close(release)
		for range 2 {
			if err := <-errs; !errors.Is(err, tokens.ErrUnavailable) {
				t.Errorf("%v, want %v", err, tokens.ErrUnavailable)
			}
		}
		if n := strings.Count(log.String(), "\n"); n != 1 || c.panics.Load() != 1 || !strings.Contains(log.String(), "units_test.go") {
			t.Errorf("%d counted, the log is %s", c.panics.Load(), &log)
		}
		nobody = new(tokens.Session)
		if got, err := c.Principal(t.Context(), h); err != nil || got.IsZero() {
			t.Errorf("after the panic: %v, %v", got, err)
		}
	})
}
