package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	collectorlogsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"

	"gatepost/admin"
	"gatepost/envoy/envoytest"
	"gatepost/testlog"
)

// accessLine is a line of the access log, in the form `ecs`.
type accessLine struct {
	Time string `json:"@timestamp"`
	URL  struct{ Path string }
	HTTP struct {
		Response struct {
			Status int `json:"status_code"`
		}
	}
	Client  struct{ Address string }
	User    struct{ ID string }
	Session struct{ ID string }
	Service struct{ Name, Address string }
	Gate    struct{ Decision, Reason, Route, Version string } `json:"gatepost"`
}

// TestAccessLogOfARunningGateway: every line of standard output is a request, with who and why, and without a token
// or a query.
func TestAccessLogOfARunningGateway(t *testing.T) {
	t.Parallel()
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	var stdout testlog.Buffer
	const origin = "Origin: https://shop.example"
	definitions := strings.Replace(shop.definitions(), "tokens:\n", "tokens:\n  cookie: session\n  subprotocol: gatepost.bearer\n", 1)
	shop.gateway = start(t, "origins: [https://shop.example]\naccess_log: {format: ecs}\n"+definitions, setup{Stdout: &stdout})
	login := shop.Do("POST", "/token", `{"username": "alice", "password": "right"}`, origin, "Content-Type: application/json")
	var grant struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(login.Body), &grant); err != nil {
		t.Fatalf("%v: %s", err, login.Body)
	}
	token := grant.Token
	for _, r := range []struct {
		path   string
		header string
		status int
	}{
		{"/orders/1?access_token=" + token, "Authorization: Bearer " + token, http.StatusOK},
		{"/orders/2?access_token=" + token, "Authorization: Bearer " + token, http.StatusOK},
		{"/orders/3", "Cookie: session=" + token, http.StatusOK},
		{"/orders/4", "Sec-WebSocket-Protocol: gatepost.bearer." + token, http.StatusOK},
		{"/orders/5", "Authorization: Bearer " + other(token), http.StatusUnauthorized},
		{"/items/6?access_token=" + token, "Authorization: Bearer " + token, http.StatusOK},
		{"/nobody?access_token=" + token, "Authorization: Bearer " + token, http.StatusNotFound},
	} {
		want(t, r.path, shop.Do("GET", r.path, "", origin, r.header), r.status, "")
	}
	var got []string
	envoytest.Eventually(t, "the lines of the requests", func() bool {
		got = shop.accessLines(t, stdout.String(), token)
		return len(got) >= 8
	})
	expected := []string{
		"200 /token token allow public",
		"200 /orders/1 orders allow token_known alice session",
		"200 /orders/2 orders allow module alice session",
		"200 /orders/3 orders allow token_known alice session",
		"200 /orders/4 orders allow token_known alice session",
		"401 /orders/5 orders deny token_unknown",
		"200 /items/6 items allow public",
		"404 /nobody deny not_found",
	}
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Errorf("%s\n%s", diff, stdout.String())
	}
}

// accessLines are the lines of requests that a test has made, in short. All of output must be whole lines, but for
// what is being written.
func (s *shop) accessLines(t *testing.T, output, token string) (short []string) {
	t.Helper()
	if strings.Contains(output, token) || strings.Contains(output, "access_token") {
		t.Fatalf("a token or a query is in the access log:\n%s", output)
	}
	versions, sessions := s.versions(t), map[string]bool{}
	for text := range strings.Lines(output) {
		if !strings.HasSuffix(text, "\n") {
			continue
		}
		var line accessLine
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if line.Gate.Route == "version" { // Gatepost asks Envoy which version it has
			continue
		}
		if known, isService := versions[line.Service.Name]; isService && line.Gate.Version != known {
			t.Errorf("the version is not %s: %s", known, text)
		}
		if line.Time == "" || line.Client.Address != "127.0.0.1" {
			t.Errorf("incomplete: %s", text)
		}
		fields := []string{fmt.Sprint(line.HTTP.Response.Status), line.URL.Path, line.Service.Name, line.Gate.Decision, line.Gate.Reason, line.User.ID}
		if line.Session.ID != "" {
			fields = append(fields, "session")
			sessions[line.Session.ID] = true
		}
		short = append(short, strings.Join(strings.Fields(strings.Join(fields, " ")), " "))
	}
	if len(sessions) > 1 {
		t.Errorf("there was one session, and the lines have %v", sessions)
	}
	return short
}

