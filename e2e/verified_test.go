package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

// beacon returns the version with which the gateway responds to a client.
func (g *gateway) beacon(headers ...string) string {
	g.t.Helper()
	got := g.Do("GET", definitions.VersionPath, "", headers...)
	var version string
	if err := json.Unmarshal([]byte(got.Body), &version); err != nil || got.Status != http.StatusOK {
		g.t.Fatalf("%s returned %d %s", definitions.VersionPath, got.Status, got.Body)
	}
	return version
}

// kept returns the content of the last good definitions.
func (g *gateway) kept() string {
	text, err := os.ReadFile(filepath.Join(g.Data, "definitions.last-good.yaml"))
	if err != nil {
		return ""
	}
	return string(text)
}

func TestAppliedMeansVerified(t *testing.T) {
	t.Parallel()
	const everywhere = "listen: 0.0.0.0:PORT\n"
	for name, c := range map[string]struct {
		definitions string
		over        func(*testing.T) (string, string)
	}{
		"over sockets":                 {"listen: 127.0.0.1:PORT\n", overSockets},
		"over sockets, on all":         {everywhere, overSockets},
		"over sockets, on all of IPv6": {"listen: \"[::]:PORT\"\n", overSockets},
		"over TCP":                     {"listen: 127.0.0.1:PORT\n", overTCP},
		"over TCP, on all":             {everywhere, overTCP},
		"with origins":                 {"listen: 127.0.0.1:PORT\norigins: [\"https://app.example\"]\n", overTCP},
	} {
		t.Run(name, func(t *testing.T) {
			if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
				l.Close()
			} else if strings.Contains(c.definitions, "[::]") {
				t.Skip("this machine has no IPv6: turn it on (sysctl net.ipv6.conf.all.disable_ipv6=0)")
			}
			_, port, _ := net.SplitHostPort(envoytest.Addr(t))
			text := strings.ReplaceAll(c.definitions, "PORT", port)
			g := prepareServed(t, "services: []\n", setup{}, c.over)
			g.Addr, g.URL = "127.0.0.1:"+port, "http://127.0.0.1:"+port
			g.DefineExactly(text + "services: []\n")
			g.Run()
			g.StartEnvoy(envoytest.Options{})
			g.AwaitReady()
			envoytest.Eventually(t, "the definitions to be verified", g.Settled)

			first := g.beacon(page)
			g.DefineExactly(text + "services:\n  - {name: a, path: /a, upstreams: [\"http://127.0.0.1:1\"]}\n")
			second := g.AwaitChange(first)
			status := g.Status()
			if one := status.GetEnvoys()[0]; g.beacon(page) != second || one.GetServing() != second || one.GetDoubt() != "" {
				t.Errorf("version %s is reported as verified, but %s is served; status %v", second, g.beacon(page), status)
			}
			envoytest.Eventually(t, "the verified definitions to be kept", func() bool { return strings.Contains(g.kept(), "name: a") })
			g.Logged(1, `"msg":"applied"`, second, `"answered":true`, `"seconds":`)
			if n := g.Metric("gatepost_definitions_apply_duration_seconds_count"); n != 1 {
				t.Errorf("the metric counts %v changes, want 1", n)
			}
			out, code := gatepost(t, os.Environ(), "status", "--admin", g.Admin)
			if row := lines(out, "gatepost-envoy", second, "yes"); code != 0 || len(row) != 1 {
				t.Errorf("gatepost status prints:\n%s", out)
			}
		})
	}
}

// acknowledging is an Envoy that acknowledges every update and serves nothing.
func acknowledging(t *testing.T, addr, node string) {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	must(t, err)
	for _, ask := range []*discoveryv3.DeltaDiscoveryRequest{
		{TypeUrl: resourcev3.ClusterType, Node: &corev3.Node{Id: node}},
		{TypeUrl: resourcev3.ListenerType},
		{TypeUrl: resourcev3.ScopedRouteType},
	} {
		must(t, stream.Send(ask))
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			sent, err := stream.Recv()
			if err != nil {
				return
			}
			ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: sent.GetTypeUrl(), ResponseNonce: sent.GetNonce()}
			if stream.Send(ack) != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		conn.Close()
	})
}

