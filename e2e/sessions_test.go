package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/admin"
	"gatepost/convention"
	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// ownSession is a session as GET /token/sessions returns it to its owner.
type ownSession struct {
	ID          string    `json:"id"`
	Current     bool      `json:"current"`
	LastSeen    time.Time `json:"last_seen"`
	LastAddress string    `json:"last_address"`
}

func (g *gateway) sessions(token string) []ownSession {
	g.t.Helper()
	got := g.Do("GET", "/token/sessions", "", "Authorization: "+token)
	var list struct{ Sessions []ownSession }
	if err := json.Unmarshal([]byte(got.Body), &list); got.Status != http.StatusOK || err != nil {
		g.t.Fatalf("the sessions: %d %s %v", got.Status, got.Body, err)
	}
	return list.Sessions
}

func TestOwnerSeesTheLastUseOfASession(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, s setup) {
		shop := startShop(t, s)
		token := shop.Login("alice")
		if list := shop.sessions(token); len(list) != 1 || !list[0].LastSeen.IsZero() || list[0].LastAddress != "" {
			t.Errorf("before its first use: %+v", list)
		}
		before := time.Now().Add(-time.Second) // clocks are compared with millisecond precision
		want(t, "a use", shop.Do("GET", "/orders", "", "Authorization: "+token), http.StatusOK, "")
		envoytest.Eventually(t, "the use to be reported", func() bool {
			list := shop.sessions(token)
			return len(list) == 1 && list[0].LastSeen.After(before) && !list[0].LastSeen.After(time.Now().Add(time.Second)) && list[0].LastAddress == "127.0.0.1"
		})
		said, code := gatepost(t, nil, "tokens", "list", "--user", "alice", "--admin", shop.Admin)
		if lines := strings.Split(strings.TrimSpace(said), "\n"); code != 0 || len(lines) != 2 || !strings.Contains(lines[0], "LAST SEEN") || strings.Count(lines[1], "127.0.0.1") != 2 {
			t.Errorf("tokens list: %d\n%s", code, said)
		}
	})
}

// A check writes nothing, and a cached one reads nothing. All uses of a token cause one write to
// Redis per minute, for last_seen.
func TestHotTokenCausesOneWriteAMinute(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	shop := startShop(t, setup{Redis: redis.URL()})
	token := "Authorization: " + shop.Login("alice")
	want(t, "the first use", shop.Do("GET", "/orders", "", token), http.StatusOK, "")
	written := func() float64 { return shop.Metric(`gatepost_last_seen_samples_total{outcome="written"}`) }
	envoytest.Eventually(t, "the first use to be written", func() bool { return written() == 1 })

	const uses = 800
	began := time.Now()
	before := redis.CommandStats()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range uses / 4 {
				if got, err := shop.Try("GET", "/orders", "", token); err != nil || got.Status != http.StatusOK {
					t.Errorf("a use: %d %v", got.Status, err)
					return
				}
			}
		})
	}
	all.Wait()
	after, minutes := redis.CommandStats(), int(time.Since(began)/time.Minute)+1
	if n := written(); n > float64(1+minutes) {
		t.Errorf("%v samples were written in %d minutes", n, minutes)
	}
	if n := after["set"] - before["set"]; n > minutes {
		t.Errorf("%d writes for %d uses within %d minutes", n, uses, minutes)
	}
	for _, command := range []string{"get", "del", "zadd", "eval", "evalsha", "hset", "expire", "pexpire"} {
		// If Redis was unreachable for a moment, checks read from it. That is rare and not a write.
		if n := after[command] - before[command]; n > uses/20 || command != "get" && n > 0 {
			t.Errorf("%d times %s for %d uses", n, command, uses)
		}
	}
}

