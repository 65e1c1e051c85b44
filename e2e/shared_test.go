package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gatepost/admin"
	"gatepost/convention"
	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// fleet is a set of gateways that share one Redis and its definitions.
type fleet struct {
	*shop
	redis    *redistest.Server
	gateways []*gateway
	dir      string
}

// prepareFleet prepares n gateways and applies the definitions of a shop. It starts none.
func prepareFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := &fleet{
		shop:  &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)},
		redis: redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always"), dir: t.TempDir(),
	}
	for range n {
		g := prepare(t, "services: []", setup{Program: racing(t), Redis: f.redis.URL()})
		for i, arg := range g.args {
			if arg == g.File {
				g.args[i] = "redis"
			}
		}
		f.gateways = append(f.gateways, g)
	}
	f.gateway = f.gateways[0]
	return f
}

// startFleet is prepareFleet followed by starting the gateways. Each has its own address: a gateway
// does not start at an address on which another one already accepts connections.
func startFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := prepareFleet(t, n)
	for _, g := range f.gateways {
		g.args = append(g.args, "--listen", g.Addr)
	}
	f.start()
	return f
}

// start applies the definitions and starts the gateways.
func (f *fleet) start() {
	f.t.Helper()
	f.Applies(0, f.definitions(), "no gateway is running")
	for _, g := range f.gateways {
		g.Run()
	}
	for _, g := range f.gateways {
		g.AwaitReady()
	}
	f.AwaitRevision(1)
}

