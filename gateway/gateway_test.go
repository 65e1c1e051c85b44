package gateway_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"gatepost/envoy"
	"gatepost/envoy/envoytest"
	"gatepost/gateway"
	"gatepost/redisconn"
	"gatepost/testlog"
	"gatepost/tokens/redistest"
)

// start is startWith with a log of the test's.
func start(t *testing.T, definitions string) string {
	t.Helper()
	url, _ := startWith(t, definitions, slog.NewTextHandler(t.Output(), nil))
	return url
}

// startWith runs a gateway with an Envoy of its own and the embedded store, in this process, until
// the test ends, with the changes to its configuration. When it is ready, startWith returns the URLs
// at which clients and operators reach it.
func startWith(t *testing.T, definitions string, log slog.Handler, changes ...func(*gateway.Config)) (url, admin string) {
	t.Helper()
	listen, dir := envoytest.Addr(t), t.TempDir()
	file := filepath.Join(dir, "gatepost.yaml")
	if err := os.WriteFile(file, []byte(definitions), 0o600); err != nil {
		t.Fatal(err)
	}
	config := gateway.Config{
		Definitions: file, Listen: netip.MustParseAddrPort(listen), Data: filepath.Join(dir, "data"), Admin: envoytest.Addr(t),
		Envoy: envoytest.Require(t), Concurrency: 1, Logger: slog.New(log),
	}
	for _, change := range changes {
		change(&config)
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
		ready, err := envoytest.Send(t.Context(), http.DefaultClient, http.MethodGet, "http://"+config.Admin+"/readyz", "")
		if strings.Contains(ready.Body, "rejected by Envoy") {
			t.Fatalf("the gateway does not become ready: %s", ready.Body)
		}
		return err == nil && ready.Status == http.StatusOK
	})
	return "http://" + listen, "http://" + config.Admin
}

// request returns the response to one request.
func request(t *testing.T, method, url, token, body string) envoytest.Response {
	t.Helper()
	var headers []string
	if token != "" {
		headers = []string{"Authorization: " + token}
	}
	got, err := envoytest.Send(t.Context(), http.DefaultClient, method, url, body, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return got
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

	login := request(t, http.MethodPost, url+"/token", "", `{"username":"alice","password":"right"}`)
	token := login.Header.Get("token")
	if login.Status != http.StatusOK || token == "" {
		t.Fatalf("the login: %d %s", login.Status, login.Body)
	}
	if got := request(t, http.MethodGet, url+"/orders", token, ""); got.Status != http.StatusOK {
		t.Errorf("with the token: %d %s", got.Status, got.Body)
	}
	if seen := orders.Requests(); len(seen) != 1 || seen[0].Header.Get("X-User-Id") != "alice" {
		t.Errorf("the upstream received %+v", seen)
	}
	if got := request(t, http.MethodPost, url+"/token/revoke", token, ""); got.Status != http.StatusOK {
		t.Errorf("the revoke: %d %s", got.Status, got.Body)
	}
	if got := request(t, http.MethodGet, url+"/orders", token, ""); got.Status != http.StatusUnauthorized {
		t.Errorf("after the revoke: %d %s", got.Status, got.Body)
	}
}

// Envoy finds upstreams by name through Gatepost, which keeps their addresses for a moment.
func TestEnvoyAsksGatepostForNames(t *testing.T) {
	names, orders := envoytest.StartNameServer(t), envoytest.Upstream(t)
	names.Resolve("orders.test", "127.0.0.1")
	_, port, err := net.SplitHostPort(orders.Addr())
	if err != nil {
		t.Fatal(err)
	}
	url, _ := startWith(t, fmt.Sprintf(`services: [{name: orders, path: /orders, authenticate: false, upstreams: ["http://orders.test:%s"]}]`, port),
		slog.NewTextHandler(t.Output(), nil), func(c *gateway.Config) {
			c.NameServers = func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(names.Addr())} }
		})
	wants := func() {
		t.Helper()
		if got := request(t, http.MethodGet, url+"/orders", "", ""); got.Status != http.StatusOK {
			t.Errorf("%d %s", got.Status, got.Body)
		}
	}
	envoytest.Eventually(t, "a look-up", func() bool { return names.Asked("orders.test") > 1 })
	wants()
	names.Remove("orders.test")
	asked := names.Asked("orders.test")
	envoytest.Eventually(t, "two more look-ups", func() bool { return names.Asked("orders.test") > asked+1 })
	wants()
}

