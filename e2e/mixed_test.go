package e2e

import (
	"net/http"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redistest"
)

// A gateway without a cache does not track Redis, so it does not know about a gateway that can
// still accept a token from memory. A token that it revokes must be rejected there too, even if
// that gateway is cut off from the invalidations.
func TestRevokeWithoutACacheIsAppliedByAGatewayWithOne(t *testing.T) {
	t.Parallel()
	for module, fromMemory := range map[string]func(cached *shop, request func()) bool{
		// Gatepost decides from its cache.
		"off": func(cached *shop, request func()) bool {
			before := cached.Metric("gatepost_cache_hits_total")
			request()
			return cached.Metric("gatepost_cache_hits_total") > before
		},
		// Envoy decides by itself: Gatepost receives no check.
		"on": func(cached *shop, request func()) bool {
			before := cached.Metric(`gatepost_decisions_total{decision="allow",reason="token_known"`)
			request()
			return cached.Metric(`gatepost_decisions_total{decision="allow",reason="token_known"`) == before
		},
	} {
		t.Run("module "+module, func(t *testing.T) {
			redis := redistest.Start(t)
			l := startLine(t, redis.Addr)
			cached := startShop(t, setup{Redis: "redis://" + l.Addr, Args: []string{"--module", module}})
			uncached := startShop(t, setup{Redis: redis.URL(), Args: []string{"--cache", "off"}})
			token := "Authorization: " + cached.Login("ann")
			status := func() int { return cached.Do("GET", "/orders/1", "", token).Status }
			envoytest.Eventually(t, "the token to be accepted from memory", func() bool {
				accepted := false
				return fromMemory(cached, func() { accepted = status() == http.StatusOK }) && accepted
			})
			l.Tracking.Hold(faultproxy.Up, faultproxy.Down)
			if got := uncached.Do("POST", "/token/revoke", "", token); got.Status >= 300 {
				t.Fatalf("revoking at the gateway without a cache: %d %s", got.Status, got.Body)
			}
			if status() == http.StatusOK {
				t.Error("the gateway with a cache accepted the token after the revoke had returned")
			}
			l.Tracking.Heal()
			envoytest.Eventually(t, "the token to be refused", func() bool { return status() == http.StatusUnauthorized })
		})
	}
}
