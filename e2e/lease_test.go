package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// remembering is a gateway, or several at one Redis, whose Envoys remember decisions (tokens.lease).
type remembering struct {
	users, orders *envoytest.Recorder
	gateways      []*gateway
}

// definitions are those of a secured service under a lease; service is put into its entry, and more after all.
func (r *remembering) definitions(lease, service string, more ...string) string {
	return fmt.Sprintf(`
tokens:
  lease: %s
  authenticator: {url: "%s/users/authenticate", scopes_header: x-roles}
services:
  - {name: orders, path: /orders, upstreams: ["%s"]%s}
  - {name: parts, path: /parts, scopes: ["parts:read"], upstreams: ["%[3]s"]}
`, lease, r.users.URL(), r.orders.URL(), service) + strings.Join(more, "\n") + "\n"
}

func startRemembering(t *testing.T, lease string, setups ...setup) *remembering {
	t.Helper()
	r := &remembering{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
	for _, s := range setups {
		r.gateways = append(r.gateways, start(t, r.definitions(lease, ""), s))
	}
	return r
}

// hits is how many requests Envoys let pass by what they remembered, as the gateways have been told.
func (r *remembering) hits() float64 {
	sum := 0.0
	for _, g := range r.gateways {
		sum += g.Metric(`gatepost_decisions_total{decision="allow",reason="lease"`)
	}
	return sum
}

// user is a client with a connection of its own that uses one token again and again.
type user struct {
	client   *http.Client
	url      string
	token    string
	accepted atomic.Int64
	refused  atomic.Int64
	// latest is when the last use began that was accepted, in nanoseconds after the start of the trial.
	latest atomic.Int64
}

// use goes on until ctx ends.
func (u *user) use(ctx context.Context, t *testing.T, start time.Time) {
	for ctx.Err() == nil {
		began := time.Since(start)
		request, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, u.url+"/orders/5", nil)
		if err != nil {
			t.Error(err)
			return
		}
		request.Header.Set("Authorization", "Bearer "+u.token)
		answer, err := u.client.Do(request)
		if err != nil {
			t.Errorf("using a token: %v", err)
			return
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		switch answer.StatusCode {
		case http.StatusOK:
			u.accepted.Add(1)
			u.latest.Store(int64(began))
		case http.StatusUnauthorized:
			u.refused.Add(1)
		default:
			t.Errorf("using a token: %s", answer.Status)
		}
		time.Sleep(time.Millisecond)
	}
}

// trial has a token used over several connections at every gateway, revokes it at one of them, and fails the test where a
// use that began after the revoke had returned was accepted.
func (r *remembering) trial(t *testing.T, number int) {
	t.Helper()
	at := r.gateways[number%len(r.gateways)]
	token := at.Login(fmt.Sprintf("user-%d", number))
	ctx, end := context.WithCancel(t.Context())
	defer end()
	start := time.Now()
	var users []*user
	var all sync.WaitGroup
	for i, g := range r.gateways {
		for _, client := range []*http.Client{envoytest.Client(t), envoytest.H2Client(t)} {
			u := &user{client: client, url: g.URL, token: token}
			if i%2 == number/2%2 { // both forms of the credentials
				u.token = token
			}
			users = append(users, u)
			all.Go(func() { u.use(ctx, t, start) })
		}
	}
	every := func(what string, ok func(u *user) bool) {
		t.Helper()
		envoytest.Eventually(t, what, func() bool {
			for _, u := range users {
				if !ok(u) && !t.Failed() {
					return false
				}
			}
			return true
		})
	}
	every("each to have been let in some times", func(u *user) bool { return u.accepted.Load() >= 5 })
	got := at.Do("POST", "/token/revoke", "", "Authorization: "+token)
	returned := time.Since(start)
	if got.Status != http.StatusOK {
		t.Errorf("trial %d: revoking: %d %s", number, got.Status, got.Body)
	}
	every("each to have been refused some times", func(u *user) bool { return u.refused.Load() >= 5 })
	time.Sleep(50 * time.Millisecond) // whoever is let in now is let in late
	end()
	all.Wait()
	for i, u := range users {
		if late := time.Duration(u.latest.Load()) - returned; late > 0 {
			t.Errorf("trial %d: connection %d was let in by a use that began %v after the revoke had returned", number, i, late)
		}
	}
}

// trials makes so many of them, some at a time.
func (r *remembering) trials(t *testing.T, number, atOnce int) {
	t.Helper()
	next := atomic.Int64{}
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for n := int(next.Add(1)); n <= number && !t.Failed(); n = int(next.Add(1)) {
				r.trial(t, n)
			}
		})
	}
	all.Wait()
	if hits := r.hits(); hits < float64(number) {
		t.Errorf("%v requests were let pass by what Envoy remembered, so that little was tried", hits)
	}
	t.Logf("%d trials, %v hits", number, r.hits())
}

