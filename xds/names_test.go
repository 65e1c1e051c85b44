package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	envoyadmin "gatepost/envoy"
	"gatepost/envoy/envoytest"
	"gatepost/nameserver"
)

// named is a live Envoy that asks one name server, and so does the Server.
type namedLive struct {
	*live
	names *envoytest.NameServer
	clock atomic.Pointer[time.Time] // of Gatepost's name server, if Envoy asks that
}

// startNamed starts one that serves the services a, by address, and good, by name.
func startNamed(t *testing.T, opts Config) *namedLive {
	t.Helper()
	return startNamedBy(t, opts, func(n *namedLive) envoytest.Options { return envoytest.Options{NameServer: n.names.Addr()} })
}

// startNamedThroughGatepost starts one whose Envoy asks Gatepost, as with gatepost run. It is the same time until clock
// is changed.
func startNamedThroughGatepost(t *testing.T, now time.Time) *namedLive {
	t.Helper()
	return startNamedBy(t, patient, func(n *namedLive) envoytest.Options {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n.clock.Store(&now)
		config := nameserver.Config{
			Servers: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort(n.names.Addr())} },
			Now:     func() time.Time { return *n.clock.Load() },
		}
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- nameserver.Serve(ctx, listener, config) }()
		t.Cleanup(func() {
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		return envoytest.Options{NameServerTCP: listener.Addr().String()}
	})
}

func startNamedBy(t *testing.T, opts Config, resolver func(*namedLive) envoytest.Options) *namedLive {
	t.Helper()
	n := &namedLive{names: envoytest.StartNameServer(t)}
	n.names.Resolve("good.test", "127.0.0.1")
	if opts.Lookup == nil {
		opts.Lookup = lookUpBy(t, n.names.Addr())
	}
	n.live = startLiveOn(t, opts, resolver(n), func(listen, upstream string) *Snapshot {
		return build(t, openServices(listen, upstream, byName(upstream, "good", "good.test"), "a"))
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Envoy's look-ups: %v", n.envoy.Stats(`^(dns|cluster\.service/.*\.(membership_total|update_.*))`))
		}
	})
	return n
}

// awaitLookups waits until a name was asked for this many times more.
func (n *namedLive) awaitLookups(name string, more int) {
	n.t.Helper()
	asked := n.names.Asked(name)
	envoytest.Eventually(n.t, "look-ups of "+name, func() bool { return n.names.Asked(name) >= asked+more })
}

// lookUpBy looks names up by a name server. Go's resolver goes on with a question when the context ends; here it ends
// with the test.
func lookUpBy(t *testing.T, nameServer string) func(context.Context, string) error {
	resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(t.Context(), "udp", nameServer)
		if err == nil {
			context.AfterFunc(t.Context(), func() { conn.Close() })
		}
		return conn, err
	}}
	return func(ctx context.Context, host string) error {
		_, err := resolver.LookupNetIP(ctx, "ip4", host+".")
		return err
	}
}

// byName is a public service whose upstream is that of a URL, by another host name.
func byName(upstream, service, host string) string {
	u, _ := url.Parse(upstream)
	return fmt.Sprintf("  - {name: %s, path: /%s, authenticate: false, upstreams: [\"http://%s:%s\"]}\n", service, service, host, u.Port())
}

// with makes definitions with the services by address, and, as pairs of a service and a host, by name.
func (n *namedLive) with(byAddress []string, named ...string) *Snapshot {
	n.t.Helper()
	var more strings.Builder
	for i := 0; i < len(named); i += 2 {
		more.WriteString(byName(n.upstream.URL(), named[i], named[i+1]))
	}
	return n.open(more.String(), byAddress...)
}

// comes waits until a path is answered by something else than 404, which must be 200: no request comes too early.
func (n *namedLive) comes(path string) {
	n.t.Helper()
	client := envoytest.Client(n.t)
	code, err := 0, error(nil)
	envoytest.Eventually(n.t, path, func() bool {
		code, _, err = n.get(client, path)
		return err == nil && code != http.StatusNotFound
	})
	if code != http.StatusOK {
		n.t.Fatalf("the first answer of %s is %d, want 200", path, code)
	}
}

// stillAsks fails the test if Envoy has given up a name: then what has come since may have waited for that.
func (n *namedLive) stillAsks(service, host string) {
	n.t.Helper()
	if !n.names.Waits(host) || n.envoy.Stat("cluster.service/"+service+".update_failure") != 0 {
		n.t.Fatalf("this came only when Envoy had given up %s", host)
	}
}

