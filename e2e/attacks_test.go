package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"gatepost/envoy/envoytest"
)

// fortress is a gateway with secured services below public ones, and vice versa. All secured
// services share one upstream, and so do all public ones, so that the tests see which of them a
// request reached.
type fortress struct {
	*gateway
	users, secured, public *envoytest.Recorder
	// vault is the upstream of a secured service that requires a scope which no user has.
	vault *envoytest.Recorder
	// token is alice's.
	token string
	// allowed are requests of alice that each set of attempts follows, so that the module in Envoy
	// remembers them.
	allowed []string
}

// starter starts a gateway with definitions.
type starter func(t *testing.T, definitions string) *gateway

// startPlain and startSecure start a gateway, and its clients use no TLS, or TLS.
func startPlain(t *testing.T, definitions string) *gateway {
	t.Helper()
	return start(t, definitions, setup{})
}

func startSecure(t *testing.T, definitions string) *gateway {
	t.Helper()
	e := prepareEdge(t, "tls: {listen: TLS, redirect: false, certificates: [{cert_file: shop.pem, key_file: shop.key}]}\n"+definitions)
	e.issue("shop", "shop.example")
	e.Run()
	e.AwaitReady()
	envoytest.Eventually(t, "the certificate to be served", func() bool { return e.serial("shop.example") != "" })
	return e.secure("shop.example")
}

// onBothListeners runs a test without TLS and with TLS, in parallel.
func onBothListeners(t *testing.T, test func(*testing.T, starter)) {
	for name, start := range map[string]starter{"without TLS": startPlain, "with TLS": startSecure} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start)
		})
	}
}

// startFortress starts it with more services, one per line. Their upstream may be PUBLIC.
func startFortress(t *testing.T, start starter, more ...string) *fortress {
	t.Helper()
	f := &fortress{users: users(t), secured: envoytest.Upstream(t), public: envoytest.Upstream(t), vault: envoytest.Upstream(t)}
	f.gateway = start(t, fmt.Sprintf(`tokens:
  authenticator: {url: "%s/users/authenticate"}
services:
  - {name: orders, path: /orders, upstreams: ["%[2]s"]}
  - {name: status, path: /orders/status, authenticate: false, upstreams: ["%[3]s/base"]}
  - {name: items, path: /items, authenticate: false, allowed_methods: [GET, POST], upstreams: ["%[3]s/base"]}
  - {name: private, path: /items/private, upstreams: ["%[2]s"]}
  - {name: order, path: /order, authenticate: false, upstreams: ["%[3]s/base"]}
  - {name: vault, path: /vault, scopes: [vault], upstreams: ["%[4]s"]}
`, f.users.URL(), f.secured.URL(), f.public.URL(), f.vault.URL())+strings.ReplaceAll(strings.Join(more, "\n"), "PUBLIC", f.public.URL())+"\n")
	return f
}

func (f *fortress) upstreams() map[string]*envoytest.Recorder {
	return map[string]*envoytest.Recorder{"secured": f.secured, "public": f.public, "vault": f.vault, "user": f.users}
}

// forget resets the upstreams' records.
func (f *fortress) forget() {
	for _, upstream := range f.upstreams() {
		upstream.Reset()
	}
}

// nothing checks that no upstream received a byte.
func (f *fortress) nothing(t *testing.T) {
	t.Helper()
	for name, upstream := range f.upstreams() {
		if raw := upstream.Raw(); raw != "" {
			t.Errorf("the %s service got %q, want nothing", name, raw)
		}
	}
}

// attempt is one request of an attack and its allowed statuses. Status 0 means that the gateway
// closed the connection without a response.
type attempt struct {
	what     string
	send     func() (answer, error)
	statuses []int
}

// h1 returns an attempt with these bytes.
func (f *fortress) h1(request string, statuses ...int) attempt {
	return attempt{fmt.Sprintf("%.300q", request), func() (answer, error) { return f.TryRaw(request) }, statuses}
}