// TestNobodyIsLetInAfterARevokeByWhatEnvoyRemembers: at two gateways, with two workers each, over HTTP/1.1 and HTTP/2.
func TestNobodyIsLetInAfterARevokeByWhatEnvoyRemembers(t *testing.T) {
	two := []string{"--concurrency", "2"}
	t.Run("two gateways at one Redis", func(t *testing.T) {
		redis := redistest.Start(t).URL()
		startRemembering(t, "250ms", setup{Redis: redis, Args: two}, setup{Redis: redis, Args: two}).trials(t, 160, 8)
	})
	t.Run("the embedded store", func(t *testing.T) {
		startRemembering(t, "250ms", setup{Args: two}).trials(t, 40, 8)
	})
	t.Run("the longest lease", func(t *testing.T) {
		redis := redistest.Start(t).URL()
		startRemembering(t, "1s", setup{Redis: redis, Args: two}, setup{Redis: redis}).trials(t, 16, 8)
	})
}

// TestAnEnvoyThatWasFrozenRemembersNothing: what it was allowed to remember has ended when it goes on.
func TestAnEnvoyThatWasFrozenRemembersNothing(t *testing.T) {
	redis := redistest.Start(t).URL()
	r := startRemembering(t, "1s", setup{Redis: redis}, setup{Redis: redis})
	here, there := r.gateways[0], r.gateways[1]
	for round := range 3 {
		token := here.Login("alice")
		for range 20 {
			want(t, "before", there.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
		}
		pid := envoyOf(there.command.Process.Pid)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		want(t, "the revoke", here.Do("POST", "/token/revoke", "", "Authorization: "+token), http.StatusOK, "")
		answered := make(chan answer)
		for range 5 { // they wait in the frozen Envoy's sockets
			go func() {
				got, err := there.Try("GET", "/orders/5", "", "Authorization: "+token)
				if err != nil {
					t.Error(err)
				}
				answered <- got
			}()
		}
		time.Sleep(time.Duration(round) * 20 * time.Millisecond)
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			want(t, "after", <-answered, http.StatusUnauthorized, notAllowed)
		}
	}
	if r.hits() == 0 {
		t.Error("nothing was remembered")
	}
}