// Every client of --grpc can acknowledge. Over TCP nothing else shows that an Envoy serves
// anything.
func TestAcknowledgementWithoutAnEnvoyIsNotReady(t *testing.T) {
	t.Parallel()
	g := prepareServed(t, "services: []\n", setup{}, overTCP)
	g.Run()
	envoytest.Eventually(t, "gatepost to listen", func() bool { return envoytest.Accepts(g.GRPC) })
	acknowledging(t, g.GRPC, "stranger")
	envoytest.Eventually(t, "the report that the stranger cannot be verified", func() bool {
		return len(lines(g.Log(), `"level":"WARN"`, "cannot be asked", "stranger", "does not count")) == 1
	})
	out, code := gatepost(t, os.Environ(), "health", "--admin", g.Admin)
	if code != 1 || len(lines(out, `"envoy"`, "Envoy stranger has acknowledged", "connection refused")) == 0 {
		t.Errorf("gatepost health exits %d and prints:\n%s", code, out)
	}
	if text := g.kept(); text != "" || len(lines(g.Log(), `"msg":"applied"`)) != 0 {
		t.Errorf("the definitions count as applied; kept are %q", text)
	}

	g.StartEnvoy(envoytest.Options{})
	g.AwaitReady()
	envoytest.Eventually(t, "the definitions to be verified", func() bool { return g.kept() != "" })
}

