package main

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/admin"
	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"
	"gatepost/tokens/boltstore"
	"gatepost/xds"
)

const explained = `tokens: {authenticator: {url: "http://users/users/authenticate"}}
services:
  - {name: orders, path: /orders, allowed_methods: [GET], scopes: [read], upstreams: ["http://orders:8080"]}
`

// running is the admin API of a gateway with a real embedded store. It reports that it serves the
// definitions in file.
type running struct {
	*httptest.Server
	file   string
	store  *boltstore.Store
	status *gatewayv1.Status

	mu    sync.Mutex
	asked []string // requests, as they were sent
}

func runGateway(t *testing.T) *running {
	t.Helper()
	r := &running{file: filepath.Join(t.TempDir(), "gateway.yaml"), status: &gatewayv1.Status{Source: "gateway.yaml"}}
	var err error
	if r.store, err = boltstore.Open(t.TempDir(), boltstore.Config{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.store.Close() })
	if err := os.WriteFile(r.file, []byte(explained), 0o600); err != nil {
		t.Fatal(err)
	}
	r.serves(t, explained)
	api, err := admin.New(admin.Config{
		Local: true, Status: func() *gatewayv1.Status { return r.status }, Sessions: r.store, Metrics: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, _ := io.ReadAll(request.Body)
		request.Body = io.NopCloser(bytes.NewReader(body))
		r.mu.Lock()
		r.asked = append(r.asked, request.Method+" "+request.URL.String()+" "+string(body))
		r.mu.Unlock()
		api.ServeHTTP(w, request)
	}))
	t.Cleanup(r.Close)
	return r
}

// serves makes the gateway report that it serves these definitions and withholds some services.
func (r *running) serves(t *testing.T, text string, withheld ...string) {
	t.Helper()
	d, err := definitions.Parse("gateway.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	options := (&settings{caFile: xds.DefaultCAFile}).xdsOptions(d)
	options.Withheld = withheld
	snapshot, err := xds.Build(d.Gateway, options)
	if err != nil {
		t.Fatal(err)
	}
	r.status.Version, r.status.Withheld = snapshot.Version, withheld
}

func (r *running) address() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *running) login(t *testing.T, scopes ...string) tokens.Token {
	t.Helper()
	token, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		t.Fatal(err)
	}
	session, err := tokens.NewSession(token.Hash(), "alice", scopes, time.Now(), time.Hour, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Create(t.Context(), session, 0); err != nil {
		t.Fatal(err)
	}
	return token
}

// explains runs `gatepost explain` on a request for /orders with a token.
func (r *running) explains(t *testing.T, token tokens.Token, args ...string) (code int, out string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	args = append([]string{"explain", "--config", r.file, "-H", "Authorization: Bearer " + token.Reveal(), "/orders"}, args...)
	code = gatepost(t.Context(), args, &stdout, &stderr)
	return code, stdout.String() + stderr.String()
}

// contains checks that an explanation contains each text.
func contains(t *testing.T, what, out string, all ...string) {
	t.Helper()
	for _, one := range all {
		if !strings.Contains(out, one) {
			t.Errorf("%s: got\n%s\nwant %q in it", what, out, one)
		}
	}
}

func TestExplainLooksUpTheTokenInTheGateway(t *testing.T) {
	r := runGateway(t)
	live, poor, unknown := r.login(t, "read"), r.login(t), r.login(t, "read")
	if err := r.store.Revoke(t.Context(), unknown.Hash()); err != nil {
		t.Fatal(err)
	}
	by, whole := "according to the gateway on "+r.address(), r.address()+" serves this version"
	ask := func(what string, token tokens.Token, want ...string) {
		t.Helper()
		_, out := r.explains(t, token, "--admin", r.address())
		contains(t, what, out, append(want, whole)...)
		t.Setenv("GATEPOST_ADMIN", r.address()) // from the environment, and it serves these definitions
		if _, found := r.explains(t, token); found != out {
			t.Errorf("%s: a gateway that was found: got\n%s\nwant the same as with --admin\n%s", what, found, out)
		}
	}
	ask("a live token", live, "is live, "+by, "with x-user-id: alice", "forwarded")
	ask("one without the scope", poor, "is live, "+by, "response   403")
	ask("a revoked one", unknown, "is unknown, expired or revoked, "+by, "response   401")
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	ask("an unavailable store", live, "the lookup by the gateway on "+r.address()+" failed", "response   503")

	for _, one := range r.asked {
		if strings.Contains(one, live.Reveal()) || strings.Contains(one, unknown.Reveal()) {
			t.Errorf("the token itself was sent: %s", one)
		}
		if url, _, _ := strings.Cut(one, " {"); strings.Contains(url, live.Hash().Hex()) {
			t.Errorf("a URL has the token's hash: %s", url)
		}
	}
}

