package redisstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"gatepost/testport"
	"gatepost/tokens"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"
)

// callLimit is how long the tests wait for a call that must end by its context's deadline.
const callLimit = 5 * time.Minute

func create(t testing.TB, s *Store, user string) *tokens.Session {
	t.Helper()
	session := storetest.New(t, user)
	if err := s.Create(t.Context(), session, 0); err != nil {
		t.Fatalf("creating a session: %v", err)
	}
	return session
}

// calls returns the operations of a store on a session, by name.
func calls(t testing.TB, s *Store, session *tokens.Session) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"create": func(ctx context.Context) error { return s.Create(ctx, storetest.New(t, "ann"), 3) },
		"lookup": func(ctx context.Context) error { _, err := s.Lookup(ctx, session.Hash); return err },
		"rotate": func(ctx context.Context) error {
			return rotate(ctx, s, session.Hash, session.Renewed(storetest.NewHash(t), time.Now(), time.Hour))
		},
		"revoke":         func(ctx context.Context) error { return s.Revoke(ctx, session.Hash) },
		"sessions":       func(ctx context.Context) error { _, err := s.Sessions(ctx, "ann"); return err },
		"revoke session": func(ctx context.Context) error { return s.RevokeSession(ctx, "", session.ID) },
		"revoke user":    func(ctx context.Context) error { _, err := s.RevokeUser(ctx, "ann"); return err },
		"touch":          func(ctx context.Context) error { return s.Touch(ctx, session.Principal(), time.Now(), "192.0.2.1") },
		"ping":           s.Ping,
		// Check belongs to the connection and returns no tokens error
		"check": func(ctx context.Context) error {
			_, err := s.conn.Check(ctx)
			if err != nil {
				err = unavailable(ctx, "checking", err)
			}
			return err
		},
	}
}

// assertUnavailable fails the test unless each named call, or all calls if none is named, returns
// tokens.ErrUnavailable in time.
func assertUnavailable(t *testing.T, s *Store, session *tokens.Session, names ...string) {
	t.Helper()
	all := calls(t, s, session)
	if len(names) == 0 {
		for name := range all {
			names = append(names, name)
		}
	}
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
			defer cancel()
			result := make(chan error, 1)
			go func() { result <- all[name](ctx) }()
			select {
			case err := <-result:
				if !errors.Is(err, tokens.ErrUnavailable) || errors.Is(err, tokens.ErrUnknown) {
					t.Errorf("%s: %v", name, err)
				}
			case <-time.After(callLimit):
				t.Errorf("%s does not return", name)
			}
		})
	}
	wg.Wait()
}

// assertWorks fails the test unless the session's token is live and unchanged and a new session can
// be stored.
func assertWorks(t *testing.T, s *Store, session *tokens.Session) {
	t.Helper()
	got, err := s.Lookup(t.Context(), session.Hash)
	if err != nil || got.User != session.User || got.ID != session.ID {
		t.Fatalf("a live token: %+v, %v", got, err)
	}
	if _, err := s.Lookup(t.Context(), storetest.NewHash(t)); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("an unknown token: %v", err)
	}
	again := create(t, s, "bob")
	if err := s.Revoke(t.Context(), again.Hash); err != nil {
		t.Errorf("revoking: %v", err)
	}
}

func TestRedisDownAndBack(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	s := open(t, server)
	session, gone := create(t, s, "ann"), create(t, s, "ann")
	if err := s.Revoke(t.Context(), gone.Hash); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		server.Kill()
		// More failures than pool slots: the library must continue to dial.
		for range 5 {
			assertUnavailable(t, s, session)
		}
		server.Restart()
		assertWorks(t, s, session)
		if _, err := s.Lookup(t.Context(), gone.Hash); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("a token revoked before the crash: %v", err)
		}
	}
}

func TestPoolSurvivesRestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	s := open(t, server)
	session := create(t, s, "ann")
	burst := func() {
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				if _, err := s.Lookup(t.Context(), session.Hash); err != nil {
					t.Errorf("a live token: %v", err)
				}
			})
		}
		wg.Wait()
	}
	burst() // fills the pool
	server.Kill()
	server.Restart()
	burst()
	assertWorks(t, s, session)
}

func TestRedisNeverReachable(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, "redis://"+testport.Addr(t))
	defer s.Close()
	assertUnavailable(t, s, storetest.New(t, "ann"))
}

func TestRedisFrozen(t *testing.T) {
	server := redistest.Start(t)
	s := mustOpenAsUsed(t, server.URL())
	defer s.Close()
	session := create(t, s, "ann")
	server.Freeze()
	assertUnavailable(t, s, session)

	// A call without a deadline ends too, and many such calls leave no goroutines.
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for range 300 {
		wg.Go(func() {
			if _, err := s.Lookup(context.Background(), session.Hash); !errors.Is(err, tokens.ErrUnavailable) {
				t.Errorf("lookup: %v", err)
			}
		})
	}
	wg.Wait()
	redistest.Eventually(t, "the end of the calls' goroutines", func() bool {
		return runtime.NumGoroutine() <= before+2*max(16, 8*runtime.GOMAXPROCS(0))
	})
	server.Thaw()
	// Calls from before the thaw may still run, so the session may be revoked. Either answer is
	// correct, but the store must be available.
	redistest.Eventually(t, "an answer after the thaw", func() bool {
		_, err := s.Lookup(t.Context(), session.Hash)
		return err == nil || errors.Is(err, tokens.ErrUnknown)
	})
	assertWorks(t, s, create(t, s, "carl"))
}

func TestRedisSlow(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	session := create(t, s, "ann")
	server.Do("CLIENT", "PAUSE", "60000", "ALL")
	assertUnavailable(t, s, session)
}

func TestRedisWithWrongPassword(t *testing.T) {
	t.Parallel()
	server := redistest.StartWithPassword(t, "opensesame")
	for name, user := range map[string]string{"none": "", "wrong": ":letmein@", "wrong user": "ann:opensesame@"} {
		s := mustOpen(t, "redis://"+user+server.Addr)
		_, err := s.Lookup(t.Context(), storetest.NewHash(t))
		if !errors.Is(err, tokens.ErrUnavailable) || strings.Contains(err.Error(), "letmein") {
			t.Errorf("%s: %v", name, err)
		}
		assertUnavailable(t, s, storetest.New(t, "ann"))
		_ = s.Close()
	}
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("opensesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"redis://:opensesame@" + server.Addr, "redis://default:opensesame@" + server.Addr, "redis://" + server.Addr + "?password_file=" + file} {
		s := mustOpen(t, url)
		assertWorks(t, s, create(t, s, "ann"))
		_ = s.Close()
	}
}

func TestFullRedisRefusesLoginsButRevokes(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	session, other := create(t, s, "ann"), create(t, s, "ann")
	server.Do("CONFIG", "SET", "maxmemory", "1")
	assertUnavailable(t, s, session, "create", "touch", "rotate")
	if got, err := s.Lookup(t.Context(), session.Hash); err != nil || got.User != "ann" {
		t.Errorf("a live token: %v", err)
	}
	for name, err := range map[string]error{
		"revoke":         s.Revoke(t.Context(), session.Hash),
		"revoke session": s.RevokeSession(t.Context(), "ann", other.ID),
		"revoke user":    second(s.RevokeUser(t.Context(), "ann")),
	} {
		if err != nil {
			t.Errorf("%s with full memory: %v", name, err)
		}
	}
	for _, o := range []*tokens.Session{session, other} {
		if _, err := s.Lookup(t.Context(), o.Hash); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("a revoked token: %v", err)
		}
	}
	server.Do("CONFIG", "SET", "maxmemory", "0")
	assertWorks(t, s, create(t, s, "carl"))
}

func second[T any](_ T, err error) error { return err }

