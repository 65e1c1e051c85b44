package xds

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/testrun"
)

// live is a Server with a real Envoy connected to it.
type live struct {
	*control
	envoy    *envoytest.Envoy
	addr     string
	upstream *envoytest.Recorder
}

func startLive(t *testing.T, first func(listen, upstream string) *Snapshot) *live {
	t.Helper()
	return startLiveWith(t, quick, first)
}

func startLiveWith(t *testing.T, opts Config, first func(listen, upstream string) *Snapshot) *live {
	t.Helper()
	return startLiveOn(t, opts, envoytest.Options{}, first)
}

// startLiveOn starts one with an Envoy with options, which need no addresses.
func startLiveOn(t *testing.T, opts Config, of envoytest.Options, first func(listen, upstream string) *Snapshot) *live {
	t.Helper()
	testrun.Racing(t)
	envoytest.Require(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &live{control: &control{t: t, registry: prometheus.NewRegistry()}, addr: envoytest.Addr(t), upstream: envoytest.Upstream(t)}
	opts = opts.withLookup()
	opts.Logger, opts.Registerer = slog.New(slog.NewTextHandler(t.Output(), nil)), l.registry
	if l.Server, err = New(opts); err != nil {
		t.Fatal(err)
	}
	server := newServer()
	l.Subscribe(l.record)
	l.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		l.Close()
		server.Stop()
		<-served
	})
	snapshot := first(l.addr, l.upstream.URL())
	l.publish(snapshot)
	of.GRPC, of.Listen = lis.Addr().String(), []string{l.addr}
	l.envoy = envoytest.Start(t, of)
	l.delivered(snapshot)
	return l
}

// status of a GET over a connection that stays open; the body is not looked at.
func (l *live) get(client *http.Client, path string) (int, string, error) {
	res, err := client.Get("http://" + l.addr + path)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

// underLoad makes a change while a client for each path repeats its request. It fails the test if a response has
// another status, and returns the number of requests.
func (l *live) underLoad(t *testing.T, status int, paths []string, change func()) (requests int64) {
	t.Helper()
	var clients []func() error
	for _, path := range paths {
		client := envoytest.Client(t)
		clients = append(clients, func() error {
			code, body, err := l.get(client, path)
			if err == nil && code != status {
				err = fmt.Errorf("%s: %d %s", path, code, body)
			}
			return err
		})
	}
	load := envoytest.StartLoad(t, clients...)
	change()
	return load.Stop()
}

// open makes definitions with public services, each at the path of its name; more is put in front.
func (l *live) open(more string, names ...string) *Snapshot {
	l.t.Helper()
	return build(l.t, openServices(l.addr, l.upstream.URL(), more, names...))
}

func openServices(listen, upstream, more string, names ...string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "listen: %q\nservices:\n%s", listen, more)
	for _, n := range names {
		fmt.Fprintf(&text, "  - {name: %s, path: /%s, authenticate: false, upstreams: [%q]}\n", n, n, upstream)
	}
	return text.String()
}

// TestARealEnvoyRejectsAndRecovers: each kind of rejection, in Envoy's own words, with what is served going on.
func TestARealEnvoyRejectsAndRecovers(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l := startLive(t, func(listen, upstream string) *Snapshot { return build(t, openServices(listen, upstream, "", "a")) })
	client := envoytest.Client(t)
	good := l.open("", "a")
	noFile := testOptions
	noFile.CAFile = "/does/not/exist.crt"
	badCluster, err := Build(parse(t, openServices(l.addr, l.upstream.URL(),
		"  - {name: tls, path: /tls, upstreams: [\"https://a.example\"]}\n", "a", "fine")), noFile)
	if err != nil {
		t.Fatal(err)
	}
	badRoute := l.open("", "a", "twisted")
	breakRoutes(t, badRoute, "/twisted")

	for _, c := range []struct {
		name, kind, words string
		bad               *Snapshot
	}{
		{"a port that is taken", "listener", "Address already in use", build(t, openServices(taken.Addr().String(), l.upstream.URL(), "", "a"))},
		{"a file that is not there", "cluster", "/does/not/exist.crt", badCluster},
		{"a route that Envoy refuses", "route", "", badRoute},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.publish(c.bad)
			rejection := l.rejected(c.bad)
			if rejection.Type != c.kind || !strings.Contains(rejection.Reason, c.words) {
				t.Fatalf("got %v", rejection)
			}
			t.Log(rejection)
			l.rollsBack(c.bad, good)
			if code, _, err := l.get(client, "/a"); err != nil || code != 200 {
				t.Fatalf("after the rollback: %d %v", code, err)
			}
			better := l.open("", "a", "after"+c.kind)
			l.publish(better)
			l.delivered(better)
			if code, _, err := l.get(client, "/after"+c.kind); err != nil || code != 200 {
				t.Fatalf("the next good one: %d %v", code, err)
			}
			if _, version, err := l.get(client, definitions.VersionPath); err != nil || version != jsonString(better.Version) {
				t.Fatalf("the version served is %s, want %s (%v)", version, better.Version, err)
			}
			l.publish(good)
			l.delivered(good)
		})
	}
	if n := l.envoy.Stat("listener_manager.lds.update_rejected"); n != 1 {
		t.Errorf("Envoy has rejected %d listeners, want 1", n)
	}
}