// faultyLog panics at messages that begin with one of these, and passes on the others. A program
// that runs a Gateway chooses its log handler.
type faultyLog struct {
	slog.Handler
	at []string
}

func (f faultyLog) Handle(ctx context.Context, r slog.Record) error {
	if slices.ContainsFunc(f.at, func(begin string) bool { return strings.HasPrefix(r.Message, begin) }) {
		panic("a secret")
	}
	return f.Handler.Handle(ctx, r)
}

// A panic in a login, a check or a call of the admin API is answered with 500 (a check: 503),
// logged and counted. It affects no other request.
func TestAGatewayGoesOnAfterPanics(t *testing.T) {
	users, orders := envoytest.Upstream(t), envoytest.Upstream(t)
	users.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("userid", "alice")
		if body, _ := io.ReadAll(r.Body); strings.Contains(string(body), "bob") {
			w.Header().Set("scopes", "no\\scope")
		}
	})
	var log testlog.Buffer
	url, admin := startWith(t, fmt.Sprintf(`
tokens:
  authenticator: {url: "%s/authenticate"}
services:
  - {name: orders, path: /orders, upstreams: ["%s"]}
`, users.URL(), orders.URL()), faultyLog{slog.NewTextHandler(&log, nil), []string{"invalid scopes from the user service", "request denied", "sessions revoked"}})

	const unknown = "8fa5e23a-b272-40b0-8a36-974384357fa6"
	login := request(t, http.MethodPost, url+"/token", "", `{"username":"alice","password":"right"}`)
	token := login.Header.Get("token")
	if login.Status != http.StatusOK {
		t.Fatalf("the login: %d %s", login.Status, login.Body)
	}
	for range 2 {
		for _, c := range []struct {
			what, method, url, token, body string
			want                           int
		}{
			{"a login", http.MethodPost, url + "/token", "", `{"username":"bob","password":"right"}`, http.StatusInternalServerError},
			{"a check", http.MethodGet, url + "/orders", unknown, "", http.StatusServiceUnavailable},
			{"a call of the admin API", http.MethodDelete, admin + "/api/v1/users/bob/sessions", "", "", http.StatusInternalServerError},
			{"a request with a token", http.MethodGet, url + "/orders", token, "", http.StatusOK},
		} {
			if got := request(t, c.method, c.url, c.token, c.body); got.Status != c.want {
				t.Errorf("%s: %d %s, want %d", c.what, got.Status, got.Body, c.want)
			}
		}
	}
	metrics := request(t, http.MethodGet, admin+"/metrics", "", "").Body
	for _, want := range []string{`gatepost_panics_total{handler="admin"} 2`, `gatepost_panics_total{handler="token"} 2`,
		`gatepost_check_failures_total{cause="panic"} 2`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 6 || strings.Count(log.String(), "a secret") > 0 || strings.Count(log.String(), "faultyLog") < 6 {
		t.Errorf("%d errors logged, want 6 with a stack and no secret:\n%s", n, log.String())
	}
}