func TestRedisReadOnly(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	session := create(t, s, "ann")
	server.Do("CONFIG", "SET", "replica-serve-stale-data", "yes")
	server.Do("REPLICAOF", "127.0.0.1", "1")
	assertUnavailable(t, s, session, "create", "rotate", "revoke", "revoke session", "revoke user", "touch")
	server.Do("REPLICAOF", "NO", "ONE")
	assertWorks(t, s, session)
}

func TestRedisLoading(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	session := create(t, s, "ann")
	for range 8 { // Redis answers once for each KiB that it has loaded: so one record is too few
		create(t, s, "ann")
	}
	server.Do("SAVE")
	server.RestartLoading()
	assertUnavailable(t, s, session, "lookup", "create", "revoke", "ping")
	redistest.Eventually(t, "the end of the loading", func() bool { return s.Ping(t.Context()) == nil })
	assertWorks(t, s, create(t, s, "bob"))
}

func TestCorruptRecordsAreErrors(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	other := create(t, s, "bob")
	for name, plant := range map[string]func(key string){
		"the old gateway's value": func(key string) { server.Do("SET", key, "1") },
		"nothing":                 func(key string) { server.Do("SET", key, "") },
		"noise":                   func(key string) { server.Do("SET", key, "\x00\xff\x01noise\r\n") },
		"another's record":        func(key string) { server.Do("COPY", tokenKey(other.Hash), key, "REPLACE") },
		"a list":                  func(key string) { server.Do("DEL", key); server.Do("LPUSH", key, "x") },
		"a hash":                  func(key string) { server.Do("DEL", key); server.Do("HSET", key, "user", "ann") },
	} {
		session, readable := create(t, s, "ann"), create(t, s, "ann")
		plant(tokenKey(session.Hash))
		server.Do("ZADD", userKey("ann"), "99999999999999", "not a member")
		got, err := s.Lookup(t.Context(), session.Hash)
		if got != nil || !errors.Is(err, tokens.ErrUnavailable) || errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if listed, err := s.Sessions(t.Context(), "ann"); err != nil || len(listed) != 1 || listed[0].ID != readable.ID {
			t.Errorf("%s: listed %v, %v, want the session that can be read", name, listed, err)
		}
		if n, err := s.RevokeUser(t.Context(), "ann"); n != 2 || err != nil {
			t.Errorf("%s: ended %d sessions, %v", name, n, err)
		}
		if _, err := s.Lookup(t.Context(), session.Hash); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("%s: afterwards %v", name, err)
		}
	}
	assertWorks(t, s, other)
}

// A record may outlive its token if Redis' clock stops, so the expiry in the record counts.
func TestExpiryOfRecordCounts(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	session, err := tokens.NewSession(storetest.NewHash(t), "ann", nil, time.Now().Add(-2*time.Hour), time.Hour, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	record, err := tokens.EncodeRecord(session)
	if err != nil {
		t.Fatal(err)
	}
	server.Do("SET", tokenKey(session.Hash), string(record))
	if _, err := s.Lookup(t.Context(), session.Hash); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("an expired token with a record in Redis: %v", err)
	}
}

func TestEveryKeyExpires(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	session := create(t, s, "ann")
	next := session.Renewed(storetest.NewHash(t), time.Now(), time.Hour)
	if err := errors.Join(rotate(t.Context(), s, session.Hash, next), s.Touch(t.Context(), next.Principal(), time.Now(), "192.0.2.1")); err != nil {
		t.Fatal(err)
	}
	keys := strings.Fields(server.Do("KEYS", "*"))
	if len(keys) != 5 { // two records (one retired), index, id, last use
		t.Errorf("keys: %q", keys)
	}
	for _, key := range keys {
		if !strings.HasPrefix(key, "gatepost:") || server.Do("PTTL", key) == "-1" {
			t.Errorf("%s has the TTL %s ms", key, server.Do("PTTL", key))
		}
	}
}

