package xds

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	grpcstatus "google.golang.org/grpc/status"

	"gatepost/envoy/envoytest"
	"gatepost/testcert"
	"gatepost/testrun"
)

// TestAnUpstreamComesAndGoesByItsHealth: it gets no requests while it is not well, and 503 is the answer if none is.
func TestAnUpstreamComesAndGoesByItsHealth(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	envoytest.Require(t)
	var well atomic.Bool
	well.Store(true)
	up := envoytest.Upstream(t)
	up.SetHandler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/odd" || r.URL.Path == "/healthz" && !well.Load() {
			w.WriteHeader(http.StatusNoContent) // not expected, unless the service says so
		}
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ca := testcert.New(t)
	files := t.TempDir()
	ca.Issue(filepath.Join(files, "tls.crt"), filepath.Join(files, "tls.key"))
	pair, err := tls.LoadX509KeyPair(filepath.Join(files, "tls.crt"), filepath.Join(files, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	secured := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	secured.EnableHTTP2, secured.TLS = true, &tls.Config{Certificates: []tls.Certificate{pair}}
	secured.StartTLS()
	t.Cleanup(secured.Close)
	securedCalls := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&pair)))
	healthv1.RegisterHealthServer(securedCalls, health.NewServer())
	securedListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = securedCalls.Serve(securedListener) }()
	t.Cleanup(securedCalls.Stop)
	calls, status := grpc.NewServer(), health.NewServer()
	healthv1.RegisterHealthServer(calls, status)
	served := make(chan error, 1)
	go func() { served <- calls.Serve(listener) }()
	t.Cleanup(func() { calls.Stop(); <-served })
	addr, options := envoytest.Addr(t), testOptions
	options.CAFile = ca.Write(filepath.Join(files, "ca.crt"))
	envoy := envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(buildWith(t, fmt.Sprintf(`
listen: %q
services:
  - {name: https, path: /https, authenticate: false, upstreams: [%q], health_check: /healthz}
  - {name: grpcs, path: /grpcs, authenticate: false, grpc: true, upstreams: ["https://%s"], health_check: {grpc: true}}
  - {name: http, path: /http, authenticate: false, upstreams: [%q], health_check: {path: /healthz, interval: 100ms}}
  - {name: odd, path: /odd, authenticate: false, upstreams: [%[4]q], health_check: {path: /odd, interval: 100ms, expect: [201, 204]}}
  - {name: h2c, path: /h2c, authenticate: false, upstreams: ["h2c://%[5]s"], health_check: {path: /healthz, interval: 100ms}}
  - {name: grpc, path: /grpc.health.v1.Health, authenticate: false, grpc: true, upstreams: ["h2c://%[6]s"], health_check: {grpc: true, interval: 100ms}}
`, addr, secured.URL, securedListener.Addr(), up.URL(), good(t, new(atomic.Int64)), listener.Addr()), options))})
	healthy := func(service string, want int) {
		t.Helper()
		envoytest.Eventually(t, fmt.Sprintf("%d healthy upstreams of %s", want, service), func() bool {
			return envoy.Stat("cluster.service/"+service+".membership_healthy") == want
		})
	}
	client := envoytest.Client(t)
	serves := func(path string, want int) {
		t.Helper()
		envoytest.Eventually(t, fmt.Sprintf("%s by %d", path, want), func() bool { // the threads learn it after the statistics
			return statuses(t, client, http.MethodGet, "http://"+addr+path, "", 1)[want] == 1
		})
	}
	called := func(want codes.Code) {
		t.Helper()
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		envoytest.Eventually(t, "a call with "+want.String(), func() bool {
			_, err = healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
			return grpcstatus.Code(err) == want
		})
	}
	healthy("https", 1)
	healthy("grpcs", 1)
	serves("/https", 200)
	healthy("odd", 1)
	serves("/odd", 200)
	healthy("h2c", 1)
	serves("/h2c", 200)
	for range 2 { // flapping
		healthy("http", 1)
		serves("/http", 200)
		well.Store(false)
		healthy("http", 0)
		serves("/http", 503)
		well.Store(true)

		healthy("grpc", 1)
		called(codes.OK)
		status.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
		healthy("grpc", 0)
		called(codes.Unavailable)
		status.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	}
	for _, request := range up.Requests() {
		if host := strings.TrimPrefix(up.URL(), "http://"); request.Path == "/healthz" && request.Host != host {
			t.Fatalf("the Host of a check is %q, want %q", request.Host, host)
		}
	}
}

