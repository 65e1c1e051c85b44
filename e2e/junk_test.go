package e2e

import (
	"net/http"
	"strings"
	"testing"

	"gatepost/tokens"
	"gatepost/tokens/redistest"
)

// Text that cannot be a token of this gateway is rejected without a call to Redis.
func TestJunkNeverReachesRedis(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	shop := startShop(t, setup{Redis: redis.URL()})
	secret, err := tokens.Mint(tokens.FormatSecret)
	if err != nil {
		t.Fatal(err)
	}
	flipped := []byte(secret.Reveal())
	flipped[10] ^= 1 // the checksum is now wrong
	junk := []string{
		"x", "null", "undefined", "Bearer", "Bearer x", "Basic YWxpY2U6cmlnaHQ=", "0b6f3ad2-9c1e-4f57-8a34-d2c1b0a99f1", "0b6f3ad29c1e4f578a34d2c1b0a99f10",
		"gatepost:tok:*", "gp1_", string(flipped), "Bearer " + string(flipped), strings.Repeat("a", 500), strings.Repeat("a", 5000),
		"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.", "*1 $8 FLUSHALL",
	}
	before := redis.CommandStats()
	for range 20 {
		for _, text := range junk {
			for _, path := range []string{"/orders", "/token/introspect", "/token/sessions"} {
				method := "GET"
				if path == "/token/introspect" {
					method = "POST"
				}
				got := shop.Do(method, path, "", "Authorization: "+text)
				want(t, method+" "+path+" with "+text, got, http.StatusUnauthorized, "")
			}
			want(t, "a revoke of "+text, shop.Do("POST", "/token/revoke", "token="+strings.ReplaceAll(text, " ", "+"), "Content-Type: application/x-www-form-urlencoded"), http.StatusOK, "")
		}
	}
	none(t, shop.orders)
	after := redis.CommandStats()
	for _, command := range []string{"get", "set", "del", "eval", "evalsha", "zadd", "zrange", "zscore", "mget", "exists"} {
		if n := after[command] - before[command]; n != 0 {
			t.Errorf("junk has made Redis %s %d times", command, n)
		}
	}
	// For a well-formed token Redis is called, so the count works.
	want(t, "an unknown token", shop.Do("GET", "/orders", "", "Authorization: "+secret.Reveal()), http.StatusUnauthorized, notAllowed)
	if redis.CommandStats()["get"] != after["get"]+1 {
		t.Error("an unknown token was not looked up in Redis")
	}
}
