package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"gatepost/envoy/envoytest"
)

// fortress is a gateway whose secured services lie below public ones, and the other way round. One upstream is
// behind all the secured services and one behind all the public ones, so that what reaches either is plain to see.
type fortress struct {
	*gateway
	users, secured, public *envoytest.Recorder
	// vault is behind a secured service whose scope nobody has.
	vault *envoytest.Recorder
	// token is alice's.
	token string
	// remembered has every attempt come just after a request of alice's that was let pass.
	remembered bool
}

// startFortress starts it with more services, one a line, whose upstream may be PUBLIC.
func startFortress(t *testing.T, more ...string) *fortress {
	t.Helper()
	f := &fortress{users: users(t), secured: envoytest.Upstream(t), public: envoytest.Upstream(t), vault: envoytest.Upstream(t)}
	f.gateway = start(t, fmt.Sprintf(`
tokens:
  authenticator: {url: "%s/users/authenticate"}
services:
  - {name: orders, path: /orders, upstreams: ["%[2]s"]}
  - {name: status, path: /orders/status, authenticate: false, upstreams: ["%[3]s/base"]}
  - {name: items, path: /items, authenticate: false, allowed_methods: [GET, POST], upstreams: ["%[3]s/base"]}
  - {name: private, path: /items/private, upstreams: ["%[2]s"]}
  - {name: order, path: /order, authenticate: false, upstreams: ["%[3]s/base"]}
  - {name: vault, path: /vault, scopes: [vault], upstreams: ["%[4]s"]}
`, f.users.URL(), f.secured.URL(), f.public.URL(), f.vault.URL())+strings.ReplaceAll(strings.Join(more, "\n"), "PUBLIC", f.public.URL())+"\n", setup{})
	return f
}

func (f *fortress) upstreams() map[string]*envoytest.Recorder {
	return map[string]*envoytest.Recorder{"secured": f.secured, "public": f.public, "vault": f.vault, "user": f.users}
}

// forget makes the upstreams forget what has reached them.
func (f *fortress) forget() {
	for _, upstream := range f.upstreams() {
		upstream.Reset()
	}
}

// nothing fails the test where a byte has reached any upstream.
func (f *fortress) nothing(t *testing.T) {
	t.Helper()
	for name, upstream := range f.upstreams() {
		if raw := upstream.Raw(); raw != "" {
			t.Errorf("the %s service got %q, want nothing", name, raw)
		}
	}
}

// attempt is one request of an attack, and the statuses of which one must come of it. The status 0 is a connection
// that the gateway closed without an answer.
type attempt struct {
	what     string
	send     func() (answer, error)
	statuses []int
}

// h1 is an attempt of these bytes, h2 one over HTTP/2.
func (f *fortress) h1(request string, statuses ...int) attempt {
	return attempt{fmt.Sprintf("%.300q", request), func() (answer, error) { return f.TryRaw(request) }, statuses}
}

func (f *fortress) h2(method, path, body string, fields [][2]string, statuses ...int) attempt {
	what := fmt.Sprintf("HTTP/2 %q %.200q %.200q", method, path, fields)
	return attempt{what, func() (answer, error) { return f.TryH2(method, path, body, fields...) }, statuses}
}

// refuses makes the attempts, many at once because a connection that is to be closed is closed after a moment, and
// fails the test where one is answered otherwise, or where anything reaches an upstream.
func (f *fortress) refuses(t *testing.T, attempts ...attempt) {
	t.Helper()
	if f.remembered {
		for _, path := range []string{"/orders/1", "/items/private"} {
			want(t, "a request to remember", f.Raw(t, rawGet(path, "authorization: "+f.token)), http.StatusOK, "")
		}
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
	_ = clients.Wait() // each tells by itself
	f.nothing(t)
	f.forget()
}

// refused is refuses for an answer that is there.
func (f *fortress) refused(t *testing.T, what string, got answer, statuses ...int) {
	t.Helper()
	if !slices.Contains(statuses, got.Status) {
		t.Errorf("%.200q: got %d %.200s, want %v", what, got.Status, got.Body, statuses)
	}
	f.nothing(t)
	f.forget()
}

// TestAttacks holds the gateway to what has befallen others: each subtest names the advisories that it comes
// from. What counts is what reaches the upstreams; the status is looked at besides.
func TestAttacks(t *testing.T) {
	f := startFortress(t)
	endless := f.endlessHead(t) // takes its time while the others run
	f.token = f.Login("alice")
	f.forget()
	for _, group := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"paths", f.paths},
		{"paths that mean what they say", f.harmlessPaths},
		{"targets and hosts", f.targetsAndHosts},
		{"methods", f.methods},
		{"preflights that are none", f.preflights},
		{"credentials", f.credentials},
		{"credentials on HTTP/2", f.credentialsH2},
		{"claims that a decision might believe", f.claims},
		{"a session that is over", f.endedSessions},
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
		{"nothing of it has harmed the gateway", f.unharmed},
		{"the log", f.logTellsNothing},
	} {
		t.Run(group.name, func(t *testing.T) {
			f.forget()
			group.run(t)
		})
	}
}

// TestAttacksOnTheModule: Envoy lets a request pass that is like one that Gatepost has let pass a moment ago. What only
// resembles it is not, and nobody is taken for another.
func TestAttacksOnTheModule(t *testing.T) {
	f := startFortress(t)
	f.token, f.remembered = f.Login("alice"), true
	for _, group := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"credentials", f.credentials},
		{"credentials on HTTP/2", f.credentialsH2},
		{"claims that a decision might believe", f.claims},
		{"a session that is over", f.endedSessions},
		{"identities are not mixed up", f.identitiesApart},
	} {
		t.Run(group.name, func(t *testing.T) {
			f.forget()
			group.run(t)
		})
	}
	if hits := f.Metric(`gatepost_decisions_total{decision="allow",reason="module"`); hits == 0 {
		t.Error("the module let nothing pass: nothing was tried")
	}
}

// endlessHead begins a request and never ends it. What it returns waits until the gateway has had enough of that.
func (f *fortress) endlessHead(t *testing.T) func(*testing.T) {
	t.Helper()
	conn, err := net.Dial("tcp", f.Addr)
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

// unharmed is a look at the gateway from a client that means well.
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
		t.Error("Envoy was started anew meanwhile")
	}
}

// secret stands in queries, bodies and headers of the attacks: none of them is to be found in the log.
const secret = "hush-4711"

// logTellsNothing looks for what strangers would like to read or to write there (CVE-2022-23469, CVE-2024-45808).
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