// File writes definitions to a file, prefixed with the listen address.
func (f *fleet) File(definitions string) string {
	f.t.Helper()
	path := filepath.Join(f.dir, "gatepost.yaml")
	if err := os.WriteFile(path, []byte("listen: "+f.Addr+"\n"+definitions), 0o644); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// Command runs a gatepost command with the fleet's Redis. It checks the exit code and that the
// output contains each text.
func (f *fleet) Command(code int, args []string, want ...string) string {
	f.t.Helper()
	out, got := gatepost(f.t, append(os.Environ(), "GATEPOST_REDIS="+f.redis.URL()), args...)
	if got != code {
		f.t.Fatalf("gatepost %v: exit code %d, want %d:\n%s", args, got, code, out)
	}
	for _, text := range want {
		if !strings.Contains(out, text) {
			f.t.Fatalf("gatepost %v: does not print %q:\n%s", args, text, out)
		}
	}
	return out
}

// Applies applies definitions.
func (f *fleet) Applies(code int, definitions string, want ...string) string {
	f.t.Helper()
	return f.Command(code, []string{"apply", f.File(definitions)}, want...)
}

// AwaitRevision waits until each gateway reports the revision as its verified source.
func (f *fleet) AwaitRevision(number int) {
	f.t.Helper()
	for _, g := range f.gateways {
		envoytest.Eventually(f.t, fmt.Sprintf("revision %d to be verified", number), func() bool {
			status, err := g.tryStatus()
			return err == nil && status.GetSource() == fmt.Sprintf("redis:%d", number) && g.Settled()
		})
	}
}

// Everywhere checks the status at each running gateway.
func (f *fleet) Everywhere(status int, path string) {
	f.t.Helper()
	fresh := &http.Client{Timeout: client.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range 40 {
		got, err := fresh.Get(f.gateways[i%len(f.gateways)].URL + path)
		if err != nil {
			f.t.Fatalf("GET %s: %v", path, err)
		}
		got.Body.Close()
		if got.StatusCode != status {
			f.t.Fatalf("GET %s: %d, want %d everywhere", path, got.StatusCode, status)
		}
	}
}

// service returns one more public service of the shop.
func (f *fleet) service(name string) string {
	return fmt.Sprintf("  - {name: %s, path: /%s, authenticate: false, upstreams: [%q]}", name, name, f.items.URL())
}

// TestRollbackByTheAPIInRedis: an operator of one gateway has all of them serve an earlier revision.
func TestRollbackByTheAPIInRedis(t *testing.T) {
	t.Parallel()
	f := prepareFleet(t, 2)
	options, _ := withOperator(t)
	for _, g := range f.gateways {
		g.args = append(append(g.args, "--listen", g.Addr), options.Args...)
	}
	f.start()
	f.Applies(0, f.definitions(f.service("news")), "revision 2 is stored: +news")
	f.Everywhere(http.StatusOK, "/news")

	o := newOperator(t, f.gateways[1])
	if got := string(o.call("GET", "/api/v1/revisions/2/diff", "", http.StatusOK)); !strings.Contains(got, "+  - name: news") {
		t.Errorf("the diff is %s", got)
	}
	o.call("POST", "/api/v1/revisions/1/rollback", `{"base":1}`, http.StatusConflict)
	o.call("POST", "/api/v1/revisions/9/rollback", `{}`, http.StatusNotFound)
	o.call("POST", "/api/v1/revisions/1/rollback", `{"base":2,"message":"news is broken"}`, http.StatusOK)
	f.AwaitRevision(3)
	f.Everywhere(http.StatusNotFound, "/news")
	newest := read[[]admin.Revision](o, "/api/v1/revisions")[0]
	if newest.Number != 3 || newest.Who != "alice" || newest.Message != "news is broken" {
		t.Errorf("the newest revision is %+v", newest)
	}
	f.Command(0, []string{"history"}, "alice", "news is broken")

	fromMemory := func(want bool) {
		t.Helper()
		envoytest.Eventually(t, fmt.Sprintf("tokens to be answered from memory: %v", want), func() bool {
			return read[admin.Overview](o, "/api/v1/overview").FromMemory == want
		})
	}
	fromMemory(true)
	f.redis.Kill()
	fromMemory(false)
	o.call("POST", "/api/v1/revisions/2/rollback", `{}`, http.StatusServiceUnavailable)
}

func TestApplyIsVerifiedOnEveryGateway(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 2)
	f.Everywhere(http.StatusNotFound, "/news")

	out := f.Applies(0, f.definitions(f.service("news")), "revision 2 is stored: +news")
	if got := strings.Count(out, ": verified\n"); got != 2 {
		t.Errorf("%d gateways have verified it, want 2:\n%s", got, out)
	}
	f.Everywhere(http.StatusOK, "/news")
	f.AwaitRevision(2)
	for _, g := range f.gateways {
		envoytest.Eventually(t, "the record of revision 2", func() bool {
			return len(lines(g.Log(), `"msg":"revision read"`, `"revision":2`, withEvent(convention.EventDefinitionsRead))) > 0
		})
	}

	f.Applies(0, f.definitions(f.service("news")), "unchanged: already revision 2", ": verified\n")
	// A comment changes nothing that is served, but is a revision.
	f.Applies(0, f.definitions(f.service("news"))+"# why\n", "revision 3 is stored: nothing that is served", ": verified\n")

	bad := f.Applies(1, f.definitions(f.service("news"), f.service("news")))
	if !strings.Contains(bad, "gatepost.yaml:18:12: services[3].name: ") {
		t.Errorf("a bad file is refused without file, line and column:\n%s", bad)
	}
	f.Command(1, []string{"apply", f.File(f.definitions()), "--base", "2"}, "based on revision 2, but the newest is 3", "--base 3")
	f.Command(1, []string{"diff", f.File(f.definitions())}, "--- revision 3: service news")
	f.Command(0, []string{"diff", f.File(f.definitions(f.service("news")))}, "no differences from revision 3")

	f.Command(0, []string{"rollback", "1", "--message", "no news"}, "revision 4 is stored: -news", ": verified\n")
	f.Everywhere(http.StatusNotFound, "/news")
	history := f.Command(0, []string{"history"}, "+news", "no news", "@")
	if got := len(lines(history, "\n")); got != 5 {
		t.Errorf("the history has %d lines, want a heading and 4 revisions:\n%s", got, history)
	}

	limited := strings.Replace(f.service("news"), "]}", "], rate_limits: [{requests: 1, by: address}]}", 1)
	f.Applies(0, f.definitions(limited), ": verified\n", "services[2].rate_limits[0].requests: warning: 1 in 1s is less than one for each of 2 gateways")

	// A gateway that stops deregisters, so nothing waits for it.
	f.gateways[1].Stop()
	out = f.Applies(0, f.definitions(f.service("news")), "revision 6 is stored")
	if got := strings.Count(out, ": verified\n"); got != 1 {
		t.Errorf("%d gateways have verified it, want 1:\n%s", got, out)
	}
}

func TestApplyNamesTheGatewayThatHasNotVerified(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 2)
	frozen := f.gateways[1]
	frozen.Freeze()
	defer frozen.Signal(syscall.SIGCONT)
	out := f.Command(1, []string{"apply", f.File(f.definitions(f.service("news"))), "--timeout", "7s"},
		"revision 2 is stored", "have not verified it")
	if got := lines(out, frozen.Admin, "NOT verified: no report for", "the last one with revision 1"); len(got) != 1 {
		t.Errorf("the frozen gateway is not reported:\n%s", out)
	}
	frozen.Signal(syscall.SIGCONT)
	f.AwaitRevision(2)
	f.Everywhere(http.StatusOK, "/news")
}