// patient are options by which nothing comes because it was waited for long enough.
var patient = Config{Grace: time.Second, Patience: time.Hour, LookupTimeout: time.Hour, Warmup: 100 * time.Millisecond}

func TestASilentNameServerHoldsUpNoOtherService(t *testing.T) {
	t.Parallel()
	n := startNamed(t, patient)
	n.names.Silence("silent.test")
	n.publish(n.with([]string{"a", "b"}, "good", "good.test", "silent", "silent.test"))
	n.comes("/b") // of the same change
	n.stillAsks("silent", "silent.test")
	n.publish(n.with([]string{"a", "b", "c"}, "good", "good.test", "silent", "silent.test", "more", "good.test"))
	n.comes("/c") // of the next
	n.comes("/more")
	n.stillAsks("silent", "silent.test")
}

func TestASilentNameServerHoldsUpNoStart(t *testing.T) {
	long(t)
	t.Parallel()
	opts := patient
	opts.LookupTimeout, opts.Warmup = time.Second, 3*time.Second // the latter is enough for a name server that replies
	n := startNamed(t, opts)
	n.names.Silence("silent.test")
	n.serves(n.with([]string{"a"}, "good", "good.test", "silent", "silent.test"))
	starts := n.envoy.Starts()
	n.envoy.Kill()
	envoytest.Eventually(t, "Envoy to start again", func() bool { return n.envoy.Starts() > starts && envoytest.Accepts(n.addr) })
	client := envoytest.Client(t)
	if code, _, err := n.get(client, "/good"); err != nil || code != http.StatusOK {
		t.Errorf("the first request after the start: %d %v, want 200", code, err)
	}
	n.stillAsks("silent", "silent.test")
	if code, _, err := n.get(client, "/silent"); err != nil || code != http.StatusServiceUnavailable {
		t.Errorf("the service whose upstream is not found: %d %v, want 503", code, err)
	}
}

