package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/panics"
)

// TestMetricsOfEnvoy: Gatepost's own are there without those of Envoy, and a page that breaks off is an error.
func TestMetricsOfEnvoy(t *testing.T) {
	t.Parallel()
	up := prometheus.NewGauge(prometheus.GaugeOpts{Name: "own", Help: "Own."})
	registry := prometheus.NewRegistry()
	registry.MustRegister(up)
	for name, row := range map[string]struct {
		envoy  func(context.Context) (io.ReadCloser, error)
		status int
		body   string
		broken bool
	}{
		"no Envoy": {nil, http.StatusNotFound, "name it by gatepost serve --envoy-admin", false},
		"not answering": {func(context.Context) (io.ReadCloser, error) { return nil, errors.New("no\nsocket") },
			http.StatusOK, "own 0\n# Envoy's metrics are missing: \"no\\nsocket\"\n", false},
		"answering": {func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("envoys 1\n")), nil
		},
			http.StatusOK, "own 0\nenvoys 1\n", false},
		"breaking off": {func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("envoys 1\n")))), nil
		}, http.StatusOK, "own 0\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handler := newMetrics(Config{Metrics: registry, EnvoyMetrics: row.envoy})
			server := httptest.NewServer(panics.Handler(handler, nil, func() { t.Error("a panic") }, ""))
			defer server.Close()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"?envoy=essential", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
			answer, err := server.Client().Do(request)
			if row.broken && err != nil {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if answer.StatusCode != row.status || !strings.Contains(string(body), row.body) || (err != nil) != row.broken {
				t.Errorf("%d %s (%v)", answer.StatusCode, body, err)
			}
		})
	}
}

// TestMetricsOfEnvoyAreStreamed: an Envoy with thousands of services has megabytes of them, which are not kept.
func TestMetricsOfEnvoyAreStreamed(t *testing.T) {
	t.Parallel()
	read, write := io.Pipe()
	server := httptest.NewServer(newMetrics(Config{Metrics: prometheus.NewRegistry(), EnvoyMetrics: func(context.Context) (io.ReadCloser, error) {
		return read, nil
	}}))
	defer server.Close()
	defer read.Close()
	first, rest := strings.Repeat("a 1\n", 64<<10), "b 1\n"
	received := make(chan bool)
	go func() {
		_, _ = io.WriteString(write, first)
		<-received // no byte more comes before the client has some
		_, _ = io.WriteString(write, rest)
		_ = write.Close()
	}()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"?envoy=essential", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	begin := make([]byte, len(first)/2)
	if _, err := io.ReadFull(answer.Body, begin); err != nil {
		t.Fatal(err)
	}
	close(received)
	if end, err := io.ReadAll(answer.Body); err != nil || string(begin)+string(end) != first+rest {
		t.Errorf("%d bytes, %v", len(begin)+len(end), err)
	}
}
