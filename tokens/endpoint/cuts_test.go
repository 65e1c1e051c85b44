package endpoint

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"gatepost/redisconn"
	"gatepost/tokens"
	"gatepost/tokens/cache"
	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redisstore"
	"gatepost/tokens/redistest"
)

// cached opens a cache on Redis as a gateway has one: its store connects to data, its tracking to tracking.
func cached(t *testing.T, data, tracking string) *cache.Cache {
	t.Helper()
	options, err := redisconn.ParseURL("redis://" + data)
	if err != nil {
		t.Fatal(err)
	}
	options.Timeout = time.Minute // a busy machine may need more than a gateway waits
	client := redis.NewClient(&redis.Options{Addr: tracking, ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	tracker, err := cache.Track(client, cache.RedisConfig{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New(redisstore.New(redisconn.Open(options)), tracker, cache.Config{LookupTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(c.Close(), client.Close()) })
	redistest.Eventually(t, "a cache that may be used", c.Held)
	return c
}

// maxChunks is more than any call below sends or receives.
const maxChunks = 12

// The connection to Redis is cut before each command and after each reply of each call. A client that is answered 200 has
// a token that works, or a revoke that has happened, at this gateway and at another with a cache of its own. Else it is
// answered 503 without a token, and can repeat the call.
func TestACutLeavesNoTokenDeadAndNoRevokeUndone(t *testing.T) {
	server := redistest.Start(t)
	proxy := faultproxy.Start(t, server.Addr)
	g := newGatewayOn(t, users(t, ann), cached(t, proxy.Addr, server.Addr))
	g.handler.config.StoreTimeout = time.Minute
	g.settings.RefreshGrace, g.settings.MaxSessions = time.Minute, 3
	elsewhere := cached(t, server.Addr, server.Addr)
	g.call("POST", "/token/refresh", "", "Authorization", g.login()).is(t, 200) // Redis knows the scripts from here on
	k := &cuts{gateway: g, elsewhere: elsewhere}

	for name, do := range map[string]func() answerOf{
		"login":   k.loginCut,
		"refresh": k.refreshCut,
		"revoke":  k.revokeCut,
		"end all": k.endAllCut,
	} {
		for direction, way := range map[faultproxy.Direction]string{faultproxy.Up: "a command", faultproxy.Down: "a reply"} {
			for _, refuse := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/refused=%v", name, way, refuse), func(t *testing.T) {
					failed := 0
					for chunks := range maxChunks {
						g.T = t
						k.cut = func() { proxy.CutAfter(direction, chunks, refuse) }
						k.heal = proxy.Heal
						a := do()
						switch a.StatusCode {
						case 200:
						case 503:
							failed++
							a.says(t, 503, textUnavailable)
						default:
							t.Errorf("cut after %d: answered %d %s", chunks, a.StatusCode, a.body)
						}
						if chunks == maxChunks-1 && a.StatusCode != 200 {
							t.Errorf("the call has more than %d chunks, or fails without a cut: %d %s", maxChunks, a.StatusCode, a.body)
						}
					}
					if refuse && failed == 0 {
						t.Error("no call failed: nothing was cut")
					}
				})
			}
		}
	}
}

// cuts are calls during which the connection to Redis is cut, and what must hold after them.
type cuts struct {
	*gateway
	elsewhere *cache.Cache
	cut, heal func()
}

// during sends a request while the connection is cut.
func (k *cuts) during(method, path, body string, headers ...string) answerOf {
	k.Helper()
	k.cut()
	defer k.heal()
	return k.call(method, path, body, headers...)
}

// both fails the test unless a token opens services at both gateways, or at neither.
func (k *cuts) both(what, token string, want error) {
	k.Helper()
	parsed, err := tokens.Parse(token)
	if err != nil {
		k.Fatalf("%s is no token: %q", what, token)
	}
	for where, store := range map[string]tokens.Store{"here": k.handler.config.Store, "at another gateway": k.elsewhere} {
		if _, err := store.Lookup(k.Context(), parsed.Hash()); !errors.Is(err, want) {
			k.Errorf("%s %s: %v, want %v", what, where, err, want)
		}
	}
}

func (k *cuts) loginCut() answerOf {
	before := k.login()
	k.both("the token from before", before, nil)
	a := k.during("POST", "/token", `{"username":"ann","password":"secret"}`, "Content-Type", "application/json")
	if a.StatusCode == 200 {
		k.both("the token", a.Header.Get("token"), nil)
	}
	k.both("the token from before", before, nil)
	return a
}

func (k *cuts) refreshCut() answerOf {
	old := k.login()
	k.both("the token", old, nil)
	a := k.during("POST", "/token/refresh", "", "Authorization", old)
	again := k.call("POST", "/token/refresh", "", "Authorization", old)
	again.is(k.T, 200)
	next := again.Header.Get("token")
	if a.StatusCode == 200 && a.Header.Get("token") != next {
		k.Error("the retry got another token")
	}
	k.both("the new token", next, nil)
	k.both("the old one in its grace", old, nil)
	return a
}

func (k *cuts) revokeCut() answerOf {
	token := k.login()
	k.both("the token", token, nil)
	a := k.during("POST", "/token/revoke", "", "Authorization", token)
	if a.StatusCode != 200 {
		k.call("POST", "/token/revoke", "", "Authorization", token).is(k.T, 200)
	}
	k.both("the revoked token", token, tokens.ErrUnknown)
	return a
}

func (k *cuts) endAllCut() answerOf {
	one, other := k.login(), k.login()
	k.both("the one token", one, nil)
	k.both("the other token", other, nil)
	a := k.during("DELETE", "/token/sessions", "", "Authorization", one)
	if a.StatusCode != 200 {
		k.call("POST", "/token/revoke", "", "Authorization", one).is(k.T, 200)
		return a
	}
	k.both("the one token", one, tokens.ErrUnknown)
	k.both("the other token", other, tokens.ErrUnknown)
	return a
}