// The predecessor's record, which contains the sealed successor, expires with the grace.
func TestPredecessorExpiresWithGrace(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	old := create(t, s, "ann")
	if _, err := s.Rotate(t.Context(), old.Hash, offer(t, old), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if ms, err := strconv.Atoi(server.Do("PTTL", tokenKey(old.Hash))); err != nil || ms <= 0 || ms > 30_000 {
		t.Errorf("the predecessor's TTL is %d ms, %v", ms, err)
	}
	remembered, _, err := s.read(t.Context(), oldKey(old.Hash), old.Hash)
	if err != nil || !remembered.Retired || remembered.Successor != nil || remembered.Live(time.Now()) {
		t.Errorf("remembered as %+v, %v", remembered, err)
	}
	score, err := s.client.ZScore(t.Context(), userKey("ann"), member(old)).Result()
	if left := time.Until(time.UnixMilli(int64(score))); err != nil || left > 30*time.Second+time.Second {
		t.Errorf("its entry expires in %v, %v", left, err)
	}
}

func TestIndexIsPrunedAndBounded(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	index := userKey("ann")
	// Expired entries, one entry of a session that was being ended, and an invalid one.
	for i, score := range []string{"1", "1000", "-1000"} {
		server.Do("ZADD", index, score, strings.Repeat(string(rune('a'+i)), memberLength))
	}
	create(t, s, "ann")
	if n := server.Do("ZCARD", index); n != "1" {
		t.Errorf("%s entries are left", n)
	}
	for range 20 {
		if err := s.Create(t.Context(), storetest.New(t, "ann"), 5); err != nil {
			t.Fatal(err)
		}
	}
	if n := server.Do("ZCARD", index); n != "5" {
		t.Errorf("%s entries for 5 sessions", n)
	}
}

// An interrupted end leaves marked entries with live records. The next end completes it.
func TestNextEndCompletesInterruptedOne(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	first, second := create(t, s, "ann"), create(t, s, "ann")
	if _, err := markSessions.Run(t.Context(), s.client, []string{userKey("ann")}, "").Result(); err != nil {
		t.Fatal(err)
	}
	for _, session := range []*tokens.Session{first, second} {
		next := session.Renewed(storetest.NewHash(t), time.Now(), time.Hour)
		if err := rotate(t.Context(), s, session.Hash, next); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("refreshing a session that is being ended: %v", err)
		}
	}
	third := create(t, s, "ann")
	if n, err := s.RevokeUser(t.Context(), "ann"); n != 3 || err != nil {
		t.Errorf("ended %d sessions, %v", n, err)
	}
	for _, session := range []*tokens.Session{first, second, third} {
		if _, err := s.Lookup(t.Context(), session.Hash); !errors.Is(err, tokens.ErrUnknown) {
			t.Errorf("afterwards: %v", err)
		}
	}
}

