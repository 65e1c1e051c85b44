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

// cached opens a cache on Redis as a gateway does. Its store connects to data, its tracking to
// tracking.
func cached(t *testing.T, data, tracking string) *cache.Cache {
	t.Helper()
	options, err := redisconn.ParseURL("redis://" + data)
	if err != nil {
		t.Fatal(err)
	}
	options.Timeout = time.Minute // a busy machine may need longer than the default
	client := redis.NewClient(&redis.Options{Addr: tracking, ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	tracker, err := cache.Track(client, cache.RedisConfig{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	store, err := redisstore.New(redisstore.Config{Conn: redisconn.Open(options)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New(store, tracker, cache.Config{LookupTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(c.Close(), client.Close()) })
	redistest.Eventually(t, "the lease", c.Held)
	return c
}

// maxChunks is larger than the number of messages of any call below.
const maxChunks = 12

// The connection to Redis is cut before each command and after each reply of each call. After a
// 200, the token is live, or the revoke is done, at this gateway and at another one with its own
// cache. Otherwise the answer is 503 without a token, and the client can repeat the call.
func TestCutConnectionsLoseNoTokenAndNoRevoke(t *testing.T) {
	server := redistest.Start(t)
	proxy := faultproxy.Start(t, server.Addr)
	g := newGatewayOn(t, users(t, ann), cached(t, proxy.Addr, server.Addr))
	g.handler.config.StoreTimeout = time.Minute
	g.settings.RefreshGrace, g.settings.MaxSessions = time.Minute, 3
	other := cached(t, server.Addr, server.Addr)
	// loads the scripts into Redis
	g.call("POST", "/token/refresh", "", "Authorization", g.login()).is(t, 200)
	k := &cuts{gateway: g, other: other}

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
							a.isText(t, 503, textUnavailable)
						default:
							t.Errorf("cut after %d: answered %d %s", chunks, a.StatusCode, a.body)
						}
						if chunks == maxChunks-1 && a.StatusCode != 200 {
							t.Errorf("the call has more than %d messages, or fails without a cut: %d %s", maxChunks, a.StatusCode, a.body)
						}
					}
					if refuse && failed == 0 {
						t.Error("no call failed, so nothing was cut")
					}
				})
			}
		}
	}
}

// cuts runs calls while the connection to Redis is cut, and checks the result.
type cuts struct {
	*gateway
	other     *cache.Cache
	cut, heal func()
}

// during sends a request while the connection is cut.
func (k *cuts) during(method, path, body string, headers ...string) answerOf {
	k.Helper()
	k.cut()
	defer k.heal()
	return k.call(method, path, body, headers...)
}

// checkBoth fails the test unless looking up the token returns want at both gateways.
func (k *cuts) checkBoth(what, token string, want error) {
	k.Helper()
	parsed, err := tokens.Parse(token)
	if err != nil {
		k.Fatalf("%s is not a token: %q", what, token)
	}
	for place, store := range map[string]tokens.Store{"here": k.handler.config.Store, "at another gateway": k.other} {
		if _, err := store.Lookup(k.Context(), parsed.Hash()); !errors.Is(err, want) {
			k.Errorf("%s %s: %v, want %v", what, place, err, want)
		}
	}
}

func (k *cuts) loginCut() answerOf {
	before := k.login()
	k.checkBoth("the earlier token", before, nil)
	a := k.during("POST", "/token", `{"username":"ann","password":"secret"}`, "Content-Type", "application/json")
	if a.StatusCode == 200 {
		k.checkBoth("the token", a.Header.Get("token"), nil)
	}
	k.checkBoth("the earlier token", before, nil)
	return a
}

func (k *cuts) refreshCut() answerOf {
	old := k.login()
	k.checkBoth("the token", old, nil)
	a := k.during("POST", "/token/refresh", "", "Authorization", old)
	again := k.call("POST", "/token/refresh", "", "Authorization", old)
	again.is(k.T, 200)
	next := again.Header.Get("token")
	if a.StatusCode == 200 && a.Header.Get("token") != next {
		k.Error("the retry got another token")
	}
	k.checkBoth("the new token", next, nil)
	k.checkBoth("the old token in its grace", old, nil)
	return a
}

func (k *cuts) revokeCut() answerOf {
	token := k.login()
	k.checkBoth("the token", token, nil)
	a := k.during("POST", "/token/revoke", "", "Authorization", token)
	if a.StatusCode != 200 {
		k.call("POST", "/token/revoke", "", "Authorization", token).is(k.T, 200)
	}
	k.checkBoth("the revoked token", token, tokens.ErrUnknown)
	return a
}

func (k *cuts) endAllCut() answerOf {
	one, other := k.login(), k.login()
	k.checkBoth("the one token", one, nil)
	k.checkBoth("the other token", other, nil)
	a := k.during("DELETE", "/token/sessions", "", "Authorization", one)
	if a.StatusCode != 200 {
		k.call("POST", "/token/revoke", "", "Authorization", one).is(k.T, 200)
		return a
	}
	k.checkBoth("the one token", one, tokens.ErrUnknown)
	k.checkBoth("the other token", other, tokens.ErrUnknown)
	return a
}
