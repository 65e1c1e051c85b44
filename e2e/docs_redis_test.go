package e2e

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// The user of Redis that docs/operations.md describes may do all that a gateway and the commands need, definitions in
// Redis included.
func TestTheUserOfTheDocumentationHasEnoughRights(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "### ACL")
	commands := regexp.MustCompile(`(?m)^ACL SETUSER gatepost .*$`).FindAllString(section, -1)
	further := regexp.MustCompile("`(\\+hget [^`]*)`").FindStringSubmatch(section)
	if len(commands) != 2 || further == nil {
		t.Fatalf("docs/operations.md has the commands %q and the rights %q", commands, further)
	}
	redis := redistest.Start(t)
	for _, command := range append(commands, "ACL SETUSER gatepost "+further[1]) {
		redis.Do(strings.Fields(strings.ReplaceAll(command, ">PASSWORD", ">secret"))...)
	}
	url := "redis://gatepost:secret@" + redis.Addr + "/0"

	orders := envoytest.Upstream(t)
	g := prepare(t, fmt.Sprintf(`
tokens: {authenticator: {url: "%s/", user_field: username}}
services: [{name: orders, path: /orders, upstreams: ["%s"]}]
`, users(t).URL(), orders.URL()), setup{Redis: url, Args: []string{"--config", "redis"}})
	g.Run()
	if said, code := gatepost(t, nil, "apply", g.File, "--redis", url); code != 0 {
		t.Fatalf("apply: %d %s", code, said)
	}
	g.AwaitReady()

	first := login(t, g, "alice", "right")
	use := func(token string) int { return g.Do("GET", "/orders", "", "Authorization: "+token).Status }
	if got := use(first); got != http.StatusOK {
		t.Errorf("a fresh token: %d", got)
	}
	refreshed := g.Do("POST", "/token/refresh", "", "Authorization: "+first)
	token := refreshed.Header.Get("token")
	if got := use(token); refreshed.Status != http.StatusOK || got != http.StatusOK {
		t.Errorf("a refresh: %d %s, its token: %d", refreshed.Status, refreshed.Body, got)
	}
	login(t, g, "alice", "wrong")
	if got := g.Do("GET", "/token/sessions", "", "Authorization: "+token); got.Status != http.StatusOK {
		t.Errorf("sessions: %d %s", got.Status, got.Body)
	}
	second := login(t, g, "alice", "right")
	if got := g.Do("POST", "/token/revoke", "", "Authorization: "+second); got.Status != http.StatusOK || use(second) != http.StatusUnauthorized {
		t.Errorf("a revoke: %d %s", got.Status, got.Body)
	}
	for _, command := range [][]string{
		{"history"}, {"show"}, {"tokens", "list", "--user", "alice"}, {"tokens", "revoke", "--user", "alice"},
	} {
		if said, code := gatepost(t, nil, append(command, "--redis", url)...); code != 0 {
			t.Errorf("%v: %d %s", command, code, said)
		}
	}
	if got := use(token); got != http.StatusUnauthorized {
		t.Errorf("after all sessions were revoked: %d", got)
	}
	if refused := redis.Do("ACL", "LOG"); refused != "" {
		t.Errorf("Redis refused something: %s", refused)
	}
	if log := g.Log(); !strings.Contains(log, "redis is tracked") || strings.Contains(log, "NOPERM") {
		t.Errorf("the gateway lacks a right")
	}
}

// login logs in with a JSON body and its media type, and returns the token, if there is one.
func login(t *testing.T, g *gateway, user, password string) string {
	t.Helper()
	body := fmt.Sprintf(`{"username":%q,"password":%q}`, user, password)
	return g.Do("POST", "/token", body, "Content-Type: application/json").Header.Get("token")
}