// The steps of a login and of an end of all sessions run in every order. Afterwards, no returned
// token is live without an entry in the index.
func TestEveryOrderOfLoginAndEndIsSafe(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	ctx := t.Context()
	for mask := range 1 << 6 {
		order := []bool{} // true: the next step of the login; false: the next step of the end
		login := 0
		for bit := range 6 {
			order = append(order, mask>>bit&1 == 1)
			login += mask >> bit & 1
		}
		if login != 3 {
			continue
		}
		user := fmt.Sprint("user", mask)
		session := storetest.New(t, user)
		record, err := tokens.EncodeRecord(session)
		if err != nil {
			t.Fatal(err)
		}
		index, self := userKey(user), member(session)
		returned := false
		var marked []string
		loginSteps := []func() error{
			func() error { _, err := s.enter(ctx, index, self, time.Hour, 0); return err },
			func() error { return s.write(ctx, session, record) },
			func() (err error) {
				if returned, err = s.entered(ctx, index, self); !returned {
					s.undo(ctx, session)
				}
				return err
			},
		}
		endSteps := []func() error{
			func() (err error) {
				marked, err = markSessions.Run(ctx, s.client, []string{index}, "").StringSlice()
				return err
			},
			func() error { return s.deleteRecords(ctx, marked, map[string]bool{}) },
			func() error {
				for _, m := range marked {
					if err := s.client.ZRem(ctx, index, m).Err(); err != nil {
						return err
					}
				}
				return nil
			},
		}
		entered := false // before the end began, so it must be ended
		for _, isLogin := range order {
			steps := &endSteps
			if isLogin {
				steps = &loginSteps
			}
			if !isLogin && len(endSteps) == 3 {
				entered = len(loginSteps) < 3
			}
			if err := (*steps)[0](); err != nil {
				t.Fatal(err)
			}
			*steps = (*steps)[1:]
			// Suppose both crash here: if the token was returned and is live, it must be in the
			// index.
			_, err := s.Lookup(ctx, session.Hash)
			listed, _ := s.client.ZScore(ctx, index, self).Result()
			if returned && err == nil && listed == 0 {
				t.Errorf("order %v: live without an entry", order)
			}
		}
		_, err = s.Lookup(ctx, session.Hash)
		if live := err == nil; live && entered || live && !returned {
			t.Errorf("order %v: live, entered before the end: %v, returned: %v", order, entered, returned)
		}
	}
}