func TestEnvoyThatCannotBeVerifiedIsOnlyAcknowledged(t *testing.T) {
	t.Parallel()
	g := prepareServed(t, "services: []\n", setup{}, overSockets)
	g.Run()
	envoytest.Eventually(t, "gatepost to listen", func() bool {
		conn, err := net.Dial("unix", strings.TrimPrefix(g.GRPC, "unix:"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	acknowledging(t, g.GRPC, "behind-a-wall")
	g.AwaitReady()
	if text := g.kept(); text != "" {
		t.Errorf("definitions were saved as verified before the verification: %s", text)
	}
	envoytest.Eventually(t, "the report that the Envoy cannot be verified", func() bool {
		return len(lines(g.Log(), `"level":"WARN"`, "cannot be asked", "behind-a-wall")) == 1
	})
	one := g.Status().GetEnvoys()[0]
	if one.GetAcked() == "" || one.GetProven() || one.GetServing() != "" || !strings.Contains(one.GetDoubt(), "connection refused") {
		t.Errorf("the status of it is %v", one)
	}
	envoytest.Eventually(t, "the definitions to be kept all the same", func() bool { return g.kept() != "" })
	version := g.Status().GetVersion()
	g.Define("services:\n  - {name: a, path: /a, upstreams: [\"http://127.0.0.1:1\"]}\n")
	envoytest.Eventually(t, "the next change to be applied", func() bool {
		now := g.Status().GetVersion()
		return now != version && len(lines(g.Log(), `"msg":"applied"`, now, `"answered":false`)) == 1
	})
	out, _ := gatepost(t, os.Environ(), "status", "--admin", g.Admin)
	if row := lines(out, "behind-a-wall", "no: ", "connection refused"); len(row) != 1 {
		t.Errorf("gatepost status prints:\n%s", out)
	}
}

// occupied returns an address that another process uses, so that Envoy cannot listen there until
// giveUp is called.
func occupied(t *testing.T) (addr string, giveUp func()) {
	t.Helper()
	addr = envoytest.Addr(t)
	l, err := net.Listen("tcp", addr)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return addr, func() { l.Close() }
}

// rejectedOnce waits until a rejection of a resource type is reported. It must be once in the log
// and in the metric, with Envoy's message, and in the status as long as the file is unchanged. The
// previous version must still be served.
func (g *gateway) rejectedOnce(t *testing.T, kind, words, before string) {
	t.Helper()
	envoytest.Eventually(t, "the rejection to be reported", func() bool {
		return strings.Contains(g.Status().GetRejected(), words)
	})
	envoytest.Eventually(t, "the previous version to be served again", func() bool {
		return g.Settled() && g.Status().GetVersion() == before
	})
	if n, of := g.Metric("gatepost_xds_nacks_total"), g.Metric(`gatepost_xds_nacks_total{type="`+kind+`"}`); n != 1 || of != 1 {
		t.Errorf("the metric counts %v rejections, %v of them of a %s, want 1", n, of, kind)
	}
	g.Logged(1, `"level":"ERROR"`, "has rejected the configuration", words, `"type":"`+kind+`"`, withEvent(convention.EventDefinitionsRejected))
	if now := g.beacon(); now != before {
		t.Errorf("version %s is served, want still %s", now, before)
	}
	out, _ := gatepost(t, os.Environ(), "status", "--admin", g.Admin)
	if len(lines(out, "rejected", words)) != 1 {
		t.Errorf("gatepost status prints:\n%s", out)
	}
}

func TestEnvoyRejectsAListener(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{})
	token := shop.Login("alice")
	envoytest.Eventually(t, "the definitions to be verified", shop.Settled)
	before := shop.Status().GetVersion()
	addr, giveUp := occupied(t)
	moved := "listen: " + addr + "\n" + strings.Replace(shop.definitions(), "lifetime: 3600s", "lifetime: 60s", 1)
	shop.DefineExactly(moved)
	shop.rejectedOnce(t, "listener", "Address already in use", before)
	well(t, shop, token)
	envoytest.Eventually(t, "the settings of the token handler to go back too", func() bool {
		return shop.Do("POST", "/token", `{"username":"alice","password":"right"}`).Header.Get("expires_in") == "3600"
	})
	if strings.Contains(shop.kept(), addr) {
		t.Error("what Envoy has rejected is kept for the next start")
	}

	// On SIGHUP, Envoy gets another try, once.
	shop.Signal(syscall.SIGHUP)
	envoytest.Eventually(t, "a second rejection", func() bool { return shop.Metric("gatepost_xds_nacks_total") == 2 })
	envoytest.Eventually(t, "the previous version to be served", func() bool { return shop.Settled() && shop.Status().GetVersion() == before })
	well(t, shop, token)

	// A valid change is served at once. When the rejected one is defined again, it is refused
	// without sending it to Envoy.
	shop.Define(shop.definitions(fmt.Sprintf(`  - {name: more, path: /more, authenticate: false, upstreams: ["%s"]}`, shop.items.URL())))
	better := shop.AwaitChange(before)
	want(t, "the next change", shop.Do("GET", "/more", ""), http.StatusOK, "")
	if got := shop.Status().GetRejected(); got != "" {
		t.Errorf("the status is still rejected: %s", got)
	}
	shop.DefineExactly(moved)
	envoytest.Eventually(t, "the rejected file to be refused", func() bool {
		return strings.Contains(shop.Status().GetRejected(), "Address already in use")
	})
	if n := shop.Metric("gatepost_xds_nacks_total"); n != 2 || shop.beacon() != better {
		t.Errorf("%v rejections, want 2; version %s, want %s", n, shop.beacon(), better)
	}

	// The port is free now, and the operator requests another try.
	giveUp()
	shop.Signal(syscall.SIGHUP)
	shop.URL = "http://" + addr
	shop.Await("the new address", http.StatusOK, "GET", "/orders", "", "Authorization: "+token)
	envoytest.Eventually(t, "it to be verified", func() bool { return shop.Settled() && shop.Status().GetRejected() == "" })
}

func TestEnvoyRejectsACluster(t *testing.T) {
	t.Parallel()
	shop := startShop(t, setup{Args: []string{"--ca-file", "/does/not/exist.crt"}})
	token := shop.Login("alice")
	envoytest.Eventually(t, "the definitions to be verified", shop.Settled)
	shop.Define(shop.definitions(
		`  - {name: tls, path: /tls, authenticate: false, upstreams: ["https://a.example"]}`,
		fmt.Sprintf(`  - {name: fine, path: /fine, authenticate: false, upstreams: ["%s"]}`, shop.items.URL())))
	// Envoy's message names the rejected service, so the other services of the file are served.
	shop.Await("a good service of the rejected file", http.StatusOK, "GET", "/fine", "")
	well(t, shop, token)
	want(t, "the service that Envoy refuses", shop.Do("GET", "/tls", ""), http.StatusServiceUnavailable, "")
	if told := shop.Status().GetRejected(); !strings.Contains(told, "tls") || !strings.Contains(told, "/does/not/exist.crt") {
		t.Errorf("the status does not report the rejected service and the reason: %s", told)
	}

	shop.Define(shop.definitions(fmt.Sprintf(`  - {name: fine, path: /fine, authenticate: false, upstreams: ["%s"]}`, shop.items.URL())))
	envoytest.Eventually(t, "the next good file", func() bool {
		return shop.Settled() && shop.Status().GetRejected() == "" && shop.Do("GET", "/tls", "").Status == http.StatusNotFound
	})
	if n := shop.Metric("gatepost_xds_nacks_total"); n != 1 {
		t.Errorf("the metric counts %v rejections, want 1 still", n)
	}
}

// TestEnvoyRejectsTheFirst: there is no previous version. The gateway reports that it is not ready
// and why, and serves as soon as the cause is fixed.
func TestEnvoyRejectsTheFirst(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]func(shop *shop){
		"SIGHUP":                    func(shop *shop) { shop.Signal(syscall.SIGHUP) },
		"a change of another thing": func(shop *shop) { shop.Define(shop.definitions("cors: {max_age: 60s}")) },
		"a restart of Envoy": func(shop *shop) {
			pids := envoyPIDs(t, shop.gateway)
			must(t, syscall.Kill(pids[len(pids)-1], syscall.SIGKILL))
		},
	} {
		t.Run(name, func(t *testing.T) {
			shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
			shop.gateway = prepare(t, shop.definitions(), setup{})
			addr, giveUp := occupied(t)
			shop.Addr, shop.URL = addr, "http://"+addr
			shop.Define(shop.definitions())
			shop.Run()
			envoytest.Eventually(t, "the rejection to be reported", func() bool {
				status, err := shop.tryStatus()
				return err == nil && strings.Contains(status.GetRejected(), "Address already in use")
			})
			notReady(t, shop.gateway)
			if shop.kept() != "" {
				t.Error("what Envoy has rejected is kept for the next start")
			}
			giveUp()
			then(shop)
			shop.AwaitReady()
			well(t, shop, shop.Login("alice"))
			envoytest.Eventually(t, "it to be verified", func() bool { return shop.Settled() && shop.Status().GetRejected() == "" })
			if n := shop.Metric("gatepost_xds_nacks_total"); n != 1 {
				t.Errorf("the metric counts %v rejections, want 1", n)
			}
		})
	}
}

// TestEnvoyRestartsInTheMiddle kills Envoy during changes. It always comes back with the newest
// version.
func TestEnvoyRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	c := &changing{users: users(t), upstream: [3]*envoytest.Recorder{named(t, "a"), named(t, "b"), named(t, "c")}}
	g := serve(t, c.definitions(0), setup{Program: racing(t)})
	auth := "Authorization: " + g.Login("alice")
	envoytest.Eventually(t, "the definitions to be verified", g.Settled)
	version := g.Status().GetVersion()
	for step, after := range []time.Duration{0, 150 * time.Millisecond, 200 * time.Millisecond, 220 * time.Millisecond, 250 * time.Millisecond} {
		g.Define(c.definitions(step + 1))
		time.Sleep(after) // varies the point of the kill; nothing depends on it
		g.Envoy.Kill()
		version = g.AwaitChange(version)
		g.Await("the newest definitions", http.StatusOK, "GET", "/moved", "", auth)
		if got := g.Do("GET", "/moved", "", auth); got.Body != []string{"a", "b", "c"}[(step+1)%3] {
			t.Errorf("step %d: %d %s", step+1, got.Status, got.Body)
		}
	}
}

// TestGatepostRestartsInTheMiddle restarts gatepost during changes. Clients of public services
// notice nothing.
func TestGatepostRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	c := &changing{users: users(t), upstream: [3]*envoytest.Recorder{named(t, "a"), named(t, "b"), named(t, "c")}}
	g := serve(t, c.definitions(0), setup{Program: racing(t)})
	auth := "Authorization: " + g.Login("alice")
	envoytest.Eventually(t, "the definitions to be verified", g.Settled)
	l := startLoad(t, g.URL, 12, []call{
		{"/renamed", nil, from("b")},
		{"/methods", nil, from("c")},
		{"/based/x", nil, from("a", "b", "c")},
		{"/named", nil, from("a", "b")},
		{"/guest/1", nil, orNotFound(from("a", "b", "c"))},
	})
	version := g.Status().GetVersion()
	for step, after := range []time.Duration{0, 150 * time.Millisecond, 210 * time.Millisecond, 230 * time.Millisecond, 300 * time.Millisecond} {
		g.Define(c.definitions(step + 1))
		time.Sleep(after) // varies the point of the restart; nothing depends on it
		g.Kill()
		g.Run()
		version = g.AwaitChange(version)
		got := g.Await("the newest definitions", http.StatusOK, "GET", "/moved", "", auth)
		if got.Body != []string{"a", "b", "c"}[(step+1)%3] {
			t.Errorf("step %d: %d %s", step+1, got.Status, got.Body)
		}
	}
	l.End()
}

