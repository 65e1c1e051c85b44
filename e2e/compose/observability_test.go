package compose

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// testObservability starts the profile observability. Grafana and the collector have no stand-ins.
func testObservability(t *testing.T, p *project, images string) {
	on := map[string][]string{
		"gatepost-metrics": {"monitoring"},
		"prometheus":       {"monitoring"},
		"grafana":          {"dashboards", "monitoring"},
		"otel-collector":   {"gateway"},
	}
	if images != "official images" {
		delete(on, "grafana")
		delete(on, "otel-collector")
		provideStandInOfPrometheus(t, p.engine)
	}
	services := slices.Collect(maps.Keys(on))
	t.Setenv("COMPOSE_PROFILES", "observability") // as --profile of each command
	p.run(t, append([]string{"up", "--wait"}, services...)...)
	defer p.run(t, append([]string{"rm", "--stop", "--force"}, services...)...)
	for service, networks := range on {
		checkHardened(t, p, service)
		checkNetworks(t, p, service, networks)
	}
	for service := range networks { // a client of this socket may end sessions
		isAdmin := func(m mount) bool { return m.Destination == "/run/gatepost-admin" }
		if has := slices.ContainsFunc(p.inspect(t, service).Mounts, isAdmin); has != (service == "gatepost") {
			t.Errorf("%s has the folder of the admin API: %v", service, has)
		}
	}
	p.run(t, "exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yaml")

	query := func(text string) string {
		return p.run(t, "exec", "-T", "prometheus", "promtool", "query", "instant", "http://127.0.0.1:9090", text)
	}
	for _, text := range []string{
		`up{job="gatepost"} == 1`,
		`gatepost_definitions_current{job="gatepost"} == 1`,
		`envoy_server_live{job="gatepost"} == 1`,
		`sum(prometheus_rule_group_rules) == ` + strconv.Itoa(countAlerts(t)),
		`sum(prometheus_rule_evaluations_total) > 0 and sum(prometheus_rule_evaluation_failures_total) == 0`,
	} {
		eventually(t, text, func() bool { return query(text) != "" })
	}

	// Any answer, also a 404, would show that an upstream can connect.
	for service, port := range map[string]string{"gatepost-metrics": "18002", "prometheus": "9090"} {
		address := p.inspect(t, service).NetworkSettings.Networks[projectName+"_monitoring"].IPAddress
		out, err := p.command(t.Context(), "exec", "-T", "items", "/shop", "-check=http://"+address+":"+port).CombinedOutput()
		if err == nil || !unreachable.Match(out) {
			t.Errorf("connecting from an upstream to %s: %v, want no connection\n%s", service, err, out)
		}
	}
	for request, want := range map[string]string{
		"GET /metrics": "200", "POST /metrics": "404", "GET /api/v1/status": "404", "GET /metrics/../api/v1/status": "404", "GET /": "404",
	} {
		if got := askMetrics(t, p, request); got != want {
			t.Errorf("%s of gatepost-metrics: %s, want %s", request, got, want)
		}
	}
	// The connection is by name of the socket, so a new Gatepost is found.
	p.run(t, "restart", "gatepost")
	p.run(t, "up", "--detach", "--wait", "gatepost")
	eventually(t, "metrics of the restarted Gatepost", func() bool { return askMetrics(t, p, "GET /metrics") == "200" })
}

var unreachable = regexp.MustCompile(`network is unreachable|context deadline exceeded`)

// askMetrics sends one request to gatepost-metrics and returns the status.
func askMetrics(t *testing.T, p *project, request string) string {
	t.Helper()
	const script = `exec 3<>/dev/tcp/127.0.0.1/18002; printf '%s HTTP/1.1\r\nHost: gatepost-metrics\r\nConnection: close\r\n\r\n' "$0" >&3; read -r _ status _ <&3; echo $status`
	return p.run(t, "exec", "-T", "gatepost-metrics", "bash", "-c", script, request)
}

// countAlerts returns the number of rules in deploy.
func countAlerts(t *testing.T) int {
	t.Helper()
	return strings.Count(readFile(t, "deploy/prometheus/gatepost.rules.yaml"), "- alert: ")
}