// The command changes Redis directly. The gateways reject the ended sessions as soon as it returns.
func TestCommandLineEndsSessionsInRedisWithoutAGateway(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	shop := startShop(t, setup{Redis: redis.URL()})
	tokens := map[string]string{}
	uses := func(name string) int { return shop.Do("GET", "/orders", "", "Authorization: "+tokens[name]).Status }
	for _, name := range []string{"first", "second", "third"} {
		tokens[name] = shop.Login("alice")
		if got := uses(name); got != http.StatusOK {
			t.Fatalf("the %s token: %d", name, got)
		}
	}
	tokens["bob"] = shop.Login("bob")

	envoytest.Eventually(t, "the gateway to follow revokes", func() bool {
		return strings.Contains(redis.Do("PUBSUB", "NUMSUB", "gatepost:gateways:revokes"), "1")
	})

	said, code := gatepost(t, nil, "tokens", "list", "--user", "alice", "--redis", redis.URL())
	if code != 0 || strings.Count(said, "\n") != 4 || !strings.Contains(said, "Go-http-client") {
		t.Errorf("tokens list: %d\n%s", code, said)
	}
	for _, token := range tokens {
		if strings.Contains(said, token) {
			t.Error("the list shows a token")
		}
	}
	var first string
	for _, one := range shop.sessions(tokens["first"]) {
		if one.Current {
			first = one.ID
		}
	}
	if said, code := gatepost(t, nil, "tokens", "revoke", first, "--redis", redis.URL()); code != 0 || said != "revoked 1\n" {
		t.Errorf("tokens revoke: %d %s", code, said)
	}
	for name, status := range map[string]int{"first": 401, "second": 200, "third": 200, "bob": 200} {
		if got := uses(name); got != status {
			t.Errorf("after the first was revoked the %s token: %d, want %d", name, got, status)
		}
	}
	if said, code := gatepost(t, nil, "tokens", "revoke", first, "--redis", redis.URL()); code != 1 || !strings.Contains(said, "there is no such session") {
		t.Errorf("revoking it once more: %d %s", code, said)
	}
	if said, code := gatepost(t, nil, "tokens", "revoke", "--user", "alice", "--redis", redis.URL(), "--format", "json"); code != 0 || said != "{\n  \"revoked\": 2\n}\n" {
		t.Errorf("tokens revoke --user: %d %s", code, said)
	}
	for _, args := range [][]string{{"--redis", redis.URL()}, {"--admin", shop.Admin}} {
		revoke := append([]string{"tokens", "revoke", "--user", "al"}, args...)
		if said, code := gatepost(t, nil, revoke...); code != 1 || !strings.Contains(said, `user "al" has no session`) || !strings.Contains(said, "header `userid`") {
			t.Errorf("tokens revoke of a user that there is not, %v: %d %s", args, code, said)
		}
		list := append([]string{"tokens", "list", "--user", "al"}, args...)
		if said, code := gatepost(t, nil, list...); code != 0 || !strings.Contains(said, `user "al" has no session`) || !strings.Contains(said, "header `userid`") {
			t.Errorf("tokens list of a user that there is not, %v: %d %s", args, code, said)
		}
		if said, code := gatepost(t, nil, append([]string{"tokens", "revoke", "bob"}, args...)...); code != 1 || !strings.Contains(said, "no such session") || !strings.Contains(said, "`gatepost tokens revoke --user ID` ends them all") {
			t.Errorf("tokens revoke of a user without --user, %v: %d %s", args, code, said)
		}
	}
	var listed []admin.Session
	said, code = gatepost(t, nil, "tokens", "list", "--user", "bob", "--redis", redis.URL(), "--format", "json")
	if err := json.Unmarshal([]byte(said), &listed); err != nil || code != 0 || len(listed) != 1 || listed[0].User != "bob" {
		t.Errorf("tokens list --format json: %d %v %s", code, err, said)
	}
	// The gateways' logs name the author and the revoked sessions.
	for _, want := range []string{`"session":"` + first + `"`, `"user":"alice"`} {
		envoytest.Eventually(t, "the gateway to log "+want, func() bool {
			return len(lines(shop.Log(), "sessions revoked directly in Redis", want, `"by":"`, `"at":"`, withEvent(convention.EventSessionEnded))) > 0
		})
	}
	for name, status := range map[string]int{"second": 401, "third": 401, "bob": 200} {
		if got := uses(name); got != status {
			t.Errorf("after alice's were revoked the %s token: %d, want %d", name, got, status)
		}
	}

	shop.Stop() // it works without a running gateway too
	if said, code := gatepost(t, nil, "tokens", "revoke", "--user", "bob", "--redis", redis.URL()); code != 0 || said != "revoked 1\n" {
		t.Errorf("without a gateway: %d %s", code, said)
	}
	redis.Kill()
	if said, code := gatepost(t, nil, "tokens", "list", "--user", "bob", "--redis", redis.URL()); code != 1 || !strings.Contains(said, "token store out of reach") {
		t.Errorf("without a Redis: %d %s", code, said)
	}
	if said, code := gatepost(t, nil, "tokens", "list", "--user", "bob", "--redis", "nonsense"); code != 2 || !strings.Contains(said, "--redis") {
		t.Errorf("with an invalid URL: %d %s", code, said)
	}
	if said, code := gatepost(t, nil, "tokens", "list", "--user", "bob", "--admin", envoytest.Addr(t)); code != 1 || !strings.Contains(said, "is it running") {
		t.Errorf("without either: %d %s", code, said)
	}
}