// TestSeveralEnvoysOfOneGatepost: a change is verified when all Envoys have it, whatever their names
// are. (They share an address, as Envoys on one machine can; the kernel distributes the
// connections.)
func TestSeveralEnvoysOfOneGatepost(t *testing.T) {
	t.Parallel()
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	g := prepareServed(t, shop.definitions(), setup{}, overTCP)
	shop.gateway = g.gateway
	g.Run()
	one := g.StartEnvoy(envoytest.Options{NodeID: "nobody-has-heard-of-me"})
	two := g.StartEnvoy(envoytest.Options{NodeID: "nor-of-me"})
	both := func() bool {
		status := g.Status().GetEnvoys()
		return len(status) == 2 && status[0].GetNode() == "nobody-has-heard-of-me" && status[1].GetNode() == "nor-of-me" && g.Settled()
	}
	envoytest.Eventually(t, "both to be verified", both)
	token := shop.Login("alice")
	version := g.Status().GetVersion()
	g.Define(shop.definitions(fmt.Sprintf(`  - {name: more, path: /more, authenticate: false, upstreams: ["%s"]}`, shop.items.URL())))
	version = g.AwaitChange(version)
	envoytest.Eventually(t, "both to be verified", both)

	one.Kill()
	g.Define(shop.definitions(fmt.Sprintf(`  - {name: less, path: /less, authenticate: false, upstreams: ["%s"]}`, shop.items.URL())))
	g.AwaitChange(version)
	envoytest.Eventually(t, "the killed one to be verified too", both)
	two.Stop()
	well(t, shop, token)
	want(t, "the newest service", shop.Do("GET", "/less", ""), http.StatusOK, "")
	want(t, "the one before", shop.Do("GET", "/more", ""), http.StatusNotFound, notFound)
}

