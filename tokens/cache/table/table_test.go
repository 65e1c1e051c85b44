package table_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"gatepost/envoy/module/moduletest"
	"gatepost/tokens/cache/table"
	"gatepost/tokens/cache/table/tabletest"
)

func TestHitChangesRequestAsGatepostDoes(t *testing.T) {
	r := newFixture(t)
	r.table.Put(0, r.entry())
	for _, test := range []struct {
		name, flags string
		longest     time.Duration
		headers     []string
		want        string
	}{
		{"token removed, user added", "-", 5 * time.Minute, []string{alice, "accept=x"}, "hit accept=x x-user-id=alice"},
		{"the client's own header is replaced", "-", 5 * time.Minute, []string{alice, "x-user-id=bob", "x-user-id=eve"}, "hit x-user-id=alice"},
		{"token forwarded", "f", 5 * time.Minute, []string{alice}, "hit " + alice + " x-user-id=alice"},
		{"a request that could outlast the token ends with it", "-", 2 * time.Hour, []string{alice}, "hit x-envoy-upstream-stream-duration-ms=3600000 x-user-id=alice"},
		{"a WebSocket ends with the token", "-", 0, []string{alice}, "hit x-envoy-upstream-stream-duration-ms=3600000 x-user-id=alice"},
		{"another token", "-", 5 * time.Minute, []string{"authorization=Bearer bob-token"}, "miss authorization=Bearer bob-token"},
		{"the same token in another form", "-", 5 * time.Minute, []string{"authorization=alice-token"}, "miss authorization=alice-token"},
		{"no token", "-", 5 * time.Minute, []string{"x-user-id=bob"}, "miss x-user-id=bob"},
		{"an empty token", "-", 5 * time.Minute, []string{"authorization="}, "miss authorization="},
		{"two tokens", "-", 5 * time.Minute, []string{alice, alice}, "miss " + alice + " " + alice},
		{"an input that the decision lacks", "o", 5 * time.Minute, []string{alice, "origin=https://a.example"}, "miss " + alice + " origin=https://a.example"},
		{"an empty input counts as absent", "ocs", 5 * time.Minute, []string{alice, "cookie="}, "hit cookie= x-user-id=alice"},
		{"a header that is not an input", "-", 5 * time.Minute, []string{alice, "origin=https://a.example"}, "hit origin=https://a.example x-user-id=alice"},
		{"longer than the hashed message", "c", 5 * time.Minute, []string{alice, "cookie=" + strings.Repeat("c", 4096)}, "miss " + alice + " cookie=" + strings.Repeat("c", 4096)},
	} {
		t.Run(test.name, func(t *testing.T) {
			r.Route(rule, test.longest, test.flags)
			if got := r.Request(test.headers...); got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// The access log of a hit has the session, if there is an access log and the slot has room beside the user's id.
func TestHitHasSession(t *testing.T) {
	const id = "3f1c9a52-7b1e-4c07-9d2f-0a6b5c4d3e2f"
	r := newFixture(t)
	for _, test := range []struct {
		name, user, flags string
		session           uuid.UUID
		want              string
	}{
		{"a UUID as user", id, "l", uuid.MustParse(id), " @session=" + id},
		{"the longest user beside a session", strings.Repeat("u", 39), "l", uuid.MustParse(id), " @session=" + id},
		{"no access log", "alice", "-", uuid.MustParse(id), ""},
		{"no session", "alice", "l", uuid.Nil, ""},
		{"a long user", strings.Repeat("u", 40), "l", uuid.MustParse(id), ""},
		{"the longest user", strings.Repeat("u", 55), "l", uuid.MustParse(id), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := r.entry()
			e.User, e.Session = test.user, test.session
			r.table.Put(0, e)
			r.Route(rule, 5*time.Minute, test.flags)
			if got, want := r.Request(alice), "hit"+test.want+" x-user-id="+test.user; got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

// The access log has the path of each request, without the query and cut off, as it was before a route rewrites it.
func TestPathIsKeptForTheAccessLog(t *testing.T) {
	r := newFixture(t)
	r.table.Put(0, r.entry())
	long := "/orders/" + strings.Repeat("x", 2000)
	for _, test := range []struct{ flags, path, want string }{
		{"l", "/orders/5", "@path=/orders/5"},
		{"l", "/orders/5?token=secret", "@path=/orders/5"},
		{"l", long, "@path=" + long[:1024]},
		{"-", "/orders/5", ""},
	} {
		r.Route(rule, 5*time.Minute, test.flags)
		for _, token := range []string{alice, "authorization=bob-token"} { // a hit and a miss
			kept := ""
			for field := range strings.FieldsSeq(r.Request(token, ":path="+test.path)) {
				if strings.HasPrefix(field, "@path") {
					kept = field
				}
			}
			if kept != test.want {
				t.Errorf("%s, %.30s: kept %.40q, want %.40q", test.flags, test.path, kept, test.want)
			}
		}
	}
}

func TestEveryInputCounts(t *testing.T) {
	r := newFixture(t)
	e := r.entry()
	e.Inputs = [4]string{"Bearer alice-token", "https://a.example", "a=1", "chat"}
	r.table.Put(0, e)
	r.Route(rule, time.Minute, "ocs")
	same := []string{alice, "origin=https://a.example", "cookie=a=1", "sec-websocket-protocol=chat"}
	if got := r.Request(same...); !strings.HasPrefix(got, "hit ") {
		t.Errorf("the same request: %s", got)
	}
	for i, other := range []string{"authorization=Bearer alice-tokem", "origin=https://b.example", "cookie=a=2", "sec-websocket-protocol=chatt"} {
		changed := append([]string{}, same...)
		changed[i] = other
		if got := r.Request(changed...); !strings.HasPrefix(got, "miss") {
			t.Errorf("with %s: %s", other, got)
		}
		changed = append(append([]string{}, same[:i]...), same[i+1:]...)
		if got := r.Request(changed...); !strings.HasPrefix(got, "miss") {
			t.Errorf("without %s: %s", same[i], got)
		}
		if got := r.Request(append(changed, same[i], other)...); !strings.HasPrefix(got, "miss") {
			t.Errorf("with both %s and %s: %s", same[i], other, got)
		}
	}
	// The boundary between two values is part of the hash.
	if got := r.Request(alice, "origin=https://a.examplea", "cookie==1", "sec-websocket-protocol=chat"); !strings.HasPrefix(got, "miss") {
		t.Errorf("the same bytes with another boundary: %s", got)
	}
}

func TestEndOfDecision(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(r *fixture)
	}{
		{"token dropped", func(r *fixture) { r.table.Drop(hash("alice-token")) }},
		{"all invalidated", func(r *fixture) { r.table.Reset(1); r.extend() }},
		{"table closed", func(r *fixture) { _ = r.table.Close() }},
		{"lifetime over", func(r *fixture) { r.advance(time.Minute) }},
		{"token expired", func(r *fixture) { r.clock.Wall = r.clock.Wall.Add(time.Hour); r.advance(0) }},
		{"lease not held", func(r *fixture) { r.clock.Instant = r.clock.Add(time.Second); r.At(r.clock.Instant) }},
		{"lease ended by the wall clock of a paused machine", func(r *fixture) { r.clock.Wall = r.clock.Wall.Add(time.Second); r.At(r.clock.Instant) }},
		{"lease longer than the maximum", func(r *fixture) { r.table.Extend(r.clock.Add(time.Hour)) }},
		{"boot clock of an earlier boot", func(r *fixture) { r.clock.Boot = time.Second; r.At(r.clock.Instant) }},
		{"another rule", func(r *fixture) { r.Must("route 1 %032x 300000 - x-user-id %016x", 1, 1) }},
		{"table replaced", func(r *fixture) { _ = r.table.Close(); r.create(); r.advance(20 * time.Millisecond) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newFixture(t)
			r.table.Put(0, r.entry())
			if got := r.Request(alice); got != "hit x-user-id=alice" {
				t.Fatalf("before: %s", got)
			}
			test.end(r)
			if got := r.Request(alice); got != "miss "+alice {
				t.Errorf("after: %s", got)
			}
		})
	}
}

// A token in use is checked each minute, so its last use is known to a minute (package lastseen).
func TestUsedTokenIsCheckedEachMinute(t *testing.T) {
	r := newFixture(t)
	hits, since := 0, time.Duration(0) // since the last check
	for range 600 {
		r.advance(time.Second)
		since += time.Second
		if r.Hits("Bearer alice-token") {
			hits++
			continue
		}
		if hits > 0 && (since < table.MinLifetime || since > table.MaxLifetime+time.Second) {
			t.Errorf("checked after %v, want %v to %v", since, table.MinLifetime, table.MaxLifetime)
		}
		r.table.Put(0, r.entry())
		since = 0
	}
	if hits < 500 || hits > 590 {
		t.Errorf("%d hits in 600 requests", hits)
	}
}

func TestOtherDecisionsStay(t *testing.T) {
	r := newFixture(t)
	r.table.Put(0, r.entry())
	bob := r.entry()
	bob.Inputs[0], bob.Token, bob.User = "Bearer bob-token", hash("bob-token"), "bob"
	r.table.Put(0, bob)
	second := r.entry()
	second.Rule[1] = 1
	r.table.Put(0, second)
	r.table.Drop(hash("alice-token"))
	if got := r.Request("authorization=Bearer bob-token"); got != "hit x-user-id=bob" {
		t.Errorf("bob: %s", got)
	}
	r.Must("route 1 %x 300000 - x-user-id %016x", second.Rule, 1)
	if got := r.Request(alice); !strings.HasPrefix(got, "miss") {
		t.Errorf("alice at another service: %s", got)
	}
}

func TestEntriesThatAreNotWritten(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*table.Entry)
	}{
		{"user longer than a slot", func(e *table.Entry) { e.User = strings.Repeat("u", 56) }},
		{"no user", func(e *table.Entry) { e.User = "" }},
		{"no Authorization", func(e *table.Entry) { e.Inputs[0] = "" }},
		{"a user that is not a header value", func(e *table.Entry) { e.User = "alice\r\nx-admin: 1" }},
		{"expired", func(e *table.Entry) { e.Expires = e.Expires.Add(-time.Hour) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newFixture(t)
			e := r.entry()
			test.change(e)
			r.table.Put(0, e)
			if got := r.Request(alice); got != "miss "+alice {
				t.Error(got)
			}
		})
	}
	t.Run("the longest user", func(t *testing.T) {
		r := newFixture(t)
		e := r.entry()
		e.User = strings.Repeat("u", 55)
		r.table.Put(0, e)
		if got := r.Request(alice); got != "hit x-user-id="+e.User {
			t.Error(got)
		}
	})
}

// An entry is written after the Reset of a lost tracking connection, which began a new epoch.
func TestEntryOfAnOlderEpoch(t *testing.T) {
	r := newFixture(t)
	e := r.entry() // looked up in epoch 0
	r.table.Reset(1)
	r.extend()
	r.table.Put(0, e)
	if got := r.Request(alice); got != "miss "+alice {
		t.Errorf("an entry of the earlier epoch: %s", got)
	}
	r.table.Put(1, e)
	if got := r.Request(alice); got != "hit x-user-id=alice" {
		t.Errorf("an entry of this epoch: %s", got)
	}
	r.table.Reset(3)
	r.table.Reset(2) // it began before, and ends later
	r.table.Put(2, e)
	r.table.Put(3, e)
	if got := r.Request(alice); got != "miss "+alice {
		t.Errorf("before the lease is held again: %s", got)
	}
	r.extend()
	if got := r.Request(alice); got != "hit x-user-id=alice" {
		t.Errorf("an entry of the newest epoch: %s", got)
	}
	r.table.Reset(2)
	r.extend()
	r.table.Put(2, e)
	if got := r.Request(alice); got != "miss "+alice {
		t.Errorf("an entry of an epoch before the newest: %s", got)
	}
}

// The test writes more decisions than fit. Each is found with its user or not at all, the newest is
// found, and every token can be dropped.
func TestFullBucket(t *testing.T) {
	r := newFixture(t)
	const many = 3000
	for i := range many {
		e := r.entry()
		e.Inputs[0], e.Token, e.User = fmt.Sprintf("t%d", i), hash(fmt.Sprintf("t%d", i)), fmt.Sprintf("u%d", i)
		r.table.Put(0, e)
		if i%97 == 0 {
			if got := r.Request("authorization=" + e.Inputs[0]); got != "hit x-user-id="+e.User {
				t.Fatalf("%d, after the write: %s", i, got)
			}
		}
	}
	found := 0
	for i := range many {
		got := r.Request(fmt.Sprintf("authorization=t%d", i))
		switch {
		case got == fmt.Sprintf("hit x-user-id=u%d", i):
			found++
		case strings.HasPrefix(got, "hit"):
			t.Fatalf("t%d: %s", i, got)
		}
	}
	if found < 900 || found > 1024 {
		t.Errorf("%d decisions are found in a table of 1024", found)
	}
	for i := range many {
		r.table.Drop(hash(fmt.Sprintf("t%d", i)))
	}
	for i := range many {
		if got := r.Request(fmt.Sprintf("authorization=t%d", i)); strings.HasPrefix(got, "hit") {
			t.Fatalf("t%d after Drop: %s", i, got)
		}
	}
}

// hits returns the hits of a service from the hits file.
func (r *fixture) hits(service string) uint64 { return r.table.Hits().Of(service) }

func TestHitsAreCountedByService(t *testing.T) {
	r := newFixture(t)
	r.table.Put(0, r.entry())
	for range 3 {
		r.Request(alice)
	}
	r.Request("authorization=x")
	r.Route(rule, time.Minute, "-") // keeps the counts
	r.Request(alice)
	r.Must("route 1 %x 300000 - x-user-id %016x", rule, table.ServiceID("items"))
	r.Request(alice)
	if orders, items, none := r.hits("orders"), r.hits("items"), r.hits("parts"); orders != 4 || items != 1 || none != 0 {
		t.Errorf("%d, %d and %d hits are counted, want 4, 1 and 0", orders, items, none)
	}
	_ = r.table.Close()
	if r.hits("orders") != 0 {
		t.Error("a closed table has hits")
	}
	r.create()
	r.advance(20 * time.Millisecond)
	r.table.Put(0, r.entry())
	r.Request(alice)
	if orders, items := r.hits("orders"), r.hits("items"); orders != 0 || items != 1 {
		t.Errorf("in a new table %d and %d hits are counted, want 0 and 1", orders, items)
	}
}

// Services with the same hash slot take successive slots.
func TestServicesThatShareASlot(t *testing.T) {
	r := newFixture(t)
	r.table.Put(0, r.entry())
	first := table.ServiceID("orders")
	for i, id := range []uint64{first, first + 32768, first + 2*32768, first + 1} {
		r.Must("route 1 %x 300000 - x-user-id %016x", rule, id)
		for range i + 1 {
			r.Request(alice)
		}
	}
	file, err := os.ReadFile(r.path + ".hits")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		at := (first + uint64(i)) % 32768 * 16
		if n := binary.NativeEndian.Uint64(file[at+8:]); n != uint64(i+1) {
			t.Errorf("slot %d has %d hits, want %d", i, n, i+1)
		}
	}
}

// Without a valid hits file the table is not used, so every hit is counted.
func TestTableWithoutHitsFile(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"absent":          os.Remove,
		"cut short":       func(path string) error { return os.Truncate(path, 100) },
		"too long":        func(path string) error { return os.Truncate(path, 1<<20) },
		"a symbolic link": func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)) },
		"a folder":        func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newFixture(t)
			if err := spoil(r.path + ".hits"); err != nil {
				t.Fatal(err)
			}
			r.table.Put(0, r.entry())
			if got := r.Request(alice); got != "miss "+alice {
				t.Error(got)
			}
		})
	}
}

