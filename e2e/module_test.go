package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/envoy/module/moduletest"
	"gatepost/tokens/redistest"
)

// checking is one gateway, or several with one Redis, whose Envoys check tokens by themselves.
type checking struct {
	users, orders *envoytest.Recorder
	gateways      []*gateway
}

// definitions returns definitions with a secured service. service is added to its entry, more is
// appended.
func (c *checking) definitions(service string, more ...string) string {
	return fmt.Sprintf(`
tokens: {authenticator: {url: "%s/users/authenticate", scopes_header: x-roles}}
services:
  - {name: orders, path: /orders, upstreams: ["%s"]%s}
  - {name: parts, path: /parts, scopes: ["parts:read"], upstreams: ["%[2]s"]}
`, c.users.URL(), c.orders.URL(), service) + strings.Join(more, "\n") + "\n"
}

func startChecking(t *testing.T, setups ...setup) *checking {
	t.Helper()
	c := &checking{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
	for _, s := range setups {
		c.gateways = append(c.gateways, start(t, c.definitions(""), s))
	}
	return c
}

// hits returns how many requests to orders the modules allowed, according to the gateways'
// counters.
func (c *checking) hits() float64 {
	sum := 0.0
	for _, g := range c.gateways {
		sum += g.Metric(`gatepost_decisions_total{decision="allow",reason="module",service="orders"`)
	}
	return sum
}

// user is a client that uses one token repeatedly over its own connection.
type user struct {
	client *http.Client
	url    string
	// authorization is the header: the token by itself, or after "Bearer".
	authorization string

	accepted atomic.Int64
	refused  atomic.Int64
	// latest is the start time of the last accepted use, in nanoseconds since the start of the
	// trial.
	latest atomic.Int64
}

// get uses the token once.
func (u *user) get(ctx context.Context) (status int, err error) {
	got, err := envoytest.Send(ctx, u.client, http.MethodGet, u.url+"/orders/5", "", "Authorization: "+u.authorization)
	return got.Status, err
}

// use sends requests until ctx is done.
func (u *user) use(ctx context.Context, t *testing.T, start time.Time) {
	for ctx.Err() == nil {
		began := time.Since(start)
		status, err := u.get(context.WithoutCancel(ctx))
		if err != nil {
			t.Errorf("using a token: %v", err)
			return
		}
		switch status {
		case http.StatusOK:
			u.accepted.Add(1)
			u.latest.Store(int64(began))
		case http.StatusUnauthorized:
			u.refused.Add(1)
		case http.StatusServiceUnavailable: // on a busy machine Redis may not answer in time
		default:
			t.Errorf("using a token: %d", status)
		}
		time.Sleep(time.Millisecond)
	}
}

// trial uses a token over several connections at every gateway and revokes it at one of them. It
// fails if a use that started after the revoke returned is accepted.
func (c *checking) trial(t *testing.T, number int) {
	t.Helper()
	at := c.gateways[number%len(c.gateways)]
	token := at.Login(fmt.Sprintf("user-%d", number))
	ctx, end := context.WithCancel(t.Context())
	defer end()
	start := time.Now()
	var users []*user
	var all sync.WaitGroup
	for i, g := range c.gateways {
		for _, client := range []*http.Client{envoytest.Client(t), envoytest.H2Client(t)} {
			u := &user{client: client, url: g.URL, authorization: token}
			if i%2 == number/2%2 { // each form of the header is a decision of its own
				u.authorization = "Bearer " + token
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
	before := map[*user]int64{}
	for _, u := range users {
		before[u] = u.refused.Load()
	}
	every("each to have been refused some times after the revoke", func(u *user) bool { return u.refused.Load() >= before[u]+20 })
	end()
	all.Wait()
	for i, u := range users {
		if late := time.Duration(u.latest.Load()) - returned; late > 0 {
			t.Errorf("trial %d: connection %d was let in by a use that began %v after the revoke had returned", number, i, late)
		}
	}
}

// trials runs several trials, some of them concurrently.
func (c *checking) trials(t *testing.T, number, atOnce int) {
	t.Helper()
	next := atomic.Int64{}
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for n := int(next.Add(1)); n <= number && !t.Failed(); n = int(next.Add(1)) {
				c.trial(t, n)
			}
		})
	}
	all.Wait()
	if hits := c.hits(); hits < float64(number) {
		t.Errorf("%v requests were let pass by the module: little was tried", hits)
	}
	t.Logf("%d trials, %v hits", number, c.hits())
}

// TestRevokedTokensAreRejectedByTheModule uses two gateways with two workers each, over HTTP/1.1
// and HTTP/2.
func TestRevokedTokensAreRejectedByTheModule(t *testing.T) {
	t.Parallel()
	two := setup{Program: racing(t), Args: []string{"--concurrency", "2"}}
	t.Run("two gateways at one Redis", func(t *testing.T) {
		shared := two
		shared.Redis = redistest.Start(t).URL()
		startChecking(t, shared, shared).trials(t, 60, 8)
	})
	t.Run("one of them without the module", func(t *testing.T) {
		shared := two
		shared.Redis = redistest.Start(t).URL()
		startChecking(t, shared, setup{Program: two.Program, Redis: shared.Redis, Args: []string{"--module", "off"}}).trials(t, 30, 8)
	})
	t.Run("the embedded store", func(t *testing.T) {
		startChecking(t, two).trials(t, 30, 8)
	})
}

// TestFrozenProcessLetsNobodyIn freezes an Envoy, or a Gatepost with a running Envoy, while a token
// is revoked.
func TestFrozenProcessLetsNobodyIn(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t).URL()
	c := startChecking(t, setup{Redis: redis}, setup{Redis: redis})
	here, there := c.gateways[0], c.gateways[1]
	for name, pid := range map[string]func() int{
		"Envoy":    func() int { return envoyOf(there.command.Process.Pid) },
		"Gatepost": func() int { return there.command.Process.Pid },
	} {
		for range 3 {
			token := here.Login("alice")
			for range 20 {
				want(t, name+": before", there.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
			}
			if err := syscall.Kill(pid(), syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			want(t, name+": the revoke", here.Do("POST", "/token/revoke", "", "Authorization: "+token), http.StatusOK, "")
			answered, sent := make(chan answer), make(chan struct{}, 50)
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { sent <- struct{}{} }})
			for range 5 { // they wait in the socket queues of the frozen process
				go func() {
					got, err := there.TryTraced(ctx, "GET", "/orders/5", "", "Authorization: "+token)
					if err != nil {
						t.Error(err)
					}
					answered <- got
				}()
			}
			for range 5 {
				<-sent
			}
			if err := syscall.Kill(pid(), syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if got := <-answered; got.Status == http.StatusOK {
					t.Errorf("%s: let in after the revoke had returned", name)
				}
			}
			there.Await(name+" to go on", http.StatusUnauthorized, "GET", "/orders/5", "", "Authorization: "+token)
		}
	}
	if c.hits() == 0 {
		t.Error("the module allowed no request")
	}
}