// TestTwoGatewaysOnOneRedis: two gateways have their own Envoy and definitions. A token is valid on
// both, and a revoke on one is effective on both. If one stops, the other is not affected.
func TestTwoGatewaysOnOneRedis(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	first, here := serveShop(t, setup{Redis: redis.URL()})
	second, there := serveShop(t, setup{Redis: redis.URL()})
	for range 20 {
		token := here.Login("alice")
		auth := "Authorization: " + token
		for _, shop := range []*shop{here, there} {
			want(t, "the token", shop.Do("GET", "/orders", "", auth), http.StatusOK, "")
		}
		want(t, "a revoke", there.Do("POST", "/token/revoke", "", auth), http.StatusOK, "")
		for _, shop := range []*shop{here, there} {
			want(t, "the revoked token", shop.Do("GET", "/orders", "", auth), http.StatusUnauthorized, notAllowed)
		}
	}
	token := here.Login("alice")
	auth := "Authorization: " + token
	version := second.Status().GetVersion()
	second.Define(there.definitions(fmt.Sprintf(`  - {name: more, path: /more, upstreams: ["%s"]}`, there.items.URL())))
	second.AwaitChange(version)
	want(t, "a service of the second", there.Do("GET", "/more", "", auth), http.StatusOK, "")
	want(t, "the same path on the first", here.Do("GET", "/more", "", auth), http.StatusNotFound, notFound)

	first.Kill()
	well(t, there, token)
	// The stopped gateway cannot confirm the invalidation, so its tracking lease must expire.
	want(t, "a revoke", there.Do("POST", "/token/revoke", "", auth), http.StatusOK, "")
	first.Run()
	envoytest.Eventually(t, "the first to be back", first.Settled)
	for _, shop := range []*shop{here, there} {
		want(t, "the revoked token", shop.Do("GET", "/orders", "", auth), http.StatusUnauthorized, notAllowed)
	}
	redis.Kill()
	away(t, here, token)
	away(t, there, token)
	redis.Restart()
	fresh := there.Await("a login", http.StatusOK, "POST", "/token", `{"username":"alice","password":"right"}`).Header.Get("token")
	well(t, here, fresh)
	well(t, there, fresh)
}
