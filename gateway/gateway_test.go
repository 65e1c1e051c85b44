package gateway_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/gateway"
)

// start runs a gateway with an Envoy of its own and the embedded store, in this process, until the test ends. It returns
// the URL at which clients reach it, when it is ready.
func start(t *testing.T, definitions string) string {
	t.Helper()
	listen, dir := envoytest.Addr(t), t.TempDir()
	file := filepath.Join(dir, "gatepost.yaml")
	if err := os.WriteFile(file, []byte(definitions), 0o600); err != nil {
		t.Fatal(err)
	}
	config := gateway.Config{
		Definitions: file, Listen: listen, Data: filepath.Join(dir, "data"), Admin: envoytest.Addr(t),
		Envoy: envoytest.Require(t), Concurrency: 1, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	g, err := gateway.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the gateway ended with %v", err)
		}
	})
	envoytest.Eventually(t, "the gateway to be ready", func() bool {
		response, err := http.Get("http://" + config.Admin + "/readyz")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return "http://" + listen
}

// request returns the response to one request, with its body read.
func request(t *testing.T, method, url, token, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", token)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(text)
}

func TestAWholeGatewayRunsInAnotherPackagesTest(t *testing.T) {
	users, orders := envoytest.Upstream(t), envoytest.Upstream(t)
	users.SetHandler(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("userid", "alice") })
	url := start(t, fmt.Sprintf(`
tokens:
  authenticator: {url: "%s/authenticate"}
services:
  - {name: orders, path: /orders, upstreams: ["%s"]}
`, users.URL(), orders.URL()))

	login, body := request(t, http.MethodPost, url+"/token", "", `{"username":"alice","password":"right"}`)
	token := login.Header.Get("token")
	if login.StatusCode != http.StatusOK || token == "" {
		t.Fatalf("the login: %d %s", login.StatusCode, body)
	}
	if got, body := request(t, http.MethodGet, url+"/orders", token, ""); got.StatusCode != http.StatusOK {
		t.Errorf("with the token: %d %s", got.StatusCode, body)
	}
	if seen := orders.Requests(); len(seen) != 1 || seen[0].Header.Get("X-User-Id") != "alice" {
		t.Errorf("the upstream received %+v", seen)
	}
	if got, body := request(t, http.MethodPost, url+"/token/revoke", token, ""); got.StatusCode != http.StatusOK {
		t.Errorf("the revoke: %d %s", got.StatusCode, body)
	}
	if got, body := request(t, http.MethodGet, url+"/orders", token, ""); got.StatusCode != http.StatusUnauthorized {
		t.Errorf("after the revoke: %d %s", got.StatusCode, body)
	}
}

func TestAnIncompleteConfigurationIsAnError(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	for want, config := range map[string]gateway.Config{
		"no definitions":          {Data: t.TempDir(), GRPC: "x", HTTP: "x", Admin: "x", Logger: logger},
		"no address for Envoy":    {Definitions: "x", Data: t.TempDir(), Admin: "x", Logger: logger},
		"not complete":            {Definitions: "x", GRPC: "x", HTTP: "x", Admin: "x", Logger: logger},
		"reading the definitions": {Definitions: filepath.Join(t.TempDir(), "none.yaml"), Data: t.TempDir(), GRPC: "x", HTTP: "x", Admin: "x", Logger: logger},
	} {
		if g, err := gateway.New(t.Context(), config); g != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, %v, want the error %q", g, err, want)
		}
	}
}