// TestWhatAnotherProcessAllowedIsWaitedFor: a gateway that starts beside an Envoy that remembers.
func TestWhatAnotherProcessAllowedIsWaitedFor(t *testing.T) {
	r := &remembering{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
	g := serve(t, r.definitions("1s", ""), setup{})
	for round := range 3 {
		token := g.Login("alice")
		for range 20 {
			want(t, "before", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
		}
		if g.Envoy.Stat("http.gatepost.ext_authz.disabled") == 0 {
			t.Fatal("nothing was remembered")
		}
		g.Kill()
		g.Define(r.definitions("0s", "")) // the next process knows of no lease
		g.Run()
		var revoked answer
		envoytest.Eventually(t, "the revoke", func() bool { // at the token handler itself, before Envoy knows what changed
			request, err := http.NewRequest("POST", "http://"+g.HTTP+"/token/revoke", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Authorization", token)
			response, err := client.Do(request)
			if err != nil {
				return false
			}
			response.Body.Close()
			revoked.Status = response.StatusCode
			return true
		})
		want(t, "the revoke", revoked, http.StatusOK, "")
		for range 10 {
			if got := g.Do("GET", "/orders/5", "", "Authorization: "+token); got.Status == http.StatusOK {
				t.Fatalf("round %d: let in after the revoke had returned", round)
			}
		}
		g.AwaitReady()
		g.Kill()
		g.Define(r.definitions("1s", ""))
		g.Run()
		g.AwaitReady()
		envoytest.Eventually(t, "the lease to be served again", g.Settled)
	}
}

// TestGatepostAwayEndsWhatEnvoyRemembers: it goes on for the lease and not longer.
func TestGatepostAwayEndsWhatEnvoyRemembers(t *testing.T) {
	r := &remembering{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
	g := serve(t, r.definitions("1s", ""), setup{})
	token := g.Login("alice")
	want(t, "before", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
	g.Kill()
	refuses503(t, "another token", g.Do("GET", "/orders/5", "", "Authorization: 6e1c0000-0000-4000-8000-00000000000a", page))
	refuses503(t, "afterwards", g.Await("what was remembered to end", http.StatusServiceUnavailable, "GET", "/orders/5", "", "Authorization: "+token, page))
	for range 10 {
		refuses503(t, "and from then on", g.Do("GET", "/orders/5", "", "Authorization: "+token, page))
	}
}

// TestAChangeOfDefinitionsLeavesNoDecision: from when the new ones are served a decision by the old ones is not used.
func TestAChangeOfDefinitionsLeavesNoDecision(t *testing.T) {
	r := startRemembering(t, "1s", setup{Args: []string{"--concurrency", "1"}})
	g := r.gateways[0]
	token := g.Login("alice")
	from := func(origin string) answer {
		return g.Do("GET", "/orders/5", "", "Authorization: "+token, "Origin: "+origin)
	}
	for round := range 3 {
		for name, c := range map[string]struct {
			definitions string
			look        func(got answer) error
		}{
			"scopes": {r.definitions("1s", `, scopes: ["orders:read"]`), func(got answer) error {
				return isStatus(got, http.StatusForbidden)
			}},
			"origins": {r.definitions("1s", "", `origins: ["https://good.example"]`), func(got answer) error {
				return isStatus(got, http.StatusUnauthorized)
			}},
			"user header": {r.definitions("1s", "", "identity: {user_header: x-customer}"), func(answer) error {
				got := r.orders.Requests()
				if h := got[len(got)-1].Header; h.Get("X-Customer") != "alice" || h.Get("X-User-Id") != "" {
					return fmt.Errorf("the upstream got %v", h)
				}
				return nil
			}},
			"the token is forwarded": {r.definitions("1s", ", forward_token: true"), func(answer) error {
				got := r.orders.Requests()
				if h := got[len(got)-1].Header; h.Get("Authorization") != token || h.Get("X-User-Id") != "alice" {
					return fmt.Errorf("the upstream got %v", h)
				}
				return nil
			}},
			"no lease": {r.definitions("0s", ""), func(got answer) error { return isStatus(got, http.StatusOK) }},
		} {
			before := g.Status().GetVersion()
			g.Define(c.definitions)
			stop := make(chan bool)
			go func() { // so that there is something to remember at any time
				defer close(stop)
				for range 1 << 20 {
					select {
					case stop <- true:
						return
					default:
						from("https://evil.example")
					}
				}
			}()
			version := g.AwaitChange(before)
			<-stop
			for i := range 10 {
				if err := c.look(from("https://evil.example")); err != nil {
					t.Errorf("round %d, %s: request %d after the change: %v", round, name, i, err)
				}
			}
			g.Define(r.definitions("1s", ""))
			g.AwaitChange(version)
			for range 3 {
				want(t, name+" and back", from("https://evil.example"), http.StatusOK, "")
			}
		}
	}
	if r.hits() == 0 {
		t.Error("nothing was remembered")
	}
}

func isStatus(got answer, status int) error {
	if got.Status != status {
		return fmt.Errorf("%d %s, want %d", got.Status, got.Body, status)
	}
	return nil
}

// TestEachHitCounts: among the decisions, and in Envoy.
func TestEachHitCounts(t *testing.T) {
	r := &remembering{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
	g := serve(t, r.definitions("1s", ""), setup{})
	r.gateways = []*gateway{g.gateway}
	token := g.Login("alice")
	const requests = 300
	for range requests {
		want(t, "a request", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
	}
	hits := g.Envoy.Stat("http.gatepost.ext_authz.disabled")
	if asked := int(g.Metric(`gatepost_decisions_total{decision="allow",reason="token_known",service="orders"`)); asked+hits != requests || hits < requests/2 {
		t.Errorf("%d hits and %d decisions in %d requests", hits, asked, requests)
	}
	envoytest.Eventually(t, "a question to tell of them", func() bool { // the worker's next one
		g.Do("GET", "/orders/5", "", "Authorization: 6e1c0000-0000-4000-8000-00000000000a")
		return int(r.hits()) == g.Envoy.Stat("http.gatepost.ext_authz.disabled")
	})
}

// TestTheUpstreamSeesTheSameOfAHit: byte by byte, but for what is another with each request.
func TestTheUpstreamSeesTheSameOfAHit(t *testing.T) {
	r := &remembering{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
	g := serve(t, r.definitions("1s", ""), setup{})
	requestID := regexp.MustCompile(`(?m)^x-request-id: [0-9a-f-]{36}\r$`)
	see := func(token string) (seen string, hit bool) {
		before := g.Envoy.Stat("http.gatepost.ext_authz.disabled")
		r.orders.Reset()
		want(t, "a request", g.Do("POST", "/orders/5?x=1", "body", "Authorization: Bearer "+token, "X-User-Id: mallory", "X-Mine: 1", page), http.StatusOK, "")
		return requestID.ReplaceAllString(r.orders.Raw(), "x-request-id: one\r"), g.Envoy.Stat("http.gatepost.ext_authz.disabled") > before
	}
	for _, user := range []string{"alice", "ann@example.com"} {
		token := g.Login(user)
		miss, hit := see(token)
		if hit || !strings.Contains(miss, "\r\nx-user-id: "+user+"\r\n") || strings.Contains(miss, "mallory") || strings.Contains(miss, token) {
			t.Errorf("hit %v: the upstream got\n%s", hit, miss)
		}
		again := ""
		envoytest.Eventually(t, "a hit", func() bool { again, hit = see(token); return hit })
		if again != miss {
			t.Errorf("%s: the upstream got of a hit\n%s\nand of a miss\n%s", user, again, miss)
		}
	}
}

// TestADecisionForOneServiceIsNoneForAnother: the same token, a moment later.
func TestADecisionForOneServiceIsNoneForAnother(t *testing.T) {
	r := startRemembering(t, "1s", setup{})
	g := r.gateways[0]
	token := g.Login("alice") // without a scope
	for range 20 {
		want(t, "orders", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
		want(t, "parts", g.Do("GET", "/parts/5", "", "Authorization: "+token), http.StatusForbidden, "")
	}
}