// provideStandInOfPrometheus makes an image of this machine's Prometheus, with the name and the owners of the official
// one.
func provideStandInOfPrometheus(t *testing.T, e *engine) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"prometheus", "promtool"} {
		program, err := exec.LookPath(name)
		if err != nil {
			missing(t, "needs Prometheus: apt-get install prometheus")
		}
		content, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	// The image of Redis has the C library, which is all that Debian's Prometheus needs.
	file := "FROM " + imageIn(t, "docker-compose.yml", `image: (redis:\S+)`) + "\nCOPY prometheus promtool /usr/bin/\n" +
		"COPY --chown=65534:65534 data /prometheus\nENTRYPOINT [\"/usr/bin/prometheus\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	e.run(t, "build", "--quiet", "--tag", imageIn(t, "docker-compose.yml", `image: (prom/\S+)`), dir)
}

// composeFile is what the tests read of docker-compose.yml.
type composeFile struct {
	Services map[string]struct {
		Image    string
		Profiles []string
		Volumes  []string
		Ports    []string
		Networks []string
	}
}

var (
	pinned = regexp.MustCompile(`^[\w./-]+:v?\d[\w.-]*$`)
	bind   = regexp.MustCompile(`^(\./[^:]+):([^:]+):ro$`)
)

// TestFilesOfObservability checks what no container checks: Docker would make an empty folder of a missing one, and
// the images of Grafana and of the collector may not be there.
func TestFilesOfObservability(t *testing.T) {
	var compose composeFile
	readYAML(t, "docker-compose.yml", &compose, false)
	mounts := map[string]map[string]string{} // service → folder of the container → folder of the project
	for name, service := range compose.Services {
		mounts[name] = map[string]string{}
		for _, volume := range service.Volumes {
			if !strings.HasPrefix(volume, ".") {
				continue
			}
			m := bind.FindStringSubmatch(volume)
			if m == nil {
				t.Fatalf("%s mounts %s, want a folder that cannot be written to", name, volume)
			}
			if info, err := os.Stat(filepath.Join(root, m[1])); err != nil || !info.IsDir() {
				t.Errorf("%s mounts %s, which is no folder (%v)", name, m[1], err)
			}
			mounts[name][m[2]] = m[1]
		}
		for _, port := range service.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s publishes %s, want loopback only", name, port)
			}
		}
		if !strings.HasPrefix(service.Image, "gatepost-demo-") && !pinned.MatchString(service.Image) {
			t.Errorf("%s has the image %s without a version", name, service.Image)
		}
	}
	for name, published := range map[string]bool{"gatepost-metrics": false, "prometheus": false, "grafana": true, "otel-collector": false} {
		service := compose.Services[name]
		if !slices.Equal(service.Profiles, []string{"observability"}) || len(service.Ports) != 0 != published {
			t.Errorf("%s has the profiles %v and the ports %v", name, service.Profiles, service.Ports)
		}
	}
	checkGrafana(t, compose, mounts["grafana"])
	checkCollector(t, filepath.Join(mounts["otel-collector"]["/etc/otelcol"], "config.yaml"))
}

