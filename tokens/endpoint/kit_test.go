package endpoint

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/definitions"
	"gatepost/testlog"
	"gatepost/tokens"
	"gatepost/tokens/redistest"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }

// gateway is a handler under test on a real server, with its store, metrics and log.
type gateway struct {
	*testing.T
	URL      string
	handler  *Handler
	store    *memory
	settings *definitions.Tokens // set before the first request
	metrics  *prometheus.Registry
	log      *testlog.Buffer
	// arrived is called with each request before the handler; nil: none.
	arrived func(*http.Request)
}

// newGateway starts a handler with the user service at an address; "": none is defined.
func newGateway(t *testing.T, userService string) *gateway {
	t.Helper()
	return newGatewayOn(t, userService, nil)
}

// newGatewayOn is newGateway with a given store; nil: the gateway's memory.
func newGatewayOn(t *testing.T, userService string, store tokens.Store) *gateway {
	t.Helper()
	g := &gateway{T: t, store: newMemory(), metrics: prometheus.NewRegistry(), log: new(testlog.Buffer)}
	g.settings = &definitions.Tokens{
		Lifetime: time.Hour, SessionLifetime: 24 * time.Hour, Format: string(tokens.FormatUUID), MaxSessions: 100,
		Shield: defaultShield(t),
	}
	if userService != "" {
		target, err := url.Parse(userService)
		if err != nil {
			t.Fatal(err)
		}
		g.settings.Authenticator = &definitions.Authenticator{
			URL: target, Timeout: 20 * time.Second, UserHeader: "userid", ScopesHeader: "scopes",
		}
	}
	logger := slog.New(slog.NewJSONHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if store == nil {
		store = g.store
	}
	g.handler = newHandler(t, Config{
		Store: store, Settings: func() *definitions.Tokens { return g.settings }, Logger: logger, Registerer: g.metrics,
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.arrived != nil {
			g.arrived(r)
		}
		g.handler.ServeHTTP(w, r)
	}))
	g.URL = server.URL
	t.Cleanup(func() {
		server.Close()
		g.handler.Close()
		http.DefaultClient.CloseIdleConnections()
		noRedirects.CloseIdleConnections()
		g.store.assertUnlogged(t, g.log.String())
	})
	return g
}

// users starts a user service.
func users(t *testing.T, f http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return server.URL + "/users/authenticate"
}

// ann is a user service that accepts any password and returns the user ann.
func ann(w http.ResponseWriter, _ *http.Request) { w.Header().Set("userid", "ann") }

// answerOf is a response with its body read.
type answerOf struct {
	*http.Response
	body string
}

