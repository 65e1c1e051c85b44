package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	collectorlogsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"gatepost/envoy/envoytest"
)

// collector is a collector of spans and log records.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	url string

	mu      sync.Mutex
	spans   []tracedSpan
	records []logRecord
}

// tracedSpan is a span and the service that made it.
type tracedSpan struct {
	*tracev1.Span
	service string
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{url: "http://" + listener.Addr().String()}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	collectorlogsv1.RegisterLogsServiceServer(server, logCollector{c: c})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return c
}

func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.ResourceSpans {
		service := attributesOf(resource.Resource.GetAttributes())["service.name"]
		for _, scope := range resource.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, tracedSpan{s, service})
			}
		}
	}
	return new(collectorv1.ExportTraceServiceResponse), nil
}

func (c *collector) all() []tracedSpan {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// trees are the traces as text: each span with its service, under its parent.
func (c *collector) trees() (all []string) {
	spans := c.all()
	slices.SortFunc(spans, func(a, b tracedSpan) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	var below func(parent string) []string
	below = func(parent string) (lines []string) {
		for _, s := range spans {
			if string(s.ParentSpanId) == parent {
				lines = append(lines, s.service+": "+s.Name)
				for _, line := range below(string(s.SpanId)) {
					lines = append(lines, "  "+line)
				}
			}
		}
		return lines
	}
	for _, s := range spans {
		if len(s.ParentSpanId) == 0 {
			all = append(all, strings.Join(append([]string{s.service + ": " + s.Name}, indented(below(string(s.SpanId)))...), "\n"))
		}
	}
	return all
}

func indented(lines []string) (out []string) {
	for _, line := range lines {
		out = append(out, "  "+line)
	}
	return out
}

// traced starts a shop whose spans go to a collector.
func traced(t *testing.T, more string, env ...string) (*shop, *collector) {
	t.Helper()
	spans := startCollector(t)
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	shop.gateway = start(t, more+shop.definitions(), setup{
		Env: append([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + spans.url, "OTEL_BSP_SCHEDULE_DELAY=50"}, env...), Args: []string{"--concurrency", "1"},
	})
	return shop, spans
}

// TestSettingsOfLogsDoNotStopTraces: an error in them is that of definitions that send the access log to a collector.
func TestSettingsOfLogsDoNotStopTraces(t *testing.T) {
	t.Parallel()
	shop, _ := traced(t, "", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc")
	shop.Login("alice")
	shop.Define("access_log: {format: ecs, to: otlp}\n" + shop.definitions())
	envoytest.Eventually(t, "the rejection", func() bool {
		return len(lines(shop.Log(), `"level":"ERROR"`, "access_log.to is otlp: OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")) > 0
	})
}

const (
	strangersTrace = "4bf92f3577b34da6a3ce929d0e0e4736"
	strangers      = "traceparent: 00-" + strangersTrace + "-00f067aa0ba902b7-01"
)

// TestOneTraceHasEnvoyCheckStoreLoginAndUserService: with the right parents, in names without paths, and without what a
// client sent in its query. A stranger's trace is not continued.
func TestOneTraceHasEnvoyCheckStoreLoginAndUserService(t *testing.T) {
	t.Parallel()
	shop, spans := traced(t, "")
	login := shop.Do("POST", "/token?secret=1", `{"username":"alice","password":"right"}`, strangers)
	token := login.Header.Get("token")
	want(t, "the login", login, http.StatusOK, "")
	want(t, "the token", shop.Do("GET", "/orders/5?secret=1", "", strangers, "Authorization: "+token), http.StatusOK, "")
	want(t, "a hit", shop.Do("GET", "/orders/5?secret=1", "", strangers, "Authorization: "+token), http.StatusOK, "")
	want(t, "no token", shop.Do("GET", "/orders/5?secret=1", ""), http.StatusUnauthorized, "")
	want(t, "a public service", shop.Do("GET", "/items/5?secret=1", "", "User-Agent: \xff"), http.StatusOK, "")
	want(t, "an unknown path", shop.Do("GET", "/secret?secret=1", ""), http.StatusNotFound, "")

	const envoyCheck = "  gatepost-envoy: async envoy.service.auth.v3.Authorization.Check egress\n    gatepost: check"
	expected := []string{
		"gatepost-envoy: POST token\n  gatepost-envoy: POST token\n    gatepost: login\n      gatepost: user service\n      gatepost: store create",
		"gatepost-envoy: GET orders\n" + envoyCheck + "\n      gatepost: store lookup\n  gatepost-envoy: GET orders",
		"gatepost-envoy: GET orders\n  gatepost-envoy: GET orders",
		"gatepost-envoy: GET orders\n" + envoyCheck,
		"gatepost-envoy: GET items\n  gatepost-envoy: GET items",
		"gatepost-envoy: GET unknown 404",
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the traces:\n%s", strings.Join(spans.trees(), "\n"))
		}
	})
	envoytest.Eventually(t, "the traces", func() bool {
		trees := spans.trees()
		return !slices.ContainsFunc(expected, func(tree string) bool { return !slices.Contains(trees, tree) })
	})
	if got := len(spans.trees()); got != len(expected) {
		t.Errorf("%d traces, want %d: %s", got, len(expected), strings.Join(spans.trees(), "\n"))
	}
	for _, s := range spans.all() {
		if fmt.Sprintf("%x", s.TraceId) == strangersTrace {
			t.Errorf("%s is part of the stranger's trace", s.Name)
		}
		for _, a := range s.Attributes {
			if value := a.Value.String(); strings.Contains(value, "secret=") || strings.Contains(value, token) || strings.Contains(value, "right") {
				t.Errorf("%s: %s has a secret: %s", s.Name, a.Key, value)
			}
		}
	}
	sent := shop.orders.Requests()[0].Header.Get("Traceparent")
	if sent == "" || strings.Contains(sent, strangersTrace) {
		t.Errorf("the upstream received the trace %q", sent)
	}
	if got := shop.users.Requests()[0].Header.Get("Traceparent"); !strings.Contains(got, traceOf(spans, "user service")) {
		t.Errorf("the user service received the trace %q", got)
	}
}

// traceOf is the id of the trace of the first span with a name.
func traceOf(c *collector, name string) string {
	for _, s := range c.all() {
		if s.Name == name {
			return fmt.Sprintf("%x-%x", s.TraceId, s.SpanId)
		}
	}
	return "none"
}

// TestTrustedClientsTraceGoesOn: also its choice not to be recorded.
func TestTrustedClientsTraceGoesOn(t *testing.T) {
	t.Parallel()
	shop, spans := traced(t, "tracing: {trust_incoming: true}\n")
	shop.Do("GET", "/items/1", "", "traceparent: 00-"+strings.Repeat("1", 32)+"-00f067aa0ba902b7-00")
	shop.Do("GET", "/items/2", "", strangers)
	envoytest.Eventually(t, "the client's trace", func() bool { return len(spans.all()) >= 2 })
	for _, s := range spans.all() {
		if fmt.Sprintf("%x", s.TraceId) != strangersTrace {
			t.Errorf("%s is in the trace %x", s.Name, s.TraceId)
		}
	}
}

// TestSlowChecksHaveATrace: the histogram of checks names one as an exemplar.
func TestSlowChecksHaveATrace(t *testing.T) {
	t.Parallel()
	shop, _ := traced(t, "")
	shop.Do("GET", "/orders/1", "")
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+shop.Admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body := new(strings.Builder)
	if err := answer.Write(body); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(body.String(), `# {trace_id="`) {
		t.Errorf("no exemplar:\n%s", body)
	}
}
