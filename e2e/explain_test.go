package e2e

import (
	"encoding/json"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"gatepost/explain"
	"gatepost/tokens/redistest"
)

// explained runs `gatepost explain` on the gateway's definitions.
func (g *gateway) explained(t *testing.T, args []string, method, path string, headers ...string) explain.Explanation {
	t.Helper()
	args = append([]string{"explain", "--config", g.File, "--format", "json", "-X", method}, args...) // the last --config takes effect
	for _, h := range headers {
		args = append(args, "-H", h)
	}
	command := exec.Command(binary, append(args, path)...)
	command.Env = g.env
	out, err := command.Output()
	if err != nil {
		t.Fatalf("gatepost %q: %v", args, err)
	}
	var a explain.Explanation
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatalf("gatepost %q: %v\n%s", args, err, out)
	}
	return a
}

// TestExplainMatchesTheGateway compares `gatepost explain` with the running gateway. Package
// explain compares thousands of requests; this test takes a user's path, with a token of the
// gateway and its Redis.
func TestExplainMatchesTheGateway(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	shop := startShop(t, setup{Redis: redis.URL()}, "cors: {expose_headers: [x-total]}")
	alice := shop.Login("alice")
	ask := []string{"--redis", redis.URL(), "--admin", shop.Admin} // the version depends on how Envoy checks tokens
	served := shop.Do("GET", "/.gatepost/version", "").Body
	for _, line := range []string{
		"GET /orders/5?x=1", "GET /ORDERS [Authorization: Bearer " + alice + "]", "GET /orders/a/../b [Authorization: " + alice + "]",
		"PATCH /orders/5", "GET /orders [Authorization: nonsense]", "GET /orders [Authorization: 7a6b3c50-1c2d-4e5f-8a9b-0c1d2e3f4a5b]",
		"GET /items/5", "POST /items", "GET /nothing", "GET /items%2f5", "GET /items [Origin: https://a.example]", "GET /orders [Origin: https://a.example]",
		"OPTIONS /orders [Origin: https://a.example] [Access-Control-Request-Method: GET]", "GET /token", "GET /.gatepost/version",
	} {
		first, rest, _ := strings.Cut(line, " [")
		method, path, _ := strings.Cut(first, " ")
		var headers []string
		if rest != "" {
			headers = strings.Split(strings.TrimSuffix(rest, "]"), "] [")
		}
		a := shop.explained(t, ask, method, path, headers...)
		o := a.Outcomes[0]
		if len(a.Outcomes) != 1 || `"`+a.Version+`"` != served {
			t.Errorf("%s: %d outcomes by version %s; want one by %s", line, len(a.Outcomes), a.Version, served)
		}
		got := shop.Do(method, path, "", headers...)
		for _, h := range o.Headers {
			if have := strings.Join(got.Header.Values(h.Name), ","); have != h.Value {
				t.Errorf("%s: %s is %q, explained as %q", line, h.Name, have, h.Value)
			}
		}
		switch {
		case o.Forward == nil:
			want(t, line, got, o.Status, o.Body)
			none(t, shop.orders)
			none(t, shop.items)
		default:
			want(t, line, got, http.StatusOK, "")
			upstream := shop.items
			if a.Service.Name == "orders" {
				upstream = shop.orders
			}
			seen := only(t, upstream)
			if o.Forward.To[0] != upstream.URL() || seen.Path != o.Forward.Path || seen.Method != o.Forward.Method {
				t.Errorf("%s: %s %s reached %s, explained as %+v", line, seen.Method, seen.Path, upstream.URL(), o.Forward)
			}
			for _, h := range o.Forward.Set {
				if have := seen.Header.Get(h.Name); have != h.Value {
					t.Errorf("%s: the upstream sees %s %q, explained as %q", line, h.Name, have, h.Value)
				}
			}
			for _, name := range o.Forward.Removed {
				if have := seen.Header.Get(name); have != "" {
					t.Errorf("%s: the upstream sees %s, explained as removed", line, name)
				}
			}
		}
	}
}

// TestExplainUsesTheCurrentSession follows one token through its life.
func TestExplainUsesTheCurrentSession(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	shop := startShop(t, setup{Redis: redis.URL()})
	alice := shop.Login("alice")
	show := "Authorization: Bearer " + alice
	reason := func(args ...string) string {
		var all []string
		for _, o := range shop.explained(t, args, "GET", "/orders", show).Outcomes {
			all = append(all, o.Reason)
		}
		return strings.Join(all, ",")
	}
	ask := []string{"--redis", redis.URL(), "--admin", shop.Admin} // the version depends on how Envoy checks tokens
	if got := reason(ask...); got != "forwarded" {
		t.Errorf("a live token: %s, want forwarded", got)
	}
	if got := reason(); got != "forwarded,token_unknown" {
		t.Errorf("without the store: %s, want both ends", got)
	}
	want(t, "a revoke", shop.Do("POST", "/token/revoke", "", show), http.StatusOK, "")
	if got := reason(ask...); got != "token_unknown" {
		t.Errorf("a revoked token: %s, want token_unknown", got)
	}
	explained := shop.explained(t, append(ask, "--config", shop.File), "GET", "/orders", show)
	if apply := exec.Command(binary, append([]string{"apply", shop.File}, ask...)...); apply.Run() != nil {
		t.Fatal("storing the definitions in Redis failed")
	}
	stored := shop.explained(t, append(ask, "--config", "redis"), "GET", "/orders", show)
	if stored.Version != explained.Version || stored.Outcomes[0].Reason != "token_unknown" {
		t.Errorf("by the definitions in Redis: %+v; want the same as by the file", stored)
	}
	redis.Kill()
	if got := reason(ask...); got != "store_unavailable" {
		t.Errorf("a store that is away: %s, want store_unavailable", got)
	}
}

// TestExplainLooksUpTokensInTheGateway follows a token of the embedded store, which only the
// gateway can open.
func TestExplainLooksUpTokensInTheGateway(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	alice := shop.Login("alice")
	show := "Authorization: Bearer " + alice
	ask := []string{"--admin", shop.Admin}
	explained := func(what, header string, status int, reason string) explain.Explanation {
		t.Helper()
		a := shop.explained(t, ask, "GET", "/orders/5", header)
		if len(a.Outcomes) != 1 || a.Outcomes[0].Reason != reason || a.Asked != "the gateway on "+shop.Admin || a.Gateway == nil || !a.Gateway.Serves {
			t.Errorf("%s: explained as %+v, want %s by the gateway", what, a, reason)
		}
		want(t, what, shop.Do("GET", "/orders/5", "", header), status, a.Outcomes[0].Body)
		return a
	}
	live := explained("a live token", show, http.StatusOK, "forwarded")
	if set := live.Outcomes[0].Forward.Set; !slices.Contains(set, explain.Field{Name: "x-user-id", Value: "alice"}) {
		t.Errorf("a live token: forwarded with %v, want the user's id", set)
	}
	explained("a token that was never issued", "Authorization: 7a6b3c50-1c2d-4e5f-8a9b-0c1d2e3f4a5b", http.StatusUnauthorized, "token_unknown")
	want(t, "a revoke", shop.Do("POST", "/token/revoke", "", show), http.StatusOK, "")
	explained("a revoked token", show, http.StatusUnauthorized, "token_unknown")
	if strings.Contains(shop.Log(), alice) {
		t.Error("the gateway's log has the token")
	}
	shop.Stop()
	if err := exec.Command(binary, "explain", "--config", shop.File, "--admin", shop.Admin, "/orders").Run(); err == nil {
		t.Error("a named gateway that has stopped causes no error")
	}
}