// A table that cannot be created leaves no file. Some starts would fill the shared memory with them.
func TestTableThatCannotBeCreatedLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, taken := range []string{"table", "table.hits"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "table")
		if err := os.MkdirAll(filepath.Join(dir, taken, "a folder"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := table.Create(path, 1024, nil); err == nil {
			t.Fatalf("created in place of the folder %s", taken)
		}
		left, err := filepath.Glob(filepath.Join(dir, "*.*[0-9]"))
		if err != nil || len(left) > 0 {
			t.Errorf("%s cannot be replaced, and %q is left, %v", taken, left, err)
		}
	}
}

// A request whose header of scopes cannot be removed is refused: neither the upstream nor Gatepost may receive it.
func TestHeaderOfScopesThatStays(t *testing.T) {
	r := newFixture(t)
	r.table.Put(0, r.entry())
	for _, test := range []struct{ flags, cannot, want string }{
		{"v", "x-other", "hit x-user-id=alice"}, {"v", scopeHeader, "503 " + alice + " " + scopeHeader + "=/orders"},
		{"-", scopeHeader, "hit " + scopeHeader + "=/orders x-user-id=alice"}, // the strip filter removes it
	} {
		r.Route(rule, 5*time.Minute, test.flags)
		r.Must("fail %s", test.cannot)
		if got := r.Request(alice, scopeHeader+"=/orders"); got != test.want {
			t.Errorf("with %s, %s stays: %q, want %q", test.flags, test.cannot, got, test.want)
		}
	}
}