// call sends a request. headers are pairs of name and value.
func (g *gateway) call(method, path, body string, headers ...string) answerOf {
	g.Helper()
	r, err := http.NewRequest(method, g.URL+path, strings.NewReader(body))
	if err != nil {
		g.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	response, err := noRedirects.Do(r)
	if err != nil {
		g.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		g.Fatal(err)
	}
	if token := response.Header.Get("token"); token != "" {
		g.store.mu.Lock()
		g.store.minted = append(g.store.minted, token)
		g.store.mu.Unlock()
	}
	return answerOf{response, string(data)}
}

var noRedirects = &http.Client{
	Transport:     &http.Transport{DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (g *gateway) login() string {
	g.Helper()
	a := g.call("POST", "/token", `{"username":"ann","password":"secret"}`, "Content-Type", "application/json")
	a.is(g.T, 200)
	return a.Header.Get("token")
}

const formType = "application/x-www-form-urlencoded"

func (a answerOf) is(t *testing.T, status int) {
	t.Helper()
	if a.StatusCode != status {
		t.Fatalf("answered %d %s, want %d", a.StatusCode, a.body, status)
	}
}

// isText checks a response of the gateway itself: status, a JSON string, not cacheable, without a
// token.
func (a answerOf) isText(t *testing.T, status int, text string) {
	t.Helper()
	a.is(t, status)
	var got string
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || got != text {
		t.Errorf("body %q, want the JSON string %q", a.body, text)
	}
	a.has(t, "Content-Type", "application/json")
	a.has(t, "Cache-Control", "no-store")
	if a.Header.Get("token") != "" {
		t.Error("the response has a token")
	}
	switch retry := a.Header.Get("Retry-After"); {
	case (status == 503 || status == 504 || status == 429) == (retry == ""):
		t.Errorf("Retry-After is %q with %d", retry, status)
	}
}

func (a answerOf) has(t *testing.T, name, value string) {
	t.Helper()
	if got := a.Header.Values(name); len(got) != 1 || got[0] != value {
		t.Errorf("%s: %q, want %q", name, got, value)
	}
}

func (a answerOf) json(t *testing.T, into any) {
	t.Helper()
	a.is(t, 200)
	a.has(t, "Content-Type", "application/json")
	a.has(t, "Cache-Control", "no-store")
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		t.Fatalf("body %q: %v", a.body, err)
	}
}

// isLive reports whether a token is live.
func (g *gateway) isLive(token string) bool {
	g.Helper()
	parsed, err := tokens.Parse(token)
	if err != nil {
		g.Fatalf("%q is not a token", token)
	}
	_, err = g.handler.config.Store.Lookup(g.Context(), parsed.Hash())
	return err == nil
}

// counter returns a counter's value by its name and its label values in the order of label names.
func (g *gateway) counter(name string, labels ...string) float64 {
	g.Helper()
	families, err := g.metrics.Gather()
	if err != nil {
		g.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var values []string
			for _, l := range m.GetLabel() {
				values = append(values, l.GetValue())
			}
			if slices.Equal(values, labels) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// memory is a simple in-memory store that can be set to fail.
type memory struct {
	mu       sync.Mutex
	sessions map[tokens.Hash]*tokens.Session
	retired  map[tokens.Hash]string // session id
	err      error
	created  int
	minted   []string // the tokens that responses contained
}

func newMemory() *memory {
	return &memory{sessions: map[tokens.Hash]*tokens.Session{}, retired: map[tokens.Hash]string{}}
}

// fail makes every call return err; nil: calls succeed again.
func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *memory) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sessions)
}

// assertUnlogged checks that the log contains no token and no hash of a token.
func (m *memory) assertUnlogged(t *testing.T, log string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for h := range m.sessions {
		if strings.Contains(log, h.Hex()) {
			t.Error("a token's hash is in the log")
		}
	}
	for _, word := range append(slices.Clone(m.minted), "secret") {
		if strings.Contains(log, word) {
			t.Errorf("%q is in the log:\n%s", word, log)
		}
	}
}

func (m *memory) Create(ctx context.Context, s *tokens.Session, limit int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.created++
	m.sessions[s.Hash] = s
	mine := m.of(s.User)
	for limit > 0 && len(mine) > limit {
		delete(m.sessions, mine[len(mine)-1].Hash)
		mine = mine[:len(mine)-1]
	}
	return ctx.Err()
}

func (m *memory) Lookup(_ context.Context, h tokens.Hash) (*tokens.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, m.err
	}
	if s := m.sessions[h]; s != nil {
		return s, nil
	}
	return nil, tokens.ErrUnknown
}

func (m *memory) Rotate(_ context.Context, old tokens.Hash, next tokens.Successor, _ time.Duration) (tokens.Successor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return tokens.Successor{}, m.err
	}
	if id, ok := m.retired[old]; ok {
		m.end(func(s *tokens.Session) bool { return s.ID == id })
		return tokens.Successor{}, tokens.ErrReused
	}
	s := m.sessions[old]
	if s == nil {
		return tokens.Successor{}, tokens.ErrUnknown
	}
	if !next.Session.Continues(s) {
		return tokens.Successor{}, tokens.ErrInvalid
	}
	delete(m.sessions, old)
	m.retired[old] = s.ID
	m.sessions[next.Session.Hash] = next.Session
	return next, nil
}

func (m *memory) Revoke(_ context.Context, h tokens.Hash) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		delete(m.sessions, h)
	}
	return m.err
}

func (m *memory) Sessions(_ context.Context, user string) ([]*tokens.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.of(user), m.err
}

func (m *memory) RevokeSession(_ context.Context, user, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if m.end(func(s *tokens.Session) bool { return s.ID == id && (user == "" || s.User == user) }) == 0 {
		return tokens.ErrUnknown
	}
	return nil
}

func (m *memory) RevokeUser(_ context.Context, user string) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, m.err
	}
	return m.end(func(s *tokens.Session) bool { return s.User == user }), nil
}

func (m *memory) Ping(context.Context) error { return nil }
func (m *memory) Close() error               { return nil }

func (m *memory) of(user string) (mine []*tokens.Session) {
	for _, s := range m.sessions {
		if s.User == user {
			mine = append(mine, s)
		}
	}
	slices.SortFunc(mine, func(a, b *tokens.Session) int { return b.Issued.Compare(a.Issued) })
	return mine
}

func (m *memory) end(which func(*tokens.Session) bool) int {
	n := 0
	for h, s := range m.sessions {
		if which(s) {
			delete(m.sessions, h)
			n++
		}
	}
	return n
}

// defaultShield returns the default shield of the definitions.
func defaultShield(t testing.TB) definitions.Shield {
	t.Helper()
	d, err := definitions.Parse("gatepost.yaml", []byte("services: []"))
	if err != nil {
		t.Fatal(err)
	}
	return d.Gateway.Tokens.Shield
}

// newHandler is New, and fails the test on an error.
func newHandler(t testing.TB, c Config) *Handler {
	t.Helper()
	h, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