func TestGatewayWithOtherDefinitionsIsNotUsedUnlessNamed(t *testing.T) {
	r := runGateway(t)
	token := r.login(t, "read")
	r.serves(t, explained+"  - {name: more, path: /more, upstreams: [\"http://more:8080\"]}\n")
	r.status.Source, r.status.Rejected = "other.yaml", "the newest is refused"
	differs := r.address() + " serves other definitions, version " + r.status.Version + " of other.yaml: it may answer otherwise; it does not serve the newest: the newest is refused"

	t.Setenv("GATEPOST_ADMIN", r.address())
	_, out := r.explains(t, token)
	contains(t, "a gateway that was found", out, differs, "it was not looked up", "if the token is live", "if the token is unknown")
	if strings.Contains(strings.Join(r.asked, "\n"), "lookup") {
		t.Errorf("the token was looked up in it: %q", r.asked)
	}
	_, out = r.explains(t, token, "--admin", r.address())
	contains(t, "a gateway that was named", out, differs, "is live, according to the gateway on "+r.address())
}

func TestOtherServersAreIgnoredUnlessNamed(t *testing.T) {
	r := runGateway(t)
	token := r.login(t)
	t.Setenv("GATEPOST_ADMIN", "127.0.0.1:1")
	_, alone := r.explains(t, token)
	for what, handler := range map[string]http.HandlerFunc{
		"a page": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"an API of another": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"version":"7","status":"green"}`)
		},
		"an empty object": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{}`) },
		"nothing there":   http.NotFound,
		"a redirect elsewhere": func(w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, r.URL+q.URL.Path, http.StatusTemporaryRedirect)
		},
	} {
		other := httptest.NewServer(handler)
		t.Setenv("GATEPOST_ADMIN", strings.TrimPrefix(other.URL, "http://"))
		if code, out := r.explains(t, token); code != exitDone || out != alone {
			t.Errorf("%s: got %d\n%s\nwant what follows without a gateway\n%s", what, code, out, alone)
		}
		if code, out := r.explains(t, token, "--admin", strings.TrimPrefix(other.URL, "http://")); code != exitFailed {
			t.Errorf("%s, named: exit code %d\n%s", what, code, out)
		}
		other.Close()
	}
}

// If a gateway does not support lookups, that is an error, not a result for the token or its store.
func TestGatewayWithoutLookupIsAnError(t *testing.T) {
	r := runGateway(t)
	behind := r.Config.Handler
	r.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodPost {
			http.NotFound(w, q)
			return
		}
		behind.ServeHTTP(w, q)
	})
	code, out := r.explains(t, r.login(t), "--admin", r.address())
	if code != exitFailed || !strings.Contains(out, "looking up the token") || strings.Contains(out, "response ") {
		t.Errorf("got %d\n%s\nwant an error and no answer", code, out)
	}
}

func TestServiceIsExplainedAsTheGatewayServesIt(t *testing.T) {
	r := runGateway(t)
	token := r.login(t, "read")
	r.serves(t, explained, "orders")
	r.status.Rejected = "not as defined: orders: Envoy says no"
	_, out := r.explains(t, token, "--admin", r.address())
	contains(t, "withheld", out, "without its upstreams by the gateway on "+r.address(), "response   503", "because Envoy rejects them: not as defined: orders: Envoy says no",
		r.address()+" serves this version with services not as defined: orders: Envoy says no")

	before := strings.Replace(explained, "[GET]", "[GET, PUT]", 1)
	before = strings.Replace(before, "http://orders:8080", "http://former:8080", 1)
	r.serves(t, before)
	d, err := definitions.Parse("gateway.yaml", []byte(before))
	if err != nil {
		t.Fatal(err)
	}
	r.status.Former = d.Gateway.Message().GetServices()
	_, out = r.explains(t, token, "--admin", r.address(), "-X", "PUT")
	contains(t, "in its former form", out, "in its former form by the gateway on "+r.address()+", whose Envoy refuses the one at "+r.file+":3", "to http://former:8080")
	_, out = r.explains(t, token, "--admin", r.address(), "-X", "DELETE")
	contains(t, "in its former form", out, "response   405", "fix what Envoy rejects about "+r.file+":3")
}

// If the newest definitions are refused, or cannot be read, those that are served are as they are defined.
func TestServedDefinitionsAreNotBlamedForNewerOnes(t *testing.T) {
	r := runGateway(t)
	r.serves(t, explained)
	r.status.Rejected = "gateway.yaml:3:5: services[0].upstream: unknown field"
	_, out := r.explains(t, r.login(t, "read"), "--admin", r.address())
	contains(t, "a newer file with a mistake", out, r.address()+" serves this version; it does not serve the newest: gateway.yaml:3:5")
}