// Before the route is found the module removes each header that no client may send, however often it is there, and
// names the scope by the path without its query.
func TestEarlyHeaders(t *testing.T) {
	r := newFixture(t)
	for _, test := range []struct{ headers, want string }{
		{":path=/orders/5?x=/ host=a", ":path=/orders/5?x=/ host=a x-forwarded-host=/orders/5"},
		{"host=a", "host=a x-forwarded-host="},
		{":path=/a x-forwarded-host=/b x-forwarded-host=/c", ":path=/a x-forwarded-host=/a"},
		{"proxy=1 x-real-ip=1 :path=/a proxy=2 host=a x-real-ip=3 proxy=4", ":path=/a host=a x-forwarded-host=/a"},
		{":path=/a proxy-authorization=1 x-envoy=1 x-envoy-=1 x-envoy-b=1 prox=1", ":path=/a prox=1 proxy-authorization=1 x-envoy=1 x-forwarded-host=/a"},
		{":path=/a x-forwarded-for=1 x-forwarded-proto=1 x-forwarded-prot=1 x-forwarded-proto-=1 x-forwarded=1", ":path=/a x-forwarded-for=1 x-forwarded-host=/a x-forwarded-proto=1 x-forwarded=1"},
		{":path=/a x-http-methods=1 x-http=1 x-method=1 x-method-override=1", ":path=/a x-forwarded-host=/a x-http=1 x-method=1"},
		{strings.Repeat("x-envoy-a=1 x-original-b=1 ", 30) + ":path=/a", ":path=/a x-forwarded-host=/a"},
	} {
		if got := r.Early(strings.Fields(test.headers)...); got != test.want {
			t.Errorf("%s: %q, want %q", test.headers, got, test.want)
		}
	}
}

