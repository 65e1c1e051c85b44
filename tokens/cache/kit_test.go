package cache

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"gatepost/redisconn"
	"gatepost/tokens"
	"gatepost/tokens/redisstore"
	"gatepost/tokens/redistest"

	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

// plain is a minimal store in Redis, without a cache. A user's hashes are in a set.
type plain struct{ redis.UniversalClient }

func key(h tokens.Hash) string { return "gatepost:tok:" + h.Hex() }

func unavailable(err error) error { return fmt.Errorf("%w: %w", tokens.ErrUnavailable, err) }

func (p plain) Create(ctx context.Context, s *tokens.Session, _ int) error {
	record, err := tokens.EncodeRecord(s)
	if err != nil {
		return err
	}
	if err := p.SAdd(ctx, "gatepost:usr:"+s.User, s.Hash.Hex()).Err(); err != nil {
		return unavailable(err)
	}
	if err := p.Set(ctx, key(s.Hash), record, time.Until(s.Expires)).Err(); err != nil {
		return unavailable(err)
	}
	return nil
}

func (p plain) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	record, err := p.Get(ctx, key(h)).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, tokens.ErrUnknown
	}
	if err != nil {
		return nil, unavailable(err)
	}
	found, err := tokens.DecodeRecord(h, record)
	if err != nil {
		return nil, err
	}
	return found.Session, nil
}

func (p plain) Rotate(ctx context.Context, old tokens.Hash, next tokens.Successor, _ time.Duration) (tokens.Successor, error) {
	if err := p.Create(ctx, next.Session, 0); err != nil {
		return tokens.Successor{}, err
	}
	return next, p.Revoke(ctx, old)
}

func (p plain) Revoke(ctx context.Context, h tokens.Hash) error {
	if err := p.Del(ctx, key(h)).Err(); err != nil {
		return unavailable(err)
	}
	return nil
}

func (p plain) Sessions(context.Context, string) ([]*tokens.Session, error) {
	return nil, tokens.ErrUnavailable
}

func (p plain) RevokeSession(ctx context.Context, _, id string) error {
	return p.Revoke(ctx, hashOf(id))
}

func (p plain) RevokeUser(ctx context.Context, user string) (int, error) {
	all, err := p.SMembers(ctx, "gatepost:usr:"+user).Result()
	if err != nil {
		return 0, unavailable(err)
	}
	for _, h := range all {
		if err := p.Del(ctx, "gatepost:tok:"+h).Err(); err != nil {
			return 0, unavailable(err)
		}
	}
	return len(all), nil
}

func (p plain) Ping(ctx context.Context) error { return p.UniversalClient.Ping(ctx).Err() }

// hashOf returns the hash of the session with an id. In the plain store the id is the token.
func hashOf(id string) tokens.Hash {
	t, err := tokens.Parse(id)
	if err != nil {
		panic(err)
	}
	return t.Hash()
}

// session returns a new session of the user with a new token.
func session(user string) *tokens.Session {
	t, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		panic(err)
	}
	now := time.Now()
	return &tokens.Session{
		Hash: t.Hash(), ID: t.Reveal(), User: user,
		Issued: now, Expires: now.Add(time.Hour), Ends: now.Add(2 * time.Hour),
	}
}

// gateway is a cache on Redis with its data and tracking connections.
type gateway struct {
	*Cache
	tracker *Redis
	module  *module // nil: without a module in Envoy
	t       testing.TB
}

// open starts a gateway with separate addresses for look-ups and for the tracking.
func open(t testing.TB, data, tracking string, config Config) *gateway {
	t.Helper()
	return openWith(t, client(t, data), client(t, tracking), config, RedisConfig{})
}

func openWith(t testing.TB, data, tracking redis.UniversalClient, config Config, tracked RedisConfig) *gateway {
	t.Helper()
	return openStore(t, plain{data}, tracking, config, tracked)
}