// checkGrafana checks the data source, the folder of the dashboards, and that the dashboards use this data source.
func checkGrafana(t *testing.T, compose composeFile, mounts map[string]string) {
	t.Helper()
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name, UID, Type, Access, URL string
			IsDefault                    bool `yaml:"isDefault"`
		}
	}
	readYAML(t, mounts["/etc/grafana/provisioning"]+"/datasources/gatepost.yaml", &sources, true)
	if len(sources.Datasources) != 1 {
		t.Fatalf("%d data sources, want 1", len(sources.Datasources))
	}
	source := sources.Datasources[0]
	if sources.APIVersion != 1 || source.Type != "prometheus" || !source.IsDefault || source.URL != "http://prometheus:9090" {
		t.Errorf("the data source is %+v", source)
	}
	if shared := func(n string) bool { return slices.Contains(compose.Services["prometheus"].Networks, n) }; !slices.ContainsFunc(compose.Services["grafana"].Networks, shared) {
		t.Error("Grafana and Prometheus share no network")
	}
	var providers struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Folder, Type string
			Options            struct{ Path string }
		}
	}
	readYAML(t, mounts["/etc/grafana/provisioning"]+"/dashboards/gatepost.yaml", &providers, true)
	if len(providers.Providers) != 1 || providers.APIVersion != 1 || providers.Providers[0].Type != "file" {
		t.Fatalf("the providers of dashboards are %+v", providers)
	}
	folder := mounts[providers.Providers[0].Options.Path]
	files, err := filepath.Glob(filepath.Join(root, folder, "*.json"))
	if err != nil || folder == "" || len(files) == 0 {
		t.Fatalf("no dashboards in %s, which is %q of the project", providers.Providers[0].Options.Path, folder)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard struct {
			Templating struct {
				List []struct {
					Name, Type string
					Query      any
				}
			}
		}
		if err := json.Unmarshal(content, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		uses := []string{source.UID}
		for _, variable := range dashboard.Templating.List {
			if variable.Type == "datasource" && variable.Query == source.Type {
				uses = append(uses, "${"+variable.Name+"}") // the default data source of this type, if nobody selects another
			}
		}
		found := datasourceUID.FindAllSubmatch(content, -1)
		if len(found) == 0 {
			t.Errorf("%s has no data source", file)
		}
		for _, uid := range found {
			if !slices.Contains(uses, string(uid[1])) {
				t.Errorf("%s uses the data source %s, want one of %v", file, uid[1], uses)
			}
		}
	}
	home := regexp.MustCompile(`HOME_DASHBOARD_PATH: (\S+)/(\S+)`).FindStringSubmatch(readFile(t, "docker-compose.yml"))
	if home == nil {
		t.Fatal("Grafana has no first page")
	}
	if _, err := os.Stat(filepath.Join(root, mounts[home[1]], home[2])); err != nil {
		t.Errorf("the first page of Grafana: %v", err)
	}
}

var datasourceUID = regexp.MustCompile(`"datasource":\s*\{\s*"type":\s*"prometheus",\s*"uid":\s*"([^"]*)"`)

// checkCollector checks that each pipeline has parts that are configured, and that each part is in a pipeline.
func checkCollector(t *testing.T, file string) {
	t.Helper()
	var config struct {
		Receivers struct {
			OTLP struct {
				Protocols struct{ GRPC struct{ Endpoint string } }
			}
		}
		Processors struct {
			MemoryLimiter struct {
				CheckInterval string `yaml:"check_interval"`
				LimitMiB      int    `yaml:"limit_mib"`
			} `yaml:"memory_limiter"`
		}
		Exporters struct{ Debug struct{ Verbosity string } }
		Service   struct {
			Pipelines map[string]struct{ Receivers, Processors, Exporters []string }
		}
	}
	readYAML(t, file, &config, true)
	if got := config.Receivers.OTLP.Protocols.GRPC.Endpoint; got != "0.0.0.0:4317" {
		t.Errorf("the collector listens on %q", got)
	}
	if len(config.Service.Pipelines) != 2 {
		t.Errorf("%d pipelines, want traces and logs", len(config.Service.Pipelines))
	}
	for _, name := range []string{"traces", "logs"} {
		pipeline := config.Service.Pipelines[name]
		if !slices.Equal(pipeline.Receivers, []string{"otlp"}) || !slices.Equal(pipeline.Processors, []string{"memory_limiter"}) ||
			!slices.Equal(pipeline.Exporters, []string{"debug"}) {
			t.Errorf("the pipeline of %s is %+v", name, pipeline)
		}
	}
}

// testCollectorIsOptional: without the variable there are no traces, with it Gatepost gets it.
func testCollectorIsOptional(t *testing.T, p *project) {
	const variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for _, want := range []string{"", "http://otel-collector:4317"} {
		t.Setenv(variable, want)
		var config struct {
			Services map[string]struct{ Environment map[string]string }
		}
		if err := json.Unmarshal([]byte(p.run(t, "config", "--format", "json")), &config); err != nil {
			t.Fatal(err)
		}
		if got, set := config.Services["gatepost"].Environment[variable]; got != want || !set {
			t.Errorf("%s of Gatepost is %q, want %q", variable, got, want)
		}
	}
}

func readFile(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// readYAML reads a file of the project. If strict is true, each key must be one of into.
func readYAML(t *testing.T, file string, into any, strict bool) {
	t.Helper()
	decoder := yaml.NewDecoder(strings.NewReader(readFile(t, file)))
	decoder.KnownFields(strict)
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}