// A refused header that stays ends Envoy: it is neither forwarded nor removed again and again.
func TestEarlyHeaderThatStays(t *testing.T) {
	cmd := exec.Command(moduletest.Compile(t, "driver"))
	cmd.Stdin = strings.NewReader("fail proxy\nearly x=31 proxy=31\n")
	out, err := cmd.Output()
	if err == nil || err.Error() != "signal: aborted" || string(out) != "ok\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// A hit respects the listener's header limits, as ext_authz does.
func TestHitRespectsListenerLimits(t *testing.T) {
	r := newFixture(t)
	r.table.Put(0, r.entry())
	for _, test := range []struct {
		headers, bytes int
		want           string
	}{{61, 1, "hit"}, {62, 1, "miss"}, {70, 1, "miss"}, {1, 16_000, "hit"}, {1, 16_300, "miss"}, {1, 20_000, "miss"}} {
		headers := []string{alice}
		for i := range test.headers {
			headers = append(headers, fmt.Sprintf("x-%d=%s", i, strings.Repeat("x", test.bytes)))
		}
		if got, _, _ := strings.Cut(r.Request(headers...), " "); got != test.want {
			t.Errorf("%d more headers of %d bytes: %s, want %s", test.headers, test.bytes, got, test.want)
		}
	}
}

// Decisions with a message of each length modulo eight check the module's hash against the
// writer's.
func TestSipHashOfTheModule(t *testing.T) {
	r := newFixture(t)
	for n := range 20 {
		e := r.entry()
		e.Inputs[0] = strings.Repeat("x", n+1)
		r.table.Put(0, e)
		if got := r.Request("authorization=" + e.Inputs[0]); got != "hit x-user-id=alice" {
			t.Errorf("%d bytes: %s", n+1, got)
		}
	}
}

// A message of the longest length is found, whichever two headers make it long. One byte more, or far more in the
// second header, is a miss.
func TestLongestMessage(t *testing.T) {
	const room = 4096 - 16 - 4*2 // beside the rule and the lengths
	r := newFixture(t)
	r.Route(rule, time.Minute, "ocs")
	names := [4]string{"authorization", "origin", "cookie", "sec-websocket-protocol"}
	for first := range names {
		for second := first + 1; second < len(names); second++ {
			for _, short := range []int{0, 1, 100} { // of the second header
				e := r.entry()
				e.Inputs = [4]string{"t"}
				e.Inputs[second] = strings.Repeat("y", short)
				e.Inputs[first] = strings.Repeat("x", room-short-min(first, 1)) // the token has a byte
				for _, test := range []struct {
					more int // in the second header
					want string
				}{{0, "hit"}, {1, "miss"}, {8000, "miss"}} {
					e.Inputs[second] = strings.Repeat("y", short+test.more)
					r.table.Put(0, e)
					var headers []string
					for i, name := range names {
						if e.Inputs[i] != "" {
							headers = append(headers, name+"="+e.Inputs[i])
						}
					}
					if got, _, _ := strings.Cut(r.Request(headers...), " "); got != test.want {
						t.Errorf("%d bytes of %s and %d of %s: %s, want %s", len(e.Inputs[first]), names[first], short+test.more, names[second], got, test.want)
					}
				}
			}
		}
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	d := tabletest.Start(t)
	for _, line := range []string{
		"config relative/path", "config /" + strings.Repeat("p", 4096),
		"route ", "route 2 " + strings.Repeat("ab", 16) + " 1 - x-user-id 00000000000000ab",
		"route 1 " + strings.Repeat("ab", 15) + " 1 - x-user-id 00000000000000ab", "route 1 " + strings.Repeat("ab", 16) + " 1 - x-user-id ",
		"route 1 " + strings.Repeat("ab", 16) + " 18446744073710 - x-user-id 00000000000000ab", // more nanoseconds than a number can be
		"route 1 " + strings.Repeat("ab", 16) + " -1 - x-user-id 00000000000000ab", "route 1 " + strings.Repeat("ab", 16) + " 1 x x-user-id 00000000000000ab",
		"route 1 " + strings.Repeat("ab", 16) + " 1 - " + strings.Repeat("h", 128) + " 00000000000000ab",
		"route 1 " + strings.Repeat("ab", 16) + " 1 - x-user-id 0000000000000000", "route 1 " + strings.Repeat("ab", 16) + " 1 - x-user-id 00000000000000AB",
		"route 1 " + strings.Repeat("ab", 16) + " 1 - x-user-id ab", "route 1 " + strings.Repeat("ab", 16) + " 1 - x-user-id 00000000000000ab" + strings.Repeat("s", 1024),
	} {
		if got := d.Do("%s", line); got != "refused" {
			t.Errorf("%.60s: %s", line, got)
		}
	}
}

// slot returns the offset in the table's file of the slot in use.
func (r *fixture) slot(file []byte) int64 {
	r.t.Helper()
	for at := 16 * 8; at < len(file); at += 12 * 8 {
		if binary.NativeEndian.Uint64(file[at+8:]) != 0 {
			return int64(at)
		}
	}
	r.t.Fatal("no slot is in use")
	return 0
}

// edit changes the table's file, as only its writer should.
func (r *fixture) edit(change func(file []byte) (at int64, to []byte)) {
	r.t.Helper()
	file, err := os.ReadFile(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	at, to := change(file)
	f, err := os.OpenFile(r.path, os.O_WRONLY, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(to, at); err != nil {
		r.t.Fatal(err)
	}
}

// An odd sequence, as in the middle of a write, is a miss.
func TestTornWritesAreMisses(t *testing.T) {
	for name, at := range map[string]func(r *fixture, file []byte) int64{
		"lease": func(*fixture, []byte) int64 { return 8 * 8 },
		"slot":  (*fixture).slot,
	} {
		t.Run(name, func(t *testing.T) {
			r := newFixture(t)
			r.table.Put(0, r.entry())
			flip := func() {
				r.edit(func(file []byte) (int64, []byte) { return at(r, file), []byte{file[at(r, file)] ^ 1} })
			}
			flip()
			if got := r.Request(alice); got != "miss "+alice {
				t.Errorf("during the write: %s", got)
			}
			flip()
			if got := r.Request(alice); got != "hit x-user-id=alice" {
				t.Errorf("after the write: %s", got)
			}
		})
	}
}

// A Gatepost that is killed while it writes the lease leaves its table torn. The next one's is used.
func TestTableAfterATornOneIsUsed(t *testing.T) {
	r := newFixture(t)
	const sequence = 8 * 8
	r.edit(func(file []byte) (int64, []byte) { return sequence, []byte{file[sequence] ^ 1} })
	if got := r.Request(alice); got != "miss "+alice {
		t.Fatalf("with the torn table: %s", got)
	}
	r.create()
	r.table.Put(0, r.entry())
	r.advance(20*time.Millisecond - 1)
	if got := r.Request(alice); got != "miss "+alice {
		t.Errorf("less than 20 ms after the module looked for another table: %s", got)
	}
	r.advance(1)
	if got := r.Request(alice); got != "hit x-user-id=alice" {
		t.Errorf("with the next table: %s", got)
	}
}

// A miss does not map the table again: each use after that would begin with page faults.
func TestTableStaysMapped(t *testing.T) {
	r := newFixture(t)
	if got := r.Request(alice); got != "miss "+alice {
		t.Fatalf("without a decision: %s", got)
	}
	if err := os.Remove(r.path + ".hits"); err != nil { // the table cannot be mapped again
		t.Fatal(err)
	}
	r.advance(20 * time.Millisecond)
	if got := r.Request(alice); got != "miss "+alice {
		t.Fatalf("without a decision, once more: %s", got)
	}
	r.table.Put(0, r.entry())
	if got := r.Request(alice); got != "hit x-user-id=alice" {
		t.Errorf("after two misses: %s", got)
	}
}

// The lease is written after the module has read a slot, and before it uses the decision: all could be invalidated.
func TestLeaseIsCheckedAfterTheSlot(t *testing.T) {
	r := newFixture(t)
	r.table.Put(0, r.entry())
	if got := r.Request(alice); got != "hit x-user-id=alice" {
		t.Fatalf("before: %s", got)
	}
	r.Must("then 8")
	if got := r.Request(alice); got != "miss "+alice {
		t.Errorf("during the write: %s", got)
	}
	if got := r.Request(alice); got != "hit x-user-id=alice" {
		t.Errorf("after the write: %s", got)
	}
}

// Values that Gatepost never writes into a slot are misses.
func TestBadSlotsAreMisses(t *testing.T) {
	for name, bad := range map[string]struct {
		at int64 // in the slot
		to []byte
	}{
		"half of another tag":         {16, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		"a user longer than the slot": {40, []byte{56}},
		"a user of 255 bytes":         {40, []byte{255}},
		"no user":                     {40, []byte{0}},
		"a user that is not a value":  {41, []byte{0x7f}},
		"a decision without an end":   {32, binary.NativeEndian.AppendUint64(nil, 1<<62)},
		"a token without an end":      {24, binary.NativeEndian.AppendUint64(nil, 1<<63)},
	} {
		t.Run(name, func(t *testing.T) {
			r := newFixture(t)
			e := r.entry()
			e.User = strings.Repeat("u", 55) // all bytes that there are
			r.table.Put(0, e)
			if got := r.Request(alice); got != "hit x-user-id="+e.User {
				t.Fatalf("before: %s", got)
			}
			r.edit(func(file []byte) (int64, []byte) { return r.slot(file) + bad.at, bad.to })
			if got := r.Request(alice); got != "miss "+alice {
				t.Error(got)
			}
		})
	}
}

// The length of a value has two bytes in the message, and each counts.
func TestLongValues(t *testing.T) {
	r := newFixture(t)
	r.Route(rule, 5*time.Minute, "oc")
	e := r.entry()
	e.Inputs[1], e.Inputs[2] = strings.Repeat("o", 300), "c"
	r.table.Put(0, e)
	if got := r.Request(alice, "origin="+e.Inputs[1], "cookie=c"); !strings.HasPrefix(got, "hit ") {
		t.Errorf("an origin of 300 bytes: %s", got)
	}
	// The message that would be the same if a length had one byte.
	first := e.Inputs[1][:300-256]
	if got := r.Request(alice, "origin="+first, "cookie="+e.Inputs[1][300-256:]+"c"); !strings.HasPrefix(got, "miss ") {
		t.Errorf("an origin of 44 bytes: %s", got)
	}
}

// The writer alternates two users in one slot while the module reads. No answer mixes both.
func TestReadersWhileWriting(t *testing.T) {
	r := newFixture(t)
	users := [2]string{strings.Repeat("a", 55), strings.Repeat("b", 55)}
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		e := r.entry()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			e.User = users[i%2]
			r.table.Put(0, e)
			if i%7 == 0 {
				r.table.Drop(e.Token)
			}
		}
	})
	hits := 0
	for range 20_000 {
		switch got := r.Request(alice); got {
		case "hit x-user-id=" + users[0], "hit x-user-id=" + users[1]:
			hits++
		default:
			if !strings.HasPrefix(got, "miss") {
				t.Fatalf("a mixed answer: %s", got)
			}
		}
	}
	close(stop)
	writer.Wait()
	if hits == 0 {
		t.Error("no hit, so no result")
	}
}

// A table is closed while the tracker still extends it. The file stays, and an Envoy may read it.
func TestClosedTableIsNeverInForce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "table")
	for range 20 {
		made, err := table.Create(path, 8, nil)
		if err != nil {
			t.Fatal(err)
		}
		var calls sync.WaitGroup
		for i := range 4 {
			calls.Go(func() {
				for n := range 50 {
					made.Reset(uint64(i + n))
					made.Extend(table.Now().Add(time.Second))
				}
			})
		}
		if err := errors.Join(made.Close(), made.Close()); err != nil {
			t.Fatal(err)
		}
		calls.Wait()
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		const untilBoot = 8 * 11
		if until := binary.NativeEndian.Uint64(file[untilBoot:]); until != 0 {
			t.Fatalf("a closed table is in force until %d", until)
		}
	}
}