func openStore(t testing.TB, store tokens.Store, tracking redis.UniversalClient, config Config, tracked RedisConfig) *gateway {
	t.Helper()
	if tracked.Logger == nil {
		tracked.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	tracker, err := Track(tracking, tracked)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(store, tracker, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &gateway{Cache: c, tracker: tracker, t: t}
}

func client(t testing.TB, addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{
		Addr: addr, DialTimeout: 20 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: 20 * time.Second,
		ContextTimeoutEnabled: true, MaxRetries: -1,
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// realConn opens a connection as the product does. The store closes it.
func realConn(t testing.TB, url string) *redisconn.Conn {
	t.Helper()
	return openConn(t, url, 0)
}

// openConn is realConn with another timeout; 0: the default.
func openConn(t testing.TB, url string, timeout time.Duration) *redisconn.Conn {
	t.Helper()
	options, err := redisconn.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	if timeout > 0 {
		options.Timeout = timeout
	}
	return redisconn.Open(options)
}

func storeOn(t testing.TB, conn *redisconn.Conn) tokens.Store {
	t.Helper()
	store, err := redisstore.New(redisstore.Config{Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// openReal starts a gateway as the product does.
func openReal(t testing.TB, url string) *gateway {
	t.Helper()
	conn := realConn(t, url)
	return openStore(t, storeOn(t, conn), conn.Client(), Config{}, RedisConfig{Sentinels: conn})
}

// openPatient is openReal for tests without faults: Redis may be slow on a busy machine.
func openPatient(t testing.TB, url string) *gateway {
	t.Helper()
	conn := openConn(t, url, time.Minute)
	return openStore(t, storeOn(t, conn), conn.Client(), Config{LookupTimeout: time.Minute}, RedisConfig{Sentinels: conn})
}

// start starts a gateway and waits until it holds the lease.
func start(t testing.TB, data, tracking string) *gateway {
	t.Helper()
	g := open(t, data, tracking, Config{})
	g.awaitHeld()
	return g
}

func (g *gateway) awaitHeld() {
	g.t.Helper()
	redistest.Eventually(g.t, "the lease", g.Held)
}

// awaitPeers waits until each gateway knows all others.
func awaitPeers(t testing.TB, all ...*gateway) {
	t.Helper()
	redistest.Eventually(t, "gateways to know each other", func() bool {
		for _, g := range all {
			g.awaitHeld()
			g.tracker.mu.Lock()
			conns := g.tracker.conns
			g.tracker.mu.Unlock()
			for _, c := range conns {
				c.mu.Lock()
				holders, ok := c.gateways.leaseHolders(time.Now(), g.tracker.lease)
				c.mu.Unlock()
				if !ok || len(holders) < len(all) {
					return false
				}
			}
		}
		return true
	})
}

func (g *gateway) create(user string) (s *tokens.Session) {
	g.t.Helper()
	g.do("creating a session", func() error {
		s = session(user)
		return g.Create(g.t.Context(), s, 0)
	})
	return s
}

// do calls the store, again while it is unavailable: Redis can be late on a busy machine.
func (g *gateway) do(what string, call func() error) {
	g.t.Helper()
	redistest.Eventually(g.t, what, func() bool {
		err := call()
		if err != nil && !errors.Is(err, tokens.ErrUnavailable) {
			g.t.Fatalf("%s: %v", what, err)
		}
		return err == nil
	})
}

// settle waits until all gateways have received the invalidations of earlier changes, such as that
// of a login. On a busy machine one can arrive after the token was cached, and drops it.
func (g *gateway) settle() {
	g.t.Helper()
	if err := g.tracker.WaitInvalidated(g.t.Context()); err != nil {
		g.t.Fatalf("waiting for invalidations: %v", err)
	}
}

// answer looks the token up until the store is available.
func (g *gateway) answer(s *tokens.Session) (got tokens.Principal, err error) {
	g.t.Helper()
	redistest.Eventually(g.t, "an available store", func() bool {
		got, err = g.Principal(g.t.Context(), s.Hash)
		return !errors.Is(err, tokens.ErrUnavailable)
	})
	return got, err
}

func (g *gateway) allow(s *tokens.Session) {
	g.t.Helper()
	got, err := g.answer(s)
	if err != nil {
		g.t.Fatalf("looking up a live token: %v", err)
	}
	if !got.Has(s.Hash) || got.User() != s.User {
		g.t.Fatalf("the token of %v returned the session of %v", s.User, got.User())
	}
}

func (g *gateway) deny(s *tokens.Session) {
	g.t.Helper()
	if _, err := g.answer(s); !errors.Is(err, tokens.ErrUnknown) {
		g.t.Fatalf("looking up a revoked token: %v, want ErrUnknown", err)
	}
}

// warm looks the session up until it is cached.
func (g *gateway) warm(s *tokens.Session) {
	g.t.Helper()
	redistest.Eventually(g.t, "a cached token", func() bool {
		_, _ = g.Principal(g.t.Context(), s.Hash)
		return g.caches(s)
	})
}

// caches reports whether the session is cached, valid or not.
func (g *gateway) caches(s *tokens.Session) bool {
	kept, _ := g.shard(s.Hash).get(s.Hash)
	return kept.Has(s.Hash)
}

func (g *gateway) revoke(s *tokens.Session) {
	g.t.Helper()
	g.do("revoking", func() error { return g.Revoke(g.t.Context(), s.Hash) })
}

// fullStore is a store that has a session for every hash.
type fullStore struct {
	tokens.Store
	before  func(ctx context.Context, h tokens.Hash) error // called by each look-up
	mu      sync.Mutex
	lookups map[tokens.Hash]int
}

func (e *fullStore) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	if e.lookups != nil {
		e.mu.Lock()
		e.lookups[h]++
		e.mu.Unlock()
	}
	if e.before != nil {
		if err := e.before(ctx, h); err != nil {
			return nil, err
		}
	}
	return &tokens.Session{Hash: h, User: h.Hex(), Expires: time.Now().Add(time.Hour)}, nil
}

func (*fullStore) Revoke(context.Context, tokens.Hash) error { return nil }
func (*fullStore) Close() error                              { return nil }

// alwaysHeld is a tracker whose lease is always held.
type alwaysHeld struct{}

func (*alwaysHeld) Start(Listener)                        {}
func (*alwaysHeld) Held(time.Time) bool                   { return true }
func (*alwaysHeld) WaitInvalidated(context.Context) error { return nil }
func (*alwaysHeld) Close() error                          { return nil }

// principal returns the principal of a token that lives for an hour.
func principal(h tokens.Hash, user string) tokens.Principal {
	s := tokens.Session{Hash: h, User: user, Expires: time.Now().Add(time.Hour)}
	return s.Principal()
}

func randomHash() (h tokens.Hash) {
	for i := range h {
		h[i] = byte(rand.Uint32())
	}
	return h
}

// clientTLS returns the client configuration for a server of redistest.StartTLS.
func clientTLS(t testing.TB, c redistest.Certificates) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}
