package gateway

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"gatepost/envoy"
	"gatepost/redisconn"
)

var update = flag.Bool("update", false, "write docs/reference/metrics.md and the list of metrics in README.md")

// described reads what a description of package prometheus prints; it has no other form.
var described = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: "(.*?)"(?:, unit: "[^"]*")?, constLabels: \{[^}]*\}, variableLabels: \{([^}]*)\}\}$`)

// aMetric is a metric that a whole gateway registers.
type aMetric struct {
	name, kind, help string
	labels           []string
}

// The page lists every metric that a whole gateway registers, those of the Go runtime and the process apart, and those
// of Envoy.
func TestGeneratedPageOfMetricsIsCurrent(t *testing.T) {
	const page = "../docs/reference/metrics.md"
	want := metricsPage(registered(t))
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(page); err != nil || string(got) != want {
		t.Errorf("docs/reference/metrics.md is stale: run make generate (%v)", err)
	}
}

// The README lists the names of the same metrics.
func TestGeneratedListOfMetricsIsCurrent(t *testing.T) {
	const page, begins, ends = "../README.md", "<!-- Generated: make generate -->\n", "<!-- End of the list of metrics -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begins)
	got, after, ended := strings.Cut(rest, ends)
	if !found || !ended {
		t.Fatalf("README.md has no list of metrics: it is between %q and %q", begins, ends)
	}
	want := metricsList(registered(t))
	if *update {
		if err := os.WriteFile(page, []byte(before+begins+want+ends+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != want {
		t.Error("the list of metrics in README.md is stale: run make generate")
	}
}

func metricsList(all []aMetric) string {
	const columns = 2
	list := strings.Repeat("| ", columns) + "|\n" + strings.Repeat("|---", columns) + "|\n"
	for row := range slices.Chunk(all, columns) {
		for _, m := range row {
			list += "| `" + m.name + "` "
		}
		list += strings.Repeat("| ", columns-len(row)) + "|\n"
	}
	return list
}

// Names, units and help are as Prometheus asks for, also of metrics that have no sample yet.
func TestMetricsPassPromlint(t *testing.T) {
	var page strings.Builder
	for _, m := range registered(t) {
		fmt.Fprintf(&page, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
		if m.kind == "histogram" {
			fmt.Fprintf(&page, "%s_bucket{le=\"+Inf\"} 0\n%s_sum 0\n%s_count 0\n", m.name, m.name, m.name)
			if !strings.HasSuffix(m.name, "_duration_seconds") {
				t.Errorf("%s is not called _duration_seconds", m.name)
			}
			continue
		}
		page.WriteString(m.name)
		for i, label := range m.labels {
			page.WriteString([]string{"{", ","}[min(i, 1)] + label + `="x"`)
		}
		page.WriteString(strings.Repeat("}", min(len(m.labels), 1)) + " 0\n")
	}
	problems, err := promlint.New(strings.NewReader(page.String())).Lint()
	if err != nil {
		t.Fatalf("%v:\n%s", err, &page)
	}
	for _, p := range problems {
		if p.Metric == "gatepost_certificate_days_left" { // days are what an operator compares
			continue
		}
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// registered are the metrics of a whole gateway, by name: with Redis, which is away here, and without.
func registered(t *testing.T) (all []aMetric) {
	t.Helper()
	redis, err := redisconn.ParseURL("redis://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, options := range []*redisconn.Options{nil, redis} {
		for _, one := range registeredWith(t, options) {
			if !slices.ContainsFunc(all, func(known aMetric) bool { return known.name == one.name }) {
				all = append(all, one)
			}
		}
	}
	slices.SortFunc(all, func(a, b aMetric) int { return strings.Compare(a.name, b.name) })
	return all
}

func registeredWith(t *testing.T, redis *redisconn.Options) (all []aMetric) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "gatepost.yaml")
	if err := os.WriteFile(file, []byte("services: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := New(t.Context(), Config{
		Definitions: file, Data: filepath.Join(dir, "data"), Admin: "127.0.0.1:0", GRPC: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		Logger: slog.New(slog.DiscardHandler), Redis: redis,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	types := map[string]string{}
	families, err := g.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		types[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	descriptions := make(chan *prometheus.Desc)
	go func() { g.registry.Describe(descriptions); close(descriptions) }()
	for d := range descriptions {
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("not understood: %s", d)
		}
		one := aMetric{name: m[1], kind: types[m[1]], help: m[2]}
		if !strings.HasPrefix(one.name, "gatepost_") {
			continue
		}
		if m[3] != "" {
			one.labels = strings.Split(m[3], ",")
		}
		if one.kind == "" && strings.HasSuffix(one.name, "_total") { // a vector without samples
			one.kind = "counter"
		}
		if one.kind == "" && strings.HasSuffix(one.name, "_seconds") {
			one.kind = "histogram"
		}
		if one.kind == "" && strings.HasPrefix(one.name, "gatepost_certificate_") { // there are none
			one.kind = "gauge"
		}
		if one.kind == "" {
			t.Errorf("the type of %s is not known", one.name)
		}
		all = append(all, one)
	}
	return all
}

func metricsPage(all []aMetric) string {
	const table = "| metric | type | labels | meaning |\n|---|---|---|---|\n"
	row := func(m aMetric) string {
		labels := ""
		if len(m.labels) > 0 {
			labels = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		return fmt.Sprintf("| `%s` | %s | %s | %s |\n", m.name, m.kind, labels, m.help)
	}
	var own, envoys strings.Builder
	for _, m := range all {
		own.WriteString(row(m))
	}
	for _, m := range envoy.EssentialMetrics {
		envoys.WriteString(row(aMetric{m.Name, m.Type, m.Meaning, m.Labels}))
	}
	return "<!-- Generated by `make generate`. Do not edit. -->\n\n# Metrics\n\n" +
		"`/metrics` of [`--admin`](cli.md#flags-of-all-commands) serves these metrics in the text format of Prometheus\n" +
		"and as OpenMetrics, and those of the Go runtime (`go_*`) and of the process (`process_*`).\n" +
		"[Operations](../operations.md#alerts) lists what to alert on, and [troubleshooting](../troubleshooting.md)\n" +
		"explains the values of `reason` and `outcome`.\n\n" + table + own.String() +
		"\n## Metrics of Envoy\n\n" +
		"`/metrics?envoy=essential` adds these metrics of Envoy. If Envoy does not answer, a comment at the end of the page\n" +
		"says so. With `gatepost serve` it needs `--envoy-admin`.\n\n" +
		"`envoy_cluster_name` is `service/` and the name of the service, with the path of its upstreams if they have one.\n" +
		"Envoy's times are in milliseconds.\n\n" + table + envoys.String()
}
