package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/authz"
	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens"
	"gatepost/tokens/boltstore"
	"gatepost/tokens/shield"
)

// kit is a server with a real embedded store and a check that a test can make fail.
type kit struct {
	*Server
	store   *boltstore.Store
	missing error
	// degraded is the result of the check's Degraded.
	degraded string
	log      strings.Builder
	// remote is the client's address; empty: that of a test.
	remote string
}

func newKit(t *testing.T) *kit { return newKitWith(t, Config{Local: true}) }

// newKitWith is newKit with the access of a configuration.
func newKitWith(t *testing.T, config Config) *kit {
	t.Helper()
	store, err := boltstore.Open(t.TempDir(), boltstore.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	k := &kit{store: store}
	guessing, err := shield.New(shield.Config{})
	if err != nil {
		t.Fatal(err)
	}
	k.Server, err = New(Config{
		Local: config.Local, TokenFile: config.TokenFile, Profiles: config.Profiles,
		Hosts: []string{"GW-1.prod.example"},
		Checks: []Check{
			{Name: "store", Ready: store.Ping},
			{Name: "envoy", Ready: func(context.Context) error { return k.missing }, Degraded: func() string { return k.degraded }},
		},
		Status: func() *gatewayv1.Status {
			return &gatewayv1.Status{Version: "v1", Envoys: []*gatewayv1.EnvoyStatus{{Node: "n"}}}
		},
		Definitions: func() *definitions.Definitions { return nil },
		Shield:      guessing,
		Denials:     func() []authz.Denial { return []authz.Denial{{Service: "orders", Reason: "token_missing"}} },
		Sessions:    store,
		Metrics:     prometheus.NewRegistry(),
		Logger:      slog.New(slog.NewTextHandler(&k.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// login stores a session of the user and returns its public id and its token.
func (k *kit) login(t *testing.T, user string) (id string, token tokens.Token) {
	t.Helper()
	token, err := tokens.Mint(tokens.FormatUUID)
	if err != nil {
		t.Fatal(err)
	}
	session, err := tokens.NewSession(token.Hash(), user, nil, time.Now(), time.Hour, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.store.Create(t.Context(), session, 0); err != nil {
		t.Fatal(err)
	}
	return session.ID, token
}

func (k *kit) ask(method, path string, headers ...string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, "http://127.0.0.1:18002"+path, nil)
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		if name == "Host" {
			request.Host = value
			continue
		}
		request.Header.Add(name, value)
	}
	if k.remote != "" {
		request.RemoteAddr = k.remote
	}
	answer := httptest.NewRecorder()
	k.ServeHTTP(answer, request)
	return answer
}

func (k *kit) want(t *testing.T, method, path string, code int, contains string, headers ...string) {
	t.Helper()
	got := k.ask(method, path, headers...)
	if got.Code != code || !strings.Contains(got.Body.String(), contains) {
		t.Errorf("%s %s: %d %s, want %d and %q in it", method, path, got.Code, got.Body, code, contains)
	}
}

func TestReadyReportsDegradedChecks(t *testing.T) {
	k := newKit(t)
	k.degraded = "serving the previous version: why"
	k.want(t, "GET", "/readyz", 200, `"envoy":"serving the previous version: why"`)
	k.missing = errors.New("no Envoy")
	k.want(t, "GET", "/readyz", 503, `"envoy":"no Envoy"`)
	k.missing, k.degraded = nil, ""
	k.want(t, "GET", "/readyz", 200, `"envoy":"ok"`)
}

func TestReadyRequiresEveryCheckAndNamesFailures(t *testing.T) {
	k := newKit(t)
	k.want(t, "GET", "/readyz", http.StatusOK, `"store":"ok"`)
	k.missing = errors.New("no Envoy is connected")
	k.want(t, "GET", "/readyz", http.StatusServiceUnavailable, "no Envoy is connected")
	k.want(t, "GET", "/healthz", http.StatusOK, "ok")
	k.missing = nil
	k.Drain()
	k.want(t, "GET", "/readyz", http.StatusServiceUnavailable, "ending")
	k.want(t, "GET", "/healthz", http.StatusOK, "ok")
}

func TestStatusIsProtoJSON(t *testing.T) {
	k := newKit(t)
	k.want(t, "GET", "/api/v1/status", http.StatusOK, `"acked_at"`)
	var got struct {
		Version string
		Envoys  []struct{ Node string }
	}
	if err := json.Unmarshal(k.ask("GET", "/api/v1/status").Body.Bytes(), &got); err != nil || got.Version != "v1" || len(got.Envoys) != 1 || got.Envoys[0].Node != "n" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestDenialsAreListed(t *testing.T) {
	k := newKit(t)
	k.want(t, "GET", "/api/v1/denials", http.StatusOK, `"service":"orders","decision":"","reason":"token_missing"`)
}

func TestSessionsAreListedAndEndedWithoutTokens(t *testing.T) {
	k := newKit(t)
	first, token := k.login(t, "alice smith")
	second, _ := k.login(t, "alice smith")
	third, _ := k.login(t, "bob")

	var listed []Session
	list := k.ask("GET", "/api/v1/users/alice%20smith/sessions")
	if err := json.Unmarshal(list.Body.Bytes(), &listed); err != nil || len(listed) != 2 {
		t.Fatalf("listed %s, %v", list.Body, err)
	}
	if body := list.Body.String(); strings.Contains(body, token.Reveal()) || strings.Contains(body, token.Hash().Hex()) {
		t.Error("the list shows a token or its hash")
	}
	k.want(t, "DELETE", "/api/v1/sessions/"+first, http.StatusOK, `"revoked":1`)
	if _, err := k.store.Lookup(t.Context(), token.Hash()); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("the token of an ended session: %v, want ErrUnknown", err)
	}
	k.want(t, "DELETE", "/api/v1/sessions/"+first, http.StatusNotFound, "no such session")
	k.want(t, "DELETE", "/api/v1/users/alice%20smith/sessions", http.StatusOK, `"revoked":1`)
	k.want(t, "GET", "/api/v1/users/alice%20smith/sessions", http.StatusOK, "[]")
	k.want(t, "GET", "/api/v1/users/bob/sessions", http.StatusOK, third)
	if !strings.Contains(k.log.String(), first) || strings.Contains(k.log.String(), second) {
		t.Errorf("the log has %q, want the ended session by id", k.log.String())
	}
}

func TestClientsOfTheGatewayCannotReachTheAPI(t *testing.T) {
	k := newKit(t)
	id, _ := k.login(t, "alice")
	for _, header := range []string{"X-Envoy-External-Address: 203.0.113.7", "X-Envoy-Internal: true"} {
		k.want(t, "GET", "/api/v1/users/alice/sessions", http.StatusForbidden, "not for the gateway's clients", header)
		k.want(t, "GET", "/api/v1/status", http.StatusForbidden, "", header)
		k.want(t, "DELETE", "/api/v1/sessions/"+id, http.StatusForbidden, "", header)
		for _, path := range append(everyPath, "/", "/app.js", "/nothing") {
			k.want(t, "GET", path, http.StatusForbidden, "not for the gateway's clients", header)
		}
	}
	k.want(t, "GET", "/api/v1/users/alice/sessions", http.StatusOK, id)
}

func TestUnavailableStoreIs503Not404(t *testing.T) {
	k := newKit(t)
	id, _ := k.login(t, "alice")
	if err := k.store.Close(); err != nil {
		t.Fatal(err)
	}
	k.want(t, "DELETE", "/api/v1/sessions/"+id, http.StatusServiceUnavailable, "out of reach")
	k.want(t, "GET", "/readyz", http.StatusServiceUnavailable, "store")
	if got := k.ask("GET", "/api/v1/users/alice/sessions"); got.Header().Get("Retry-After") == "" {
		t.Error("a 503 without Retry-After")
	}
}
