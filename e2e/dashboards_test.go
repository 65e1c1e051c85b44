package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// query is an expression of a dashboard or of an alert.
type query struct{ where, text, legend string }

// queries are all expressions in deploy.
func queries(t *testing.T) (all []query) {
	t.Helper()
	dashboards, err := filepath.Glob("../deploy/grafana/dashboards/*.json")
	if err != nil || len(dashboards) != 4 {
		t.Fatalf("%d dashboards (%v)", len(dashboards), err)
	}
	for _, file := range dashboards {
		var dashboard struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr, LegendFormat string }
			}
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(content, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, panel := range dashboard.Panels {
			for _, target := range panel.Targets {
				text := strings.NewReplacer("$__rate_interval", "5m", "$service", "orders").Replace(target.Expr)
				all = append(all, query{filepath.Base(file) + ": " + panel.Title, text, target.LegendFormat})
			}
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	content, err := os.ReadFile("../deploy/prometheus/gatepost.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(content, &rules); err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules.Groups[0].Rules {
		all = append(all, query{rule.Alert, rule.Expr, ""})
	}
	return all
}

var (
	selector  = regexp.MustCompile(`\b((?:gatepost|envoy|process)_\w+)(?:\{([^}]*)\})?(?:\[|\)| |$)`)
	matcher   = regexp.MustCompile(`(\w+)(=~|=)"([^"]*)"`)
	grouping  = regexp.MustCompile(`by \(([^)]*)\)`)
	inLegend  = regexp.MustCompile(`\{\{(\w+)\}\}`)
	ofASeries = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// ofPrometheus are the labels that Prometheus adds, and that of a bucket.
var ofPrometheus = []string{"job", "instance", "le"}

// TestDashboardsAndAlertsNameWhatThereIs: each metric, label and value of a label is in a scrape of a gateway that has
// seen logins, denials and an outage.
func TestDashboardsAndAlertsNameWhatThereIs(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	shop.gateway = start(t, shop.definitions()+fmt.Sprintf("  - {name: admin, path: /admin, scopes: [admin], upstreams: [%q]}\n", shop.items.URL()),
		setup{Redis: redis.URL()})
	token := shop.Login("alice")
	shop.Do("GET", "/orders/2", "")
	for path, bearer := range map[string]string{"/orders/1": token, "/orders/3": "malformed", "/orders/4": other(token), "/admin": token} {
		shop.Do("GET", path, "", "Authorization: Bearer "+bearer)
	}
	shop.Do("POST", "/token/introspect", "", "Authorization: Bearer "+token)
	redis.Kill()
	want(t, "without the store", shop.Do("GET", "/orders/5", "", "Authorization: Bearer "+other(token)), http.StatusServiceUnavailable, "")
	scrape := startShop(t, setup{}).scrape(t) // for the metrics of the embedded store
	maps.Copy(scrape, shop.scrape(t))
	for _, q := range queries(t) {
		for _, s := range selector.FindAllStringSubmatch(grouping.ReplaceAllString(q.text, ""), -1) {
			family := scrape[ofASeries.ReplaceAllString(s[1], "")]
			if family == nil {
				family = scrape[s[1]]
			}
			if family == nil {
				t.Errorf("%s: there is no metric %s", q.where, s[1])
				continue
			}
			for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
				checkMatcher(t, q, family, m[1], m[3])
			}
			used := inLegend.FindAllStringSubmatch(q.legend, -1)
			for _, labels := range grouping.FindAllStringSubmatch(q.text, -1) {
				for label := range strings.SplitSeq(labels[1], ", ") {
					used = append(used, []string{"", label})
				}
			}
			for _, label := range used {
				if !slices.Contains(ofPrometheus, label[1]) && len(valuesOf(family, label[1])) == 0 {
					t.Errorf("%s: %s has no label %s", q.where, s[1], label[1])
				}
			}
		}
	}
}

// checkMatcher reports each alternative of a matcher that no value of the label is like.
func checkMatcher(t *testing.T, q query, family *dto.MetricFamily, label, pattern string) {
	t.Helper()
	if slices.Contains(ofPrometheus, label) {
		return
	}
	alternatives := []string{pattern}
	if !strings.Contains(pattern, "(") {
		alternatives = strings.Split(pattern, "|")
	}
	for _, one := range alternatives {
		if re := regexp.MustCompile("^(?:" + one + ")$"); !slices.ContainsFunc(valuesOf(family, label), re.MatchString) {
			t.Errorf("%s: %s has no %s like %s, but %q", q.where, family.GetName(), label, one, valuesOf(family, label))
		}
	}
}

func valuesOf(family *dto.MetricFamily, label string) (values []string) {
	for _, metric := range family.Metric {
		for _, one := range metric.Label {
			if one.GetName() == label {
				values = append(values, one.GetValue())
			}
		}
	}
	return values
}

// scrape returns the metrics of Gatepost and of its Envoy, by name.
func (g *gateway) scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	answer, err := http.Get("http://" + g.Admin + "/metrics?envoy=essential")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// TestAlertsFireWhenTheyShall: by their unit tests, and each expression of a dashboard is one that Prometheus accepts.
func TestAlertsFireWhenTheyShall(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal("needs promtool: apt-get install prometheus")
	}
	if err != nil {
		t.Skip("needs promtool: apt-get install prometheus")
	}
	type rule struct{ Record, Expr string }
	var rules []rule
	for i, q := range queries(t) {
		rules = append(rules, rule{fmt.Sprintf("query_%d", i), q.text})
	}
	content, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "all", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	all := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(all, []byte(strings.NewReplacer(`"Record"`, `"record"`, `"Expr"`, `"expr"`).Replace(string(content))), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"check", "rules", all, "../deploy/prometheus/gatepost.rules.yaml"},
		{"test", "rules", "../deploy/prometheus/gatepost.rules.test.yaml"},
	} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestEachAlertHasAUnitTest: one for which it fires.
func TestEachAlertHasAUnitTest(t *testing.T) {
	t.Parallel()
	tests, err := os.ReadFile("../deploy/prometheus/gatepost.rules.test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	operations, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queries(t) {
		if !strings.HasPrefix(q.where, "Gatepost") {
			continue
		}
		if !strings.Contains(string(tests), "alertname: "+q.where+"\n        exp_alerts: [{") {
			t.Errorf("no test of %s", q.where)
		}
		if !strings.Contains(string(operations), "| `"+q.where+"` |") {
			t.Errorf("docs/operations.md does not explain %s", q.where)
		}
	}
}