func (f *fortress) h2(method, path, body string, fields [][2]string, statuses ...int) attempt {
	what := fmt.Sprintf("HTTP/2 %q %.200q %.200q", method, path, fields)
	return attempt{what, func() (answer, error) { return f.TryH2(method, path, body, fields...) }, statuses}
}

// refuses makes the attempts concurrently, because some connections are closed only after a delay.
// They follow the allowed requests. It fails if a status is not allowed or if anything reaches an
// upstream.
func (f *fortress) refuses(t *testing.T, attempts ...attempt) {
	t.Helper()
	for _, request := range f.allowed {
		want(t, "an allowed request", f.Raw(t, request), http.StatusOK, "")
	}
	f.forget()
	var clients errgroup.Group
	clients.SetLimit(32)
	for _, a := range attempts {
		clients.Go(func() error {
			got, err := a.send()
			if err != nil {
				t.Errorf("%s: %v", a.what, err)
			} else if !slices.Contains(a.statuses, got.Status) {
				t.Errorf("%s: got %d %.200s, want %v", a.what, got.Status, got.Body, a.statuses)
			}
			return nil
		})
	}
	_ = clients.Wait() // each reports its own failure
	f.nothing(t)
	f.forget()
}

// refused checks one response like refuses.
func (f *fortress) refused(t *testing.T, what string, got answer, statuses ...int) {
	t.Helper()
	if !slices.Contains(statuses, got.Status) {
		t.Errorf("%.200q: got %d %.200s, want %v", what, got.Status, got.Body, statuses)
	}
	f.nothing(t)
	f.forget()
}

// TestAttacks tries attacks that succeeded on other gateways; the subtests name the advisories. The
// requests that reach upstreams matter most; the status is checked too.
//
// Envoy allows requests that equal one that Gatepost allowed shortly before. A request that is
// merely similar must not be allowed, and users must not be confused.
func TestAttacks(t *testing.T) {
	t.Parallel()
	onBothListeners(t, testAttacks)
}

func testAttacks(t *testing.T, start starter) {
	f := startFortress(t, start)
	endless := f.endlessHead(t) // runs while the others do
	f.token = f.Login("alice")
	f.allowed = []string{rawGet("/orders/1", "authorization: "+f.token), rawGet("/items/private", "authorization: "+f.token)}
	f.attack(t, []group{
		{"paths", f.paths},
		{"harmless paths", f.harmlessPaths},
		{"targets and hosts", f.targetsAndHosts},
		{"methods", f.methods},
		{"incomplete preflights", f.preflights},
		{"credentials", f.credentials},
		{"credentials on HTTP/2", f.credentialsH2},
		{"claims that a decision might believe", f.claims},
		{"an ended session", f.endedSessions},
		{"identity on secured services", f.identitySecured},
		{"identity on public services", f.identityPublic},
		{"identity at the login", f.identityLogin},
		{"identities are not mixed up", f.identitiesApart},
		{"the client's address", f.clientAddress},
		{"smuggling", f.smuggling},
		{"smuggling on HTTP/2", f.smugglingH2},
		{"upgrades", f.upgrades},
		{"oversized", f.oversized},
		{"floods on HTTP/2", f.floods},
		{"the gateway's own servers", f.ownServers},
		{"a head that never ends", endless},
		{"the gateway is unharmed", f.unharmed},
		{"the log", f.logTellsNothing},
	})
	if hits := f.hits(); hits < 100 {
		t.Errorf("the module allowed %v requests, so little was tested", hits)
	}
}

// TestAttacksWithoutTheModule: Gatepost decides about each request.
func TestAttacksWithoutTheModule(t *testing.T) {
	t.Parallel()
	f := startFortress(t, func(t *testing.T, definitions string) *gateway {
		return start(t, definitions, setup{Args: []string{"--module", "off"}})
	})
	f.token = f.Login("alice")
	f.allowed = []string{rawGet("/orders/1", "authorization: "+f.token), rawGet("/items/private", "authorization: "+f.token)}
	f.attack(t, []group{
		{"credentials", f.credentials},
		{"credentials on HTTP/2", f.credentialsH2},
		{"claims that a decision might believe", f.claims},
		{"an ended session", f.endedSessions},
		{"identity on secured services", f.identitySecured},
		{"identities are not mixed up", f.identitiesApart},
	})
	if hits := f.hits(); hits != 0 {
		t.Errorf("the module allowed %v requests", hits)
	}
}