// The module runs under valgrind, which finds more than the sanitizers, and as an arm64 program,
// with another memory model.
func TestUnderValgrindAndOnArm64(t *testing.T) {
	if testing.Short() {
		t.Skip("valgrind takes seconds: run without -short")
	}
	for name, start := range map[string]func(t testing.TB) *tabletest.Driver{
		"valgrind": func(t testing.TB) *tabletest.Driver {
			return tabletest.StartUnder(t, "plain", "valgrind", "--quiet", "--leak-check=full", "--errors-for-leak-kinds=all", "--error-exitcode=9")
		},
		"arm64": func(t testing.TB) *tabletest.Driver { return tabletest.StartUnder(t, "arm64", "qemu-aarch64") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newFixtureOf(t, start(t))
			want := func(what, want string, headers ...string) {
				t.Helper()
				if got := r.Request(headers...); got != want {
					t.Errorf("%s: got %q, want %q", what, got, want)
				}
			}
			want("no decision", "miss "+alice, alice)
			for n := range 20 { // each length modulo eight
				e := r.entry()
				e.Inputs[0], e.User = strings.Repeat("x", n+1), strings.Repeat("u", 2*n+1)
				r.table.Put(0, e)
				want("hit", "hit x-user-id="+e.User, "authorization="+e.Inputs[0])
			}
			r.table.Put(0, r.entry())
			r.Route(rule, 0, "focs")
			want("hit of a route with all inputs", "hit "+alice+" x-envoy-upstream-stream-duration-ms=3600000 x-user-id=alice", alice)
			want("message too long", "miss "+alice+" cookie="+strings.Repeat("c", 5000), alice, "cookie="+strings.Repeat("c", 5000))
			r.table.Drop(hash("alice-token"))
			want("dropped", "miss "+alice, alice)
			_ = r.table.Close()
			r.create()
			r.advance(20 * time.Millisecond)
			r.table.Put(0, r.entry())
			want("hit of a new table", "hit "+alice+" x-envoy-upstream-stream-duration-ms=3600000 x-user-id=alice", alice)
			if got := r.hits("orders"); got != 1 {
				t.Errorf("%d hits are counted in the new table, want 1", got)
			}
			for _, bad := range []string{"config relative", "route x", "route 1 ab 1 - x-user-id 00000000000000ab"} {
				if got := r.Do("%s", bad); got != "refused" {
					t.Errorf("%s: %s", bad, got)
				}
			}
		})
	}
}

