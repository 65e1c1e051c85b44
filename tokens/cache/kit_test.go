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

// plain is the least store that Redis can be: it asks each time. A user's hashes are in a set.
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

// hashOf is the hash of the session that has the id in the plain store: there the id is the token.
func hashOf(id string) tokens.Hash {
	t, err := tokens.Parse(id)
	if err != nil {
		panic(err)
	}
	return t.Hash()
}

// session returns a new session of the user, with a token of its own.
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

// gateway is a cache on Redis with both its kinds of connections.
type gateway struct {
	*Cache
	tracker *Redis
	module  *module // nil: its Envoy decides nothing by itself
	t       testing.TB
}

// open starts a gateway whose look-ups go to the data address and whose tracking to the tracking address.
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
		Addr: addr, DialTimeout: time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: 20 * time.Second,
		ContextTimeoutEnabled: true, MaxRetries: -1,
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// realConn is a connection as users configure it. The store that is made with it closes it.
func realConn(t testing.TB, url string) *redisconn.Conn {
	t.Helper()
	return openConn(t, url, 0)
}

// openConn is realConn with a time limit of the test's own; 0: that of users.
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

// openReal starts a gateway as users run it, on a store that it closes.
func openReal(t testing.TB, url string) *gateway {
	t.Helper()
	conn := realConn(t, url)
	return openStore(t, redisstore.New(conn), conn.Client(), Config{}, RedisConfig{Sentinels: conn})
}

// start starts a gateway and waits until it holds its lease.
func start(t testing.TB, data, tracking string) *gateway {
	t.Helper()
	g := open(t, data, tracking, Config{})
	g.awaitHeld()
	return g
}

func (g *gateway) awaitHeld() {
	g.t.Helper()
	redistest.Eventually(g.t, "a lease that is held", g.Held)
}

// awaitAcquainted waits until the gateways have listened for long enough to know each other.
func awaitAcquainted(t testing.TB, all ...*gateway) {
	t.Helper()
	redistest.Eventually(t, "gateways that know each other", func() bool {
		for _, g := range all {
			g.awaitHeld()
			g.tracker.mu.Lock()
			conns := g.tracker.conns
			g.tracker.mu.Unlock()
			for _, c := range conns {
				c.mu.Lock()
				principals, ok := c.gateways.principals(time.Now(), g.tracker.lease)
				c.mu.Unlock()
				if !ok || len(principals) < len(all) {
					return false
				}
			}
		}
		return true
	})
}

func (g *gateway) create(user string) *tokens.Session {
	g.t.Helper()
	s := session(user)
	if err := g.Create(g.t.Context(), s, 0); err != nil {
		g.t.Fatalf("creating a session: %v", err)
	}
	return s
}

// answer looks the token up until the store can tell.
func (g *gateway) answer(s *tokens.Session) (got tokens.Principal, err error) {
	g.t.Helper()
	redistest.Eventually(g.t, "a store that can tell", func() bool {
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
		g.t.Fatalf("looking up %v's token: it is %v's", s.User, got.User())
	}
}

func (g *gateway) deny(s *tokens.Session) {
	g.t.Helper()
	if _, err := g.answer(s); !errors.Is(err, tokens.ErrUnknown) {
		g.t.Fatalf("looking up a dead token: %v, want ErrUnknown", err)
	}
}

// warm looks the session up until it is answered from memory.
func (g *gateway) warm(s *tokens.Session) {
	g.t.Helper()
	redistest.Eventually(g.t, "a token in memory", func() bool {
		_, _ = g.Principal(g.t.Context(), s.Hash)
		return g.keeps(s)
	})
}

// keeps says whether the session is in memory, believed or not.
func (g *gateway) keeps(s *tokens.Session) bool {
	kept, _ := g.shard(s.Hash).get(s.Hash)
	return kept.Has(s.Hash)
}

func (g *gateway) revoke(s *tokens.Session) {
	g.t.Helper()
	if err := g.Revoke(g.t.Context(), s.Hash); err != nil {
		g.t.Fatalf("revoking: %v", err)
	}
}

// memory is a store in memory for what needs no Redis: each session is there, made from its hash.
type everything struct {
	tokens.Store
	before func(ctx context.Context, h tokens.Hash) error // called in each look-up
	mu     sync.Mutex
	asked  map[tokens.Hash]int
}

func (e *everything) Lookup(ctx context.Context, h tokens.Hash) (*tokens.Session, error) {
	if e.asked != nil {
		e.mu.Lock()
		e.asked[h]++
		e.mu.Unlock()
	}
	if e.before != nil {
		if err := e.before(ctx, h); err != nil {
			return nil, err
		}
	}
	return &tokens.Session{Hash: h, User: h.Hex(), Expires: time.Now().Add(time.Hour)}, nil
}

func (*everything) Revoke(context.Context, tokens.Hash) error { return nil }
func (*everything) Close() error                              { return nil }

// always is a tracker whose lease is always held and that is always settled.
type always struct{}

func (*always) Start(Listener)                        {}
func (*always) Held(time.Time) bool                   { return true }
func (*always) WaitInvalidated(context.Context) error { return nil }
func (*always) Close() error                          { return nil }

// principal is who holds a token for an hour.
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

// clientTLS is a client's side of a server of redistest.StartTLS.
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