// TestChangesUnderLoadFailNoRequest: services come, go, are renamed and moved beside one that is in use.
func TestChangesUnderLoadFailNoRequest(t *testing.T) {
	t.Parallel()
	l := startLive(t, func(listen, upstream string) *Snapshot { return build(t, openServices(listen, upstream, "", "kept")) })
	sent := l.underLoad(t, http.StatusOK, []string{"/kept/x", "/kept/x"}, func() {
		for i := range 30 {
			name := []string{"kept", "renamed"}[i%2]
			more := fmt.Sprintf("  - {name: %s, path: /kept, authenticate: false, upstreams: [%q]}\n", name, l.upstream.URL())
			next := l.open(more, fmt.Sprintf("other%d", i%7))
			l.publish(next)
			l.delivered(next)
		}
	})
	if sent == 0 {
		t.Fatal("no request was sent")
	}
	t.Logf("%d requests", sent)
}

// TestNoPathIsOpenWhileItsScopeGoes: a path that needs a token before a change and after it needs one in between, also
// while Envoy makes a thousand scopes anew.
func TestNoPathIsOpenWhileItsScopeGoes(t *testing.T) {
	t.Parallel()
	var names []string
	many := 1000
	if testing.Short() {
		many = 100
	}
	for i := range many {
		names = append(names, fmt.Sprintf("s%d", i))
	}
	var before, after *Snapshot
	l := startLive(t, func(listen, upstream string) *Snapshot {
		with := func(maxAge, more string) *Snapshot {
			return build(t, "cors: {max_age: "+maxAge+"}\n"+openServices(listen, upstream, more, names...))
		}
		before = with("60s", fmt.Sprintf("  - {name: site, path: /, authenticate: false, upstreams: [%[1]q]}\n  - {name: admin, path: /Admin, upstreams: [%[1]q]}\n", upstream))
		after = with("61s", fmt.Sprintf("  - {name: site, path: /, upstreams: [%q]}\n", upstream))
		return before
	})
	// There is nobody to ask about a token.
	asked := l.underLoad(t, http.StatusServiceUnavailable, []string{"/admin/x", "/Admin/x", "/ADMIN"}, func() {
		for _, next := range []*Snapshot{after, before, after} {
			l.serves(next)
		}
	})
	if got := l.upstream.Requests(); len(got) > 0 || asked == 0 {
		t.Errorf("of %d requests %d came through", asked, len(got))
	}
}

// TestAnEnvoyThatWasBusyRejectsNothing: routes that were sent without waiting any longer may come to it before their
// clusters. They are 503 until those are there, and the version is not one that it refuses.
func TestAnEnvoyThatWasBusyRejectsNothing(t *testing.T) {
	t.Parallel()
	impatient := quick
	impatient.Patience = 500 * time.Millisecond
	l := startLiveWith(t, impatient, func(listen, upstream string) *Snapshot { return build(t, openServices(listen, upstream, "", "a")) })
	pid := l.envoy.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.publish(l.open("", "a", "b"))
	time.Sleep(impatient.Patience / 2) // its clusters are out, and the Envoy has not answered
	last := l.open("", "a", "b", "c")
	l.publish(last)
	time.Sleep(2 * impatient.Patience)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l.delivered(last)
	if code, _, err := l.get(envoytest.Client(t), "/c"); err != nil || code != http.StatusOK {
		t.Fatalf("%d %v", code, err)
	}
}

// TestAListenerMoves: the new address opens, without a restart.
func TestAListenerMoves(t *testing.T) {
	t.Parallel()
	l := startLive(t, func(listen, upstream string) *Snapshot { return build(t, openServices(listen, upstream, "", "a")) })
	l.addr = envoytest.Addr(t)
	next := l.open("", "a")
	l.serves(next)
	envoytest.Eventually(t, "the new address accepts", func() bool { return envoytest.Accepts(l.addr) })
	if code, _, err := l.get(envoytest.Client(t), "/a"); err != nil || code != 200 {
		t.Fatalf("%d %v", code, err)
	}
}

// TestAnEnvoyThatDiesIsServedAgain: its last configuration is gone with it.
func TestAnEnvoyThatDiesIsServedAgain(t *testing.T) {
	t.Parallel()
	l := startLive(t, func(listen, upstream string) *Snapshot { return build(t, openServices(listen, upstream, "", "a")) })
	next := l.open("", "a", "b")
	l.envoy.Kill()
	l.eventually("it is gone", func(s progress) bool { return len(s.Envoys) == 0 })
	l.serves(next)
	envoytest.Eventually(t, "the new one accepts", func() bool { return envoytest.Accepts(l.addr) })
	if code, _, err := l.get(envoytest.Client(t), "/b"); err != nil || code != 200 {
		t.Fatalf("%d %v", code, err)
	}
}