// versions are those of the services, as operators see them. :: service → version
func (g *gateway) versions(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	var services admin.Services
	if err := json.Unmarshal([]byte(adminPage(t, g, "/api/v1/services")), &services); err != nil {
		t.Fatal(err)
	}
	for _, s := range services.Services {
		all[s.Name] = s.Version
	}
	if len(all) == 0 {
		t.Fatal("no services")
	}
	return all
}

// TestAnAccessLogThatNobodyReadsStopsNoTraffic: a full pipe as standard output delays no request and no exit.
func TestAnAccessLogThatNobodyReadsStopsNoTraffic(t *testing.T) {
	t.Parallel()
	_, stdout := fullPipe(t)
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	shop.gateway = start(t, "access_log: {format: ecs}\n"+shop.definitions(), setup{Stdout: stdout})
	trafficGoesOn(t, shop)
	ends(t, shop)
}

// logRecord is what a collector received about a request.
type logRecord struct {
	service    string // of the resource
	attributes map[string]string
	body       string
	hasTime    bool
}

// logCollector is the part of a collector that receives log records.
type logCollector struct {
	collectorlogsv1.UnimplementedLogsServiceServer
	c *collector
}

func (l logCollector) Export(_ context.Context, r *collectorlogsv1.ExportLogsServiceRequest) (*collectorlogsv1.ExportLogsServiceResponse, error) {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	for _, resource := range r.ResourceLogs {
		service := attributesOf(resource.Resource.GetAttributes())["service.name"]
		for _, scope := range resource.ScopeLogs {
			for _, one := range scope.LogRecords {
				record := logRecord{service, attributesOf(one.Attributes), one.Body.GetStringValue(), one.TimeUnixNano != 0}
				if record.attributes["gatepost.route"] != "version" { // Gatepost asks Envoy which version it has
					l.c.records = append(l.c.records, record)
				}
			}
		}
	}
	return new(collectorlogsv1.ExportLogsServiceResponse), nil
}

func attributesOf(list []*commonv1.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range list {
		all[a.Key] = a.Value.GetStringValue()
	}
	return all
}

// logged returns the records so far.
func (c *collector) logged() []logRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.records)
}

// TestAccessLogGoesToACollector: with the fields of a line in JSON, without a token or a query, and to the standard
// output goes nothing.
func TestAccessLogGoesToACollector(t *testing.T) {
	t.Parallel()
	collector := startCollector(t)
	var stdout testlog.Buffer
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	shop.gateway = start(t, "access_log: {format: ecs, to: otlp}\n"+shop.definitions(), setup{
		Env: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.url, "OTEL_TRACES_EXPORTER=none"}, Args: []string{"--concurrency", "1"}, Stdout: &stdout,
	})
	token := shop.Login("alice")
	for _, path := range []string{"/orders/1?secret=1", "/orders/2?secret=1", "/items/3"} {
		want(t, path, shop.Do("GET", path, "", "Authorization: "+token), http.StatusOK, "")
	}
	want(t, "no token", shop.Do("GET", "/orders/4", ""), http.StatusUnauthorized, "")
	// Neither is UTF-8, the second one after it was cut off. A collector would refuse the records of all requests.
	for _, agent := range []string{"\xff", strings.Repeat("a", 255) + "é"} {
		want(t, "a User-Agent", shop.Do("GET", "/items/5?secret=1", "", "User-Agent: "+agent), http.StatusOK, "")
	}
	envoytest.Eventually(t, "the records", func() bool { return len(collector.logged()) >= 7 })
	var got []string
	for _, r := range collector.logged() {
		if text := fmt.Sprint(r); strings.Contains(text, token) || strings.Contains(text, "secret") {
			t.Errorf("a token or a query: %s", text)
		}
		if r.service != "gatepost-envoy" || !r.hasTime || r.attributes["client.address"] != "127.0.0.1" || r.attributes["http.request.id"] == "" {
			t.Errorf("incomplete: %+v", r)
		}
		var line []string
		for _, name := range []string{"http.response.status_code", "url.path", "service.name", "gatepost.decision", "gatepost.reason", "user.id"} {
			if value, known := r.attributes[name]; known {
				line = append(line, value)
			}
		}
		got = append(got, strings.Join(line, " "))
	}
	slices.Sort(got) // records of errors are sent by themselves
	expected := []string{
		"200 /items/3 items allow public",
		"200 /items/5 items allow public",
		"200 /items/5 items allow public",
		"200 /orders/1 orders allow token_known alice",
		"200 /orders/2 orders allow module alice",
		"200 /token token allow public",
		"401 /orders/4 orders deny token_missing",
	}
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Error(diff)
	}
	if stdout.String() != "" {
		t.Errorf("standard output: %s", stdout.String())
	}
}