// The files are not valid tables. The driver runs under ASan, which detects reads beyond their end.
func TestBadTables(t *testing.T) {
	for name, spoil := range map[string]func(file []byte) []byte{
		"":                      func(f []byte) []byte { return f }, // the others are misses for what is wrong with them
		"empty":                 func([]byte) []byte { return nil },
		"cut short":             func(f []byte) []byte { return f[:len(f)-1] },
		"a header alone":        func(f []byte) []byte { return f[:128] },
		"too long":              func(f []byte) []byte { return append(f, 0) },
		"another magic":         func(f []byte) []byte { f[0] ^= 1; return f },
		"more buckets than fit": func(f []byte) []byte { f[8]++; return f },
		"no bucket":             func(f []byte) []byte { clear(f[8:16]); return f },
		"most buckets":          func(f []byte) []byte { copy(f[8:16], "\xff\xff\xff\xff\xff\xff\xff\xff"); return f },
	} {
		t.Run(name, func(t *testing.T) {
			r := newFixture(t)
			r.table.Put(0, r.entry())
			file, err := os.ReadFile(r.path)
			if err != nil {
				t.Fatal(err)
			}
			r.readsAnother(name == "", func(path string) error { return os.WriteFile(path, spoil(file), 0o600) })
		})
	}
	for name, make := range map[string]func(table, path string) error{
		"absent":           func(_, _ string) error { return nil },
		"a directory":      func(_, path string) error { return os.Mkdir(path, 0o700) },
		"a symbolic link":  os.Symlink,
		"a device":         func(_, path string) error { return os.Symlink("/dev/zero", path) },
		"a pipe":           func(_, path string) error { return syscall.Mkfifo(path, 0o600) },
		"unreadable bytes": func(_, path string) error { return os.WriteFile(path, []byte("not a table"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newFixture(t)
			r.table.Put(0, r.entry())
			r.readsAnother(false, func(path string) error { return make(r.path, path) })
		})
	}
}

// readsAnother has the module read a file that create makes, beside the hits of the table.
func (r *fixture) readsAnother(good bool, create func(path string) error) {
	r.t.Helper()
	path := r.path + ".bad"
	if err := errors.Join(create(path), os.Link(r.path+".hits", path+".hits")); err != nil {
		r.t.Fatal(err)
	}
	if got := r.Request(alice); got != "hit x-user-id=alice" {
		r.t.Fatalf("before: %s", got)
	}
	r.Must("config %s", path)
	if got := r.Request(alice); strings.HasPrefix(got, "hit ") != good {
		r.t.Error(got)
	}
}