// If Envoy rejects a revision, apply prints Envoy's message. The gateways serve the previous
// version, also after a restart, and then the next valid revision.
func TestRejectedRevisionIsNotServed(t *testing.T) {
	t.Parallel()
	f := prepareFleet(t, 2)
	// The address of the definitions, for both: it is what Envoy rejects below.
	f.gateways[1].Addr, f.gateways[1].URL = f.Addr, f.URL
	f.start()
	taken := envoytest.Upstream(t) // its port is in use, so no Envoy can listen there
	elsewhere := "listen: " + taken.Addr() + "\n" + f.definitions(f.service("news"))
	path := filepath.Join(f.dir, "elsewhere.yaml")
	if err := os.WriteFile(path, []byte(elsewhere), 0o644); err != nil {
		t.Fatal(err)
	}
	out := f.Command(1, []string{"apply", path}, "revision 2 is stored")
	if got := lines(out, "NOT verified: rejected by Envoy", "listener", "cannot bind"); len(got) != 2 {
		t.Errorf("two gateways do not report Envoy's message:\n%s", out)
	}
	f.AwaitRevision(1)
	f.Everywhere(http.StatusNotFound, "/news")

	for _, g := range f.gateways {
		g.Stop()
	}
	for _, g := range f.gateways {
		g.Run()
	}
	f.AwaitRevision(1)
	f.Everywhere(http.StatusOK, "/items")
	for _, g := range f.gateways {
		if got := g.Status().GetRejected(); !strings.Contains(got, "cannot bind") {
			t.Errorf("the status does not report the rejection: %q", got)
		}
	}
	f.Command(1, []string{"apply", path}, "unchanged: already revision 2", "cannot bind")

	f.Applies(0, f.definitions(f.service("news")), "revision 3 is stored", ": verified\n")
	f.Everywhere(http.StatusOK, "/news")
}

func TestRedisLosesTheDefinitions(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string][]string{
		"everything is deleted":   {"FLUSHALL"},
		"the newest is no number": {"SET", "gatepost:{definitions}:newest", "garbage"},
		"the revision is garbage": {"HSET", "gatepost:{definitions}:about", "1", "garbage"},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFleet(t, 1)
			before := f.Status().GetVersion()
			f.redis.Do(lose...)
			f.redis.Do("PUBLISH", "gatepost:{definitions}:news", "1")
			envoytest.Eventually(t, "the status to report it", func() bool { return f.Status().GetRejected() != "" })
			envoytest.Eventually(t, "the log to report it", func() bool {
				return len(lines(f.Log(), `"level":"ERROR"`, "the definitions cannot be served; those before stay")) > 0
			})
			if got := f.Status().GetVersion(); got != before {
				t.Errorf("version %s is served, want %s still", got, before)
			}
			want(t, "the public service", f.Do("GET", "/items", ""), http.StatusOK, "")

			// After a restart the last good version is served, and the next apply works.
			f.Stop()
			f.Run()
			f.Await("the public service", http.StatusOK, "GET", "/items", "")
			if got := f.Status().GetVersion(); got != before {
				t.Errorf("after a restart version %s is served, want %s still", got, before)
			}
			f.redis.Do("DEL", "gatepost:{definitions}:newest")
			f.Applies(0, f.definitions(f.service("news")), "is stored", ": verified\n")
			f.Everywhere(http.StatusOK, "/news")
		})
	}
}

func TestDefinitionsWhileRedisIsAwayAtTheStart(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 1)
	token := f.Login("alice")
	f.Stop()
	f.redis.Kill()
	f.Run()
	f.Await("the public service", http.StatusOK, "GET", "/items", "")
	away(t, f.shop, token)
	notReady(t, f.gateway)
	f.redis.Restart()
	well(t, f.shop, token)
	f.AwaitReady()
	f.Applies(0, f.definitions(f.service("news")), "revision 2 is stored", ": verified\n")
	f.Everywhere(http.StatusOK, "/news")
}

// A gateway can be started before the first definitions: it waits, and reports that.
func TestGatewayWaitsForAFirstApply(t *testing.T) {
	t.Parallel()
	f := prepareFleet(t, 1)
	f.Run()
	envoytest.Eventually(t, "the gateway to report that it waits", func() bool {
		return len(lines(f.Log(), "waiting for definitions", "no such revision in Redis")) == 1
	})
	envoytest.Eventually(t, "the gateway to answer", func() bool { return len(lines(f.Log(), `"msg":"serving"`)) == 1 })
	notReady(t, f.gateway)
	f.Applies(0, f.definitions(), "revision 1 is stored", ": verified\n")
	f.AwaitReady()
	want(t, "the public service", f.Do("GET", "/items", ""), http.StatusOK, "")
}