// TestAnUpstreamThatPassesItsCheckRests: if it fails requests all the same. Else it would get some after each check.
func TestAnUpstreamThatPassesItsCheckRests(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	envoytest.Require(t)
	var acted atomic.Int64
	var failing bad
	handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})(t, &failing)
	addr := envoytest.Addr(t)
	envoy := envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, fmt.Sprintf(`
listen: %q
services:
  - {name: a, path: /a, authenticate: false, upstreams: ["http://%s", "http://%s"], health_check: {path: /healthz, interval: 100ms}}
`, addr, failing.addr, good(t, &acted))))})
	o := observer{t, envoy, envoytest.Client(t), "http://" + addr + "/a", "cluster.service/a.", 2}
	envoytest.Eventually(t, "both upstreams to be healthy", func() bool { return o.healthy() == 2 })
	o.leftAlone()
	seen, checks := failing.acted.Load(), failing.checks.Load()
	envoytest.Eventually(t, "five more checks", func() bool { return failing.checks.Load() >= checks+5 })
	o.ten()
	if n := failing.acted.Load() - seen; n > 0 {
		t.Errorf("the upstream that rests got %d requests after checks", n)
	}
}

// TestTheOtherVersionOfACanaryTakesOver: if no upstream of a version is healthy.
func TestTheOtherVersionOfACanaryTakesOver(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	envoytest.Require(t)
	addr, well, dead := envoytest.Addr(t), good(t, new(atomic.Int64)), envoytest.Addr(t)
	var text strings.Builder
	fmt.Fprintf(&text, "listen: %q\nservices:\n", addr)
	for name, c := range map[string]struct{ stable, canary, by string }{
		"user-canary": {well, dead, "user"}, "user-stable": {dead, well, "user"},
		"request-canary": {well, dead, "request"}, "request-stable": {dead, well, "request"},
	} {
		fmt.Fprintf(&text, "  - {name: %s, path: /%[1]s, authenticate: false, retries: 0, outlier_detection: false, health_check: {path: /healthz, interval: 100ms}, "+
			"upstreams: [\"http://%s\"], canary: {upstreams: [\"http://%s\"], percent: 50, by: %s}}\n", name, c.stable, c.canary, c.by)
	}
	envoy := envoytest.Start(t, envoytest.Options{Listen: []string{addr}, Resources: messages(build(t, text.String()))})
	for _, name := range []string{"user-canary", "user-stable", "request-canary", "request-stable"} {
		o := observer{t, envoy, envoytest.Client(t), "http://" + addr + "/" + name, "cluster.service/" + name + ".", 2}
		envoytest.Eventually(t, "one of two upstreams of "+name+" to be healthy", func() bool { return o.healthy() == 1 && o.stat("health_check.failure") > 0 })
		o.leftAlone()
		const clients = 40
		for n := range clients {
			if got := statuses(t, from(t, n+1), http.MethodGet, o.url, "", 1); got[200] != 1 {
				t.Errorf("%s, client %d: %v", name, n, got)
			}
		}
	}
}

// TestNoUpstreamDelaysTheStartOrAnotherService: one that does not answer its health check, by name or by address. The
// first request to a new service with a health check finds its upstream.
func TestNoUpstreamDelaysTheStartOrAnotherService(t *testing.T) {
	long(t)
	t.Parallel()
	for by, hosts := range map[string][2]string{"name": {"hole.test", "good.test"}, "address": {"127.0.0.1", "127.0.0.1"}} {
		t.Run("by "+by, func(t *testing.T) {
			t.Parallel()
			noUpstreamDelaysTheStartOrAnotherService(t, hosts[0], hosts[1])
		})
	}
}

func noUpstreamDelaysTheStartOrAnotherService(t *testing.T, silentHost, goodHost string) {
	n := startNamed(t, patient)
	var hole bad
	blackHole(t, &hole)
	n.names.Resolve("hole.test", "127.0.0.1")
	checked := func(service, upstream, host, more string) string {
		return strings.Replace(byName(upstream, service, host), "]}", "], health_check: {path: /"+more+"}}", 1)
	}
	silent := func(service string) string {
		return checked(service, "http://"+hole.addr, silentHost, "healthz, timeout: 10s, interval: 3600s")
	}
	// beforeCheck is whether a path is answered before the first check of a service is over.
	beforeCheck := func(path, service string) bool {
		n.comes(path)
		stat := func(what string) int { return n.envoy.Stat("cluster.service/" + service + ".health_check." + what) }
		return stat("attempt") == 1 && stat("failure") == 0
	}
	for try := 1; ; try++ {
		n.serves(n.open(silent("silent"), "a")) // with the check under way for 10 s, or over
		starts := n.envoy.Starts()
		n.envoy.Kill()
		envoytest.Eventually(t, "Envoy to start again", func() bool { return n.envoy.Starts() > starts && envoytest.Accepts(n.addr) })
		started := beforeCheck("/a", "silent")
		n.publish(n.open(silent("silent")+silent("other")+checked("more", n.upstream.URL(), goodHost, "healthz"), "a", "b"))
		changed := beforeCheck("/b", "other")
		n.comes("/more")
		if started && changed {
			break
		}
		if try == 5 { // a busy machine may take longer than the check, but not always
			t.Fatalf("before the check had failed: the start %v, the change %v", started, changed)
		}
	}
	if code, _, err := n.get(envoytest.Client(t), "/silent"); err != nil || code != http.StatusServiceUnavailable {
		t.Errorf("the service that is not well: %d %v, want 503", code, err)
	}
}