// TestGatewaysCountTogether: a request that Redis did not count in time is refused, and then repeated here.
func TestGatewaysCountTogether(t *testing.T) {
	options, err := redisconn.ParseURL(redistest.Start(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	definitions := fmt.Sprintf(`services: [{name: items, path: /items, authenticate: false, upstreams: ["%s"],
  rate_limits: [{requests: 3, per: 24h, by: service, scope: cluster, without_redis: refuse}]}]`, envoytest.Upstream(t).URL())
	var urls [2]string
	for i := range urls {
		urls[i], _ = startWith(t, definitions, slog.NewTextHandler(t.Output(), nil), func(c *gateway.Config) { c.Redis = options })
	}
	allowed, limited := 0, [2]bool{}
	envoytest.Eventually(t, "both gateways to refuse", func() bool {
		for i, url := range urls {
			switch got := request(t, http.MethodGet, url+"/items", "", ""); got.Status {
			case http.StatusOK:
				allowed++
			case http.StatusTooManyRequests:
				limited[i] = true
			}
		}
		return limited[0] && limited[1]
	})
	if allowed == 0 || allowed > 3 {
		t.Errorf("%d requests were allowed, want 3", allowed)
	}
}

func TestLimitsOfTheClusterNeedRedis(t *testing.T) {
	file := filepath.Join(t.TempDir(), "gatepost.yaml")
	if err := os.WriteFile(file, []byte("rate_limits: [{requests: 1, by: gateway, scope: cluster}]\nservices: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := gateway.New(t.Context(), gateway.Config{
		Definitions: file, Data: t.TempDir(), GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0", Admin: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), "give --redis") {
		t.Errorf("New: %v", err)
	}
}

func TestAnIncompleteConfigurationIsAnError(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	for want, config := range map[string]gateway.Config{
		"no definitions":       {Data: t.TempDir(), GRPC: "x", HTTP: "x", Admin: "x", Logger: logger},
		"no address for Envoy": {Definitions: "x", Data: t.TempDir(), Admin: "x", Logger: logger},
		"not complete":         {Definitions: "x", GRPC: "x", HTTP: "x", Admin: "x", Logger: logger},
		"there are no definitions to start with:\nreading definitions: open ": {Definitions: filepath.Join(t.TempDir(), "none.yaml"), Data: t.TempDir(), GRPC: "x", HTTP: "x", Admin: "unix:x", Logger: logger},
		"--admin-token-file FILE": {Definitions: "x", Data: t.TempDir(), GRPC: "x", HTTP: "x", Admin: ":18002", Logger: logger},
	} {
		if g, err := gateway.New(t.Context(), config); g != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, %v, want the error %q", g, err, want)
		}
	}
}

// TestMetricsOfEnvoyFollowGateposts: those of the list, each with the labels of the reference, and no other.
func TestMetricsOfEnvoyFollowGateposts(t *testing.T) {
	t.Parallel()
	items := envoytest.Upstream(t)
	url, admin := startWith(t, fmt.Sprintf("services: [{name: items, path: /items, authenticate: false, upstreams: [%q]}]", items.URL()+"/base"),
		slog.NewTextHandler(t.Output(), nil))
	request(t, http.MethodGet, url+"/items", "", "")
	answer := request(t, http.MethodGet, admin+"/metrics?envoy=essential", "", "")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(answer.Body))
	if err != nil {
		t.Fatalf("%v:\n%s", err, answer.Body)
	}
	if families["gatepost_build_info"] == nil {
		t.Error("Gatepost's own metrics are missing")
	}
	var services []string
	for _, want := range envoy.EssentialMetrics {
		family := families[want.Name]
		if delete(families, want.Name); family == nil {
			t.Errorf("%s is missing", want.Name)
			continue
		}
		if got := strings.ToLower(family.GetType().String()); got != want.Type {
			t.Errorf("%s is a %s", want.Name, got)
		}
		for _, metric := range family.Metric {
			for _, label := range metric.Label {
				if !slices.Contains(want.Labels, label.GetName()) {
					t.Errorf("%s has a label %s", want.Name, label.GetName())
				}
				if want.Name == "envoy_cluster_upstream_rq_xx" && label.GetName() == "envoy_cluster_name" {
					services = append(services, label.GetValue())
				}
			}
		}
	}
	for name := range families {
		if strings.HasPrefix(name, "envoy_") {
			t.Errorf("%s is not in the list", name)
		}
	}
	if !slices.Contains(services, "service/items/base") {
		t.Errorf("the clusters are %v", services)
	}
	if got := request(t, http.MethodGet, admin+"/metrics?envoy=full", "", ""); got.Status != http.StatusBadRequest {
		t.Errorf("?envoy=full: %d %s", got.Status, got.Body)
	}
}