// TestFrozenGatepostEndsDecisionsOfTheModule: secured services return 503 after a second, public
// ones still work, and everything recovers.
func TestFrozenGatepostEndsDecisionsOfTheModule(t *testing.T) {
	t.Parallel()
	c := startChecking(t, setup{})
	g := c.gateways[0]
	token := g.Login("alice")
	for range 5 {
		want(t, "before", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
	}
	g.Freeze()
	g.Await("the decisions to end", http.StatusServiceUnavailable, "GET", "/orders/5", "", "Authorization: "+token)
	g.Signal(syscall.SIGCONT)
	g.Await("Gatepost to go on", http.StatusOK, "GET", "/orders/5", "", "Authorization: "+token)
}

// TestChangeOfDefinitionsLeavesNoDecision: when new definitions are served, decisions of the old
// ones are not used.
func TestChangeOfDefinitionsLeavesNoDecision(t *testing.T) {
	t.Parallel()
	c := startChecking(t, setup{Program: racing(t), Args: []string{"--concurrency", "1"}})
	g := c.gateways[0]
	token := g.Login("alice")
	from := func(origin string) answer {
		return g.Do("GET", "/orders/5", "", "Authorization: "+token, "Origin: "+origin)
	}
	upstream := func(look func(h http.Header) bool) func(answer) error {
		return func(answer) error {
			got := c.orders.Requests()
			if h := got[len(got)-1].Header; !look(h) {
				return fmt.Errorf("the upstream got %v", h)
			}
			return nil
		}
	}
	status := func(want int) func(answer) error {
		return func(got answer) error {
			if got.Status != want {
				return fmt.Errorf("%d %s, want %d", got.Status, got.Body, want)
			}
			return nil
		}
	}
	for round := range 2 {
		for name, one := range map[string]struct {
			definitions string
			look        func(got answer) error
		}{
			"scopes":  {c.definitions(`, scopes: ["orders:read"]`), status(http.StatusForbidden)},
			"origins": {c.definitions("", `origins: ["https://good.example"]`), status(http.StatusUnauthorized)},
			"user header": {c.definitions("", "identity: {user_header: x-customer}"), upstream(func(h http.Header) bool {
				return h.Get("X-Customer") == "alice" && h.Get("X-User-Id") == ""
			})},
			"the token is forwarded": {c.definitions(", forward_token: true"), upstream(func(h http.Header) bool {
				return h.Get("Authorization") == token && h.Get("X-User-Id") == "alice"
			})},
		} {
			before := g.Status().GetVersion()
			g.Define(one.definitions)
			stop := make(chan bool)
			go func() { // so that there always is a decision
				defer close(stop)
				for {
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
				if err := one.look(from("https://evil.example")); err != nil {
					t.Errorf("round %d, %s: request %d after the change: %v", round, name, i, err)
				}
			}
			g.Define(c.definitions(""))
			g.AwaitChange(version)
			for range 3 {
				want(t, name+" and back", from("https://evil.example"), http.StatusOK, "")
			}
		}
	}
	if c.hits() == 0 {
		t.Error("the module allowed no request")
	}
}

// TestHitsAreCounted: hits are counted as decisions, per service, and last_seen is updated every
// minute.
func TestHitsAreCounted(t *testing.T) {
	t.Parallel()
	c := startChecking(t, setup{})
	g := c.gateways[0]
	token := g.Login("alice")
	const requests = 300
	for range requests {
		want(t, "a request", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
	}
	hits := int(c.hits())
	if asked := int(g.Metric(`gatepost_decisions_total{decision="allow",reason="token_known",service="orders"`)); asked+hits != requests || hits < requests-20 {
		t.Errorf("%d hits and %d decisions in %d requests", hits, asked, requests)
	}
}

// TestDecisionsAreSeparateForEachService uses the same token at another service.
func TestDecisionsAreSeparateForEachService(t *testing.T) {
	t.Parallel()
	c := startChecking(t, setup{})
	g := c.gateways[0]
	token := g.Login("alice") // without a scope
	for range 20 {
		want(t, "orders", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
		want(t, "parts", g.Do("GET", "/parts/5", "", "Authorization: "+token), http.StatusForbidden, "")
	}
}

// TestModuleSetting checks the effect of --module, and how status and the log report it.
func TestModuleSetting(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]struct {
		args   []string
		inside bool
		reason string
	}{
		"default":         {nil, true, ""},
		"on":              {[]string{"--module", "on"}, true, ""},
		"off":             {[]string{"--module", "off"}, false, "--module off"},
		"Envoy elsewhere": {[]string{"--grpc", envoytest.Addr(t)}, false, "no folder is shared"},
		"without a cache": {[]string{"--redis", redistest.Start(t).URL(), "--cache", "off"}, false, "--cache off"},
	} {
		t.Run(name, func(t *testing.T) {
			c := startChecking(t, setup{Args: s.args})
			g := c.gateways[0]
			token := g.Login("alice")
			for range 5 {
				want(t, "a request", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
			}
			if hits := c.hits(); (hits > 0) != s.inside {
				t.Errorf("%v hits", hits)
			}
			module := g.Status().GetModule()
			if (module.GetLibrary() != "") != s.inside || !strings.Contains(module.GetReason(), s.reason) || (module.GetReason() == "") != s.inside {
				t.Errorf("the status is %v", module)
			}
		})
	}
	t.Run("on, but impossible", func(t *testing.T) {
		c := &checking{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
		g := prepare(t, c.definitions(""), setup{Args: []string{"--module", "on", "--grpc", envoytest.Addr(t)}})
		g.Run()
		if code := g.ExitCode(); code != 1 || !strings.Contains(g.Log(), "no folder is shared") {
			t.Errorf("exit %d:\n%s", code, g.Log())
		}
	})
	t.Run("an invalid value", func(t *testing.T) {
		c := &checking{users: usersWithScopes(t), orders: envoytest.Upstream(t)}
		g := prepare(t, c.definitions(""), setup{Args: []string{"--module", "perhaps"}})
		g.Run()
		if code := g.ExitCode(); code != 2 {
			t.Errorf("exit %d:\n%s", code, g.Log())
		}
	})
}

// withModule builds a gatepost with another library as its module, and returns its path.
func withModule(t *testing.T, library string) string {
	t.Helper()
	return withOverlay(t, map[string]string{moduleFile(t): library})
}

// moduleFile is the library that is embedded in gatepost.
func moduleFile(t *testing.T) string {
	return filepath.Join(root(t), "envoy/module/build/libgatepost_"+runtime.GOARCH+".so")
}

// withOverlay builds a gatepost in which files are replaced by others, with more arguments of go build, and returns its
// path.
func withOverlay(t *testing.T, replaced map[string]string, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		t.Fatal(err)
	}
	file, program := filepath.Join(dir, "overlay.json"), filepath.Join(dir, "gatepost")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, build(program, "gatepost/cmd/gatepost", append(more, "-overlay", file)...))
	return program
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestModuleThatEnvoyRejects: the gateway works without the module, and reports it once.
func TestModuleThatEnvoyRejects(t *testing.T) {
	t.Parallel()
	// A library of these sources that has not all functions that Envoy requires.
	library := moduletest.Compile(t, "library", "-Denvoy_dynamic_module_on_program_init=absent")
	c := startChecking(t, setup{Program: withModule(t, library)})
	g := c.gateways[0]
	want(t, "a request", g.Do("GET", "/orders/5", "", "Authorization: "+g.Login("alice")), http.StatusOK, "")
	if reason := g.Status().GetModule().GetReason(); !strings.Contains(reason, "the module is refused by Envoy") {
		t.Errorf("the status is %q", reason)
	}
	g.Logged(1, "Envoy does not check tokens by itself")
}

// TestProgramWithoutTheModule: built without a C compiler, or beside a module of other sources, the gateway works, and
// reports it once. --module on is an error.
func TestProgramWithoutTheModule(t *testing.T) {
	t.Parallel()
	other := filepath.Join(t.TempDir(), "other.so")
	if err := os.WriteFile(other, []byte("\x7fELF of other sources"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]struct{ library, reason string }{
		"not built":        {"", "built without the module"},
		"of other sources": {other, "built with a module of other sources"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			program := withModule(t, s.library)
			c := startChecking(t, setup{Program: program})
			g := c.gateways[0]
			want(t, "a request", g.Do("GET", "/orders/5", "", "Authorization: "+g.Login("alice")), http.StatusOK, "")
			if reason := g.Status().GetModule().GetReason(); !strings.Contains(reason, s.reason) {
				t.Errorf("the status is %q", reason)
			}
			g.Logged(1, "Envoy does not check tokens by itself")
			on := prepare(t, c.definitions(""), setup{Program: program, Args: []string{"--module", "on"}})
			on.Run()
			if code := on.ExitCode(); code != 1 || !strings.Contains(on.Log(), s.reason) {
				t.Errorf("--module on: exit %d:\n%s", code, on.Log())
			}
		})
	}
}

// TestModuleThatCrashes: `run` restarts Envoy, and counts it.
func TestModuleThatCrashes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	trigger, header := filepath.Join(dir, "crash"), filepath.Join(dir, "crash.h")
	text := fmt.Sprintf(`
#include <time.h>
#include <unistd.h>
static int crashing_clock(clockid_t clock, struct timespec *t) {
  if (unlink("%s") == 0) __builtin_trap();
  return clock_gettime(clock, t);
}
`, trigger)
	if err := os.WriteFile(header, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	library := moduletest.Compile(t, "library", "-D_GNU_SOURCE=", "-include", header, "-DGP_CLOCK=crashing_clock")
	c := startChecking(t, setup{Program: withModule(t, library)})
	g := c.gateways[0]
	token := g.Login("alice")
	for range 3 {
		want(t, "before", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
	}
	if err := os.WriteFile(trigger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := g.Try("GET", "/orders/5", "", "Authorization: "+token); err == nil {
		t.Fatalf("no crash: %d", got.Status)
	}
	crashed := time.Now()
	envoytest.Eventually(t, "Envoy to be back", func() bool {
		got, err := g.Try("GET", "/orders/5", "", "Authorization: "+token)
		return err == nil && got.Status == http.StatusOK
	})
	t.Logf("back after %v", time.Since(crashed))
	if deaths := g.Metric("gatepost_envoy_deaths_total"); deaths != 1 {
		t.Errorf("%v deaths of Envoy are counted", deaths)
	}
	want(t, "afterwards", g.Do("GET", "/orders/5", "", "Authorization: "+token), http.StatusOK, "")
}