type group struct {
	name string
	run  func(*testing.T)
}

func (f *fortress) attack(t *testing.T, groups []group) {
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			f.forget()
			g.run(t)
		})
	}
}

// hits returns how many requests the module in Envoy allowed.
func (f *fortress) hits() float64 {
	return f.Metric(`gatepost_decisions_total{decision="allow",reason="module"`)
}

// endlessHead starts a request head and never finishes it. The returned function waits until the
// gateway closes the connection.
func (f *fortress) endlessHead(t *testing.T) func(*testing.T) {
	t.Helper()
	conn, err := f.dial(http1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	const head = "GET /items HTTP/1.1\r\nhost: h\r\nx-slow: "
	if _, err := fmt.Fprint(conn, head); err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T) {
		if err := conn.SetDeadline(time.Now().Add(envoytest.Deadline)); err != nil {
			t.Fatal(err)
		}
		if got, err := readAnswer(conn, head); got.Status != http.StatusRequestTimeout {
			t.Errorf("got %d %s (%v), want 408", got.Status, got.Body, err)
		}
		f.nothing(t)
	}
}

// unharmed checks the gateway with a normal client.
func (f *fortress) unharmed(t *testing.T) {
	want(t, "a public service", f.Do("GET", "/items/5", ""), http.StatusOK, "")
	if got := only(t, f.public); got.Path != "/base/5" {
		t.Errorf("the public service got %s", got.Path)
	}
	want(t, "no token", f.Do("GET", "/orders", ""), http.StatusUnauthorized, notAllowed)
	none(t, f.secured)
	want(t, "a token", f.Do("GET", "/orders/5", "", "Authorization: Bearer "+f.token), http.StatusOK, "")
	if got := only(t, f.secured); got.Path != "/5" || got.Header.Get("X-User-Id") != "alice" {
		t.Errorf("the secured service got %+v", got)
	}
	if strings.Contains(f.Log(), "envoy ended") {
		t.Error("Envoy was restarted meanwhile")
	}
}

// secret is part of queries, bodies and headers of the attacks. It must not appear in the log.
const secret = "hush-4711"

// logTellsNothing checks the log for secrets and for injected lines (CVE-2022-23469,
// CVE-2024-45808).
func (f *fortress) logTellsNothing(t *testing.T) {
	f.Raw(t, rawGet("/orders?access_token="+secret, "authorization: Bearer "+secret, "cookie: session="+secret))
	f.Raw(t, rawGet("/orders/%0a%7b%22msg%22:%22forged%22%7d", "user-agent: x\"}\u2028{\"msg\":\"forged\""))
	f.Raw(t, rawWithBody("POST", "/token?secret="+secret, `{"username":"`+secret+`","password":"`+secret+`"}`, "user-agent: \x1b[2Jforged"))
	log := f.Log()
	for what, value := range map[string]string{"a token": f.token, "a query, a password or a header": secret} {
		if at := strings.Index(log, value); at >= 0 {
			t.Errorf("%s is in the log: %s", what, log[max(0, at-300):at+100])
		}
	}
	lines := 0
	for line := range strings.Lines(log) {
		var entry struct {
			Time    string `json:"time"`
			Message string `json:"msg"`
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Time == "" {
			t.Errorf("a line of the log is no entry: %q (%v)", line, err)
		}
		if entry.Message == "forged" {
			t.Errorf("a stranger wrote an entry: %q", line)
		}
		lines++
	}
	if lines == 0 {
		t.Error("nothing was logged at all")
	}
}