func TestTLSWithCAAndClientCertificate(t *testing.T) {
	t.Parallel()
	server, certs := redistest.StartTLS(t)
	all := "?ca_file=" + certs.CAFile + "&cert_file=" + certs.CertFile + "&key_file=" + certs.KeyFile
	s := mustOpen(t, "rediss://"+server.Addr+all)
	defer s.Close()
	assertWorks(t, s, create(t, s, "ann"))
	for name, url := range map[string]string{
		"without the CA":        "rediss://" + server.Addr + "?cert_file=" + certs.CertFile + "&key_file=" + certs.KeyFile,
		"without a certificate": "rediss://" + server.Addr + "?ca_file=" + certs.CAFile,
		"under another name":    "rediss://" + server.Addr + all + "&server_name=redis.example",
		"without TLS":           "redis://" + server.Addr,
	} {
		s := mustOpen(t, url)
		if _, err := s.Lookup(t.Context(), storetest.NewHash(t)); !errors.Is(err, tokens.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		_ = s.Close()
	}
}

// The permissions in the package comment are sufficient.
func TestDocumentedPermissionsAreSufficient(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	server.Do(append([]string{"ACL", "SETUSER", "gatepost", "on", ">secret", "~gatepost:*"}, strings.Fields(permissions)...)...)
	storetest.Run(t, func(t *testing.T) tokens.Store {
		server.Do("FLUSHALL")
		return mustOpen(t, "redis://gatepost:secret@"+server.Addr)
	})
	s := mustOpen(t, "redis://gatepost:secret@"+server.Addr)
	defer s.Close()
	if warnings, err := s.conn.Check(t.Context()); err != nil || len(warnings) != 1 {
		t.Errorf("%v, %v", warnings, err)
	}
	server.Do("ACL", "SETUSER", "gatepost", "&gatepost:gateway*", "+publish", "+subscribe")
	checkRevokeNotices(t, server, s, s)
}

func TestSentinelFailoverMovesTracking(t *testing.T) {
	t.Parallel()
	master := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	replica := redistest.Start(t, "--replicaof", "127.0.0.1 "+master.Port())
	redistest.Eventually(t, "a synchronized replica", func() bool {
		return strings.Contains(replica.Do("INFO", "replication"), "master_link_status:up")
	})
	sentinel := redistest.StartSentinel(t, master)
	s := mustOpen(t, "redis://"+sentinel.Addr+"?sentinel=mymaster")
	defer s.Close()
	session := create(t, s, "ann")
	if addrs, err := s.conn.NamedMasters(t.Context()); err != nil || len(addrs) != 1 || addrs[0] != master.Addr {
		t.Fatalf("masters %v, %v", addrs, err)
	}
	// The second Sentinel is down, so only the answer of the first counts.
	two := mustOpen(t, "redis://"+sentinel.Addr+","+testport.Addr(t)+"?sentinel=mymaster")
	defer two.Close()
	if addrs, err := two.conn.NamedMasters(t.Context()); err != nil || len(addrs) != 1 || addrs[0] != master.Addr {
		t.Errorf("named %v, %v", addrs, err)
	}
	none := mustOpen(t, "redis://"+testport.Addr(t)+"?sentinel=mymaster")
	defer none.Close()
	if addrs, err := none.conn.NamedMasters(t.Context()); err == nil {
		t.Errorf("without a Sentinel: named %v, %v", addrs, err)
	}
	redistest.Eventually(t, "the session on the replica", func() bool {
		return replica.Do("EXISTS", tokenKey(session.Hash)) == "1" && strings.Contains(sentinel.Do("SENTINEL", "MASTERS"), "num-slaves\n1")
	})
	master.Kill()
	redistest.Eventually(t, "the promotion of the replica", func() bool {
		addrs, err := s.conn.NamedMasters(t.Context())
		return err == nil && addrs[0] == replica.Addr
	})
	redistest.Eventually(t, "the store to use the new master", func() bool {
		err := s.Create(t.Context(), storetest.New(t, "bob"), 0)
		if err != nil && !errors.Is(err, tokens.ErrUnavailable) {
			t.Errorf("during the fail-over: %v", err)
		}
		return err == nil
	})
	assertWorks(t, s, session)
}

func TestClusterMasters(t *testing.T) {
	t.Parallel()
	nodes := redistest.StartCluster(t, 3)
	s := mustOpen(t, "redis://"+nodes[2].Addr+"?cluster=true")
	defer s.Close()
	want := []string{}
	for _, node := range nodes {
		want = append(want, node.Addr)
	}
	var mu sync.Mutex
	addrs := []string{}
	err := s.conn.EachMaster(t.Context(), func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		addrs = append(addrs, node.Options().Addr)
		return nil
	})
	slices.Sort(addrs)
	slices.Sort(want)
	if err != nil || !slices.Equal(addrs, want) {
		t.Errorf("masters %v, %v; want %v", addrs, err, want)
	}
	if _, err := s.conn.Check(t.Context()); err != nil {
		t.Error(err)
	}
	session := create(t, s, "ann")
	nodes[0].Kill()
	if err := s.Ping(t.Context()); !errors.Is(err, tokens.ErrUnavailable) {
		t.Errorf("ping with a master down: %v", err)
	}
	if _, err := s.Lookup(t.Context(), session.Hash); err != nil && !errors.Is(err, tokens.ErrUnavailable) {
		t.Errorf("lookup with a master down: %v", err)
	}
}

func TestLookupIsOneCommand(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := open(t, server)
	session := create(t, s, "ann")
	before := server.CommandStats()
	for range 10 {
		if _, err := s.Lookup(t.Context(), session.Hash); err != nil {
			t.Fatal(err)
		}
	}
	after := server.CommandStats()
	for name, n := range after {
		if n -= before[name]; name == "get" && n != 10 || name != "get" && name != "info" && n != 0 {
			t.Errorf("%s was called %d times", name, n)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	server := redistest.Start(b)
	s := open(b, server)
	session := create(b, s, "ann")
	b.ReportAllocs()
	for b.Loop() {
		ctx, cancel := context.WithTimeout(b.Context(), time.Second) // as the cache does
		if _, err := s.Lookup(ctx, session.Hash); err != nil {
			b.Fatal(err)
		}
		cancel()
	}
}

func BenchmarkCreateAndRevoke(b *testing.B) {
	server := redistest.Start(b)
	s := open(b, server)
	b.ReportAllocs()
	for b.Loop() {
		session := create(b, s, "ann")
		if err := s.Revoke(b.Context(), session.Hash); err != nil {
			b.Fatal(err)
		}
	}
}