// An Envoy that starts gets its listener Warmup after its clusters, if there are names to look up.
func TestWhoseListenerWaitsForNames(t *testing.T) {
	byAddress, byName := "http://10.0.0.1", "http://good.test"
	for _, c := range []struct {
		what, upstream, typeURL, nonce string
		has                            map[string]string
		want                           bool
	}{
		{"an Envoy that starts", byName, resourcev3.ListenerType, "", nil, true},
		{"without names", byAddress, resourcev3.ListenerType, "", nil, false},
		{"its clusters", byName, resourcev3.ClusterType, "", nil, false},
		{"an Envoy that comes back", byName, resourcev3.ListenerType, "", map[string]string{ListenerName: "1"}, false},
		{"an ACK", byName, resourcev3.ListenerType, "1", nil, false},
	} {
		s := startControl(t, quick)
		s.publish(build(t, fmt.Sprintf("services: [{name: a, path: /a, upstreams: [%q]}]", c.upstream)))
		if got := s.startsWithNames(c.typeURL, c.nonce, c.has); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// A name server may take longer than anything else in a change.
func TestTheFirstRequestToANewServiceFindsItsUpstream(t *testing.T) {
	t.Parallel()
	found := make(chan struct{})
	opts := patient
	opts.Warmup = time.Millisecond
	opts.Lookup = func(ctx context.Context, host string) error {
		if host == "slow.test" {
			select {
			case <-found:
			case <-ctx.Done():
			}
		}
		return nil
	}
	n := startNamed(t, opts)
	n.names.Silence("slow.test")
	next := n.with([]string{"a", "b"}, "good", "good.test", "slow", "slow.test")
	n.publish(next)
	n.comes("/b")
	if code, _, err := n.get(envoytest.Client(t), "/slow"); err != nil || code != http.StatusNotFound {
		t.Fatalf("before its name is found: %d %v, want 404", code, err)
	}
	if s := n.progress(); s.Delivered == next.Version {
		t.Fatal("the change counts as applied without one of its services")
	}
	n.names.Resolve("slow.test", "127.0.0.1")
	envoytest.Eventually(t, "Envoy to know the host", func() bool { return n.envoy.Stat("cluster.service/slow.membership_total") == 1 })
	close(found)
	n.comes("/slow")
	n.delivered(next)
}

// The names of one service share a slot. If silent ones took more, the second service would have none.
func TestSilentNamesOfAServiceTakeNoSlotOfAnother(t *testing.T) {
	t.Parallel()
	found := make(chan struct{})
	opts := Config{Grace: time.Hour, Patience: time.Hour, LookupTimeout: time.Hour, Warmup: time.Millisecond}
	opts.Lookup = func(ctx context.Context, host string) error {
		if host == "good.test" {
			close(found)
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
	c := startControl(t, opts)
	c.connect("envoy", acceptAll)
	c.serves(withServices(t, "a"))
	var silent []string
	for i := range 2 * maxLookups {
		silent = append(silent, fmt.Sprintf("http://silent%d.test", i))
	}
	c.publish(build(t, `services:
  - {name: a, path: /a, upstreams: ["http://127.0.0.1:8080"]}
  - {name: b, path: /b, upstreams: [`+strings.Join(silent, ", ")+`]}
  - {name: c, path: /c, upstreams: [http://good.test]}
`))
	<-found
}

// A name that is never found is not waited for for ever.
func TestANameThatIsNotFoundEndsTheWait(t *testing.T) {
	t.Parallel()
	opts := patient
	opts.LookupTimeout = time.Millisecond
	n := startNamed(t, opts)
	n.names.Silence("silent.test")
	n.serves(n.with([]string{"a"}, "silent", "silent.test"))
	n.serves(n.with([]string{"a"}, "gone", "nxdomain.test"))
	client := envoytest.Client(t)
	if code, _, err := n.get(client, "/gone"); err != nil || code != http.StatusServiceUnavailable {
		t.Fatalf("the service whose upstream is not found: %d %v, want 503", code, err)
	}
}

// The routes of a service wait for its hosts, and for their checks, for no longer than Envoy does. By time they would
// wait for an hour here.
func TestRoutesFollowWhenEnvoyHasTheHosts(t *testing.T) {
	t.Parallel()
	var admin atomic.Pointer[string]
	var asked atomic.Int64
	opts := patient
	opts.Warmup = time.Hour
	opts.Ready = func(ctx context.Context) (map[string]bool, error) {
		defer asked.Add(1)
		hosts, err := envoyadmin.Hosts(ctx, *admin.Load())
		return envoyadmin.Ready(hosts), err
	}
	checked := func(upstream, timeout string) string {
		const service = "  - {name: checked, path: /checked, authenticate: false, timeout: %s, upstreams: [%q], " +
			"health_check: {path: /healthz, timeout: 10s, interval: 10s}}\n"
		return fmt.Sprintf(service, timeout, upstream)
	}
	l := startLiveWith(t, opts, func(listen, upstream string) *Snapshot { return build(t, openServices(listen, upstream, "", "a")) })
	address := l.envoy.AdminAddress()
	admin.Store(&address)
	healthy, pass := hold()
	t.Cleanup(pass)
	l.upstream.SetHandler(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			<-healthy
		}
	})
	first := l.open(checked(l.upstream.URL(), "7s"), "a")
	l.publish(first)
	envoytest.Eventually(t, "a check", func() bool { return l.envoy.Stat("cluster.service/checked.health_check.attempt") > 0 })
	before := asked.Load()
	client := envoytest.Client(t)
	envoytest.Eventually(t, "Envoy to be asked during the check", func() bool {
		code, _, err := l.get(client, "/checked")
		return asked.Load() >= before+3 || err != nil || code != http.StatusNotFound
	})
	if code, _, err := l.get(client, "/checked"); err != nil || code != http.StatusNotFound {
		t.Errorf("before the check is over: %d %v, want 404", code, err)
	}
	pass()
	l.delivered(first)
	sent := l.underLoad(t, http.StatusOK, []string{"/checked"}, func() {
		for _, timeout := range []string{"8s", "9s"} {
			l.serves(l.open(checked(l.upstream.URL(), timeout), "a"))
		}
	})
	t.Logf("%d requests", sent)
}

// One upstream that fails its first check does not make the routes wait for as long as a check may take.
func TestRoutesDoNotWaitForAnUpstreamThatFailsItsCheck(t *testing.T) {
	t.Parallel()
	var admin atomic.Pointer[string]
	opts := patient
	opts.Warmup = time.Hour
	opts.Ready = func(ctx context.Context) (map[string]bool, error) {
		hosts, err := envoyadmin.Hosts(ctx, *admin.Load())
		return envoyadmin.Ready(hosts), err
	}
	l := startLiveWith(t, opts, func(listen, upstream string) *Snapshot { return build(t, openServices(listen, upstream, "", "a")) })
	address := l.envoy.AdminAddress()
	admin.Store(&address)
	const service = "  - {name: half, path: /half, authenticate: false, upstreams: [%q, %q], health_check: {path: /healthz, interval: 1h}}\n"
	l.serves(l.open(fmt.Sprintf(service, "http://"+envoytest.Addr(t), l.upstream.URL()), "a"))
	if code, _, err := l.get(envoytest.Client(t), "/half"); err != nil || code != http.StatusOK {
		t.Errorf("the first request: %d %v, want 200", code, err)
	}
}

// Envoys that are not asked, because there are several, or whose hosts are not ready, get the time that they may take.
func TestRoutesFollowAfterATimeToo(t *testing.T) {
	t.Parallel()
	for _, envoys := range []int{1, 2} {
		var asked atomic.Int64
		opts := quick
		opts.Ready = func(context.Context) (map[string]bool, error) {
			asked.Add(1)
			return nil, errors.New("no admin interface")
		}
		c := startControl(t, opts)
		for i := range envoys {
			c.connect(fmt.Sprint("envoy", i), acceptAll)
		}
		first := withServices(t, "a")
		c.serves(first)
		c.eventually("all Envoys have the first version", func(now progress) bool {
			return len(now.Envoys) == envoys && !slices.ContainsFunc(now.Envoys, func(e envoyProgress) bool { return e.Acked != first.Version })
		})
		c.serves(build(t, `services: [{name: a, path: /a, upstreams: ["http://good.test"]}]`))
		if n := asked.Load(); (n > 0) != (envoys == 1) {
			t.Errorf("%d Envoys: %d questions", envoys, n)
		}
	}
}

// If Envoy does not answer for its hosts, the cluster for which it was asked delays no other one.
func TestNoAnswerOfEnvoyDelaysAnotherCluster(t *testing.T) {
	t.Parallel()
	held, release := hold()
	asked := make(chan struct{})
	ask := sync.OnceFunc(func() { close(asked) })
	opts := quick
	opts.LookupTimeout = time.Hour
	opts.Ready = func(context.Context) (map[string]bool, error) {
		ask()
		<-held
		return nil, nil
	}
	opts.Lookup = func(_ context.Context, host string) error {
		if host == "second.test" {
			<-asked
		}
		return nil
	}
	c := startControl(t, opts)
	t.Cleanup(release)
	e := c.connect("envoy", acceptAll)
	c.servesAll(withServices(t, "a"))
	e.transcript()
	c.publish(build(t, `services:
  - {name: a, path: /a, upstreams: ["http://127.0.0.1:8080"]}
  - {name: first, path: /first, upstreams: ["http://first.test"]}
  - {name: second, path: /second, upstreams: ["http://second.test"]}
`))
	routes := ""
	envoytest.Eventually(t, "the routes to the second cluster", func() bool {
		routes += e.transcript()
		return strings.Contains(routes, "+/second")
	})
	if strings.Contains(routes, "+/first") {
		t.Errorf("the routes to the first cluster came before Envoy has answered:\n%s", routes)
	}
}

// A change of upstreams loses no request: neither those that come while the new names are looked up, nor one that is
// under way when the old cluster is removed.
func TestAChangeOfUpstreamNamesLosesNoRequest(t *testing.T) {
	t.Parallel()
	n := startNamed(t, patient)
	held, release := hold()
	reached := make(chan struct{}, 1)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached <- struct{}{}
		<-held
		_, _ = io.WriteString(w, "late")
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(release)
	n.names.Resolve("other.test", "127.0.0.1")
	before := n.open(byName(n.upstream.URL(), "good", "good.test")+byName(slow.URL, "slow", "good.test"), "a")
	n.serves(before)

	late := make(chan string, 1)
	go func() {
		code, body, err := n.get(envoytest.Client(t), "/slow")
		late <- fmt.Sprint(code, body, err)
	}()
	<-reached
	n.underLoad(t, http.StatusOK, []string{"/good"}, func() {
		n.serves(n.open(byName(n.upstream.URL(), "good", "other.test")+byName(slow.URL, "slow", "other.test"), "a"))
		n.eventually("the old clusters to be removed", func(progress) bool { return n.envoy.Stat("cluster_manager.cluster_removed") >= 2 })
	})
	release()
	if got := <-late; got != "200late<nil>" {
		t.Errorf("the request under way: %s", got)
	}
}
