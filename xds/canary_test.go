package xds

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatepost/envoy/envoytest"
	"gatepost/testrun"
)

// says starts an upstream that answers its name.
func says(t *testing.T, name string) *envoytest.Recorder {
	up := envoytest.Upstream(t)
	up.SetHandler(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("x-by", name) })
	return up
}

// by returns who answers a request.
func by(t *testing.T, client *http.Client, url string, headers ...string) string {
	t.Helper()
	got, err := envoytest.Send(t.Context(), client, http.MethodGet, url, "", headers...)
	if err != nil || got.Status != http.StatusOK {
		t.Errorf("%s: %d %v", url, got.Status, err)
	}
	return got.Header.Get("x-by")
}

// from returns a client with an address of its own: 127.0.1.n.
func from(t *testing.T, n int) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(n))}}
	transport := &http.Transport{DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: envoytest.Deadline}
}

// TestACanaryGetsItsPart: a user, or an address on a public service, comes to the same version every time, through
// every gateway, and only moves to the canary as its part grows. No header of a client changes that.
func TestACanaryGetsItsPart(t *testing.T) {
	long(t)
	testrun.Plain(t)
	t.Parallel()
	envoytest.Require(t)
	stable, canary := says(t, "stable"), says(t, "canary")
	c := startChecker(t)
	c.answers(func(request *authv3.AttributeContext) *authv3.CheckResponse {
		allowed := allow(request)
		user := setHeader("x-user-id", request.GetRequest().GetHttp().GetHeaders()["authorization"])
		allowed.GetOkResponse().Headers = []*corev3.HeaderValueOption{user}
		return allowed
	})
	addr, second := envoytest.Addr(t), envoytest.Addr(t)
	var text strings.Builder
	fmt.Fprint(&text, "services:\n")
	service := func(name, more string, percent int) {
		fmt.Fprintf(&text, "  - {name: %s, path: /%[1]s, upstreams: [%q], canary: {upstreams: [%q], percent: %d%s}\n", name, stable.URL(), canary.URL(), percent, more)
	}
	percents := []int{0, 10, 40, 80, 100}
	for _, p := range percents {
		service(fmt.Sprintf("user%d", p), "}", p)
		service(fmt.Sprintf("public%d", p), "}, authenticate: false", p)
	}
	service("request", ", by: request}, authenticate: false", 50)
	for _, listen := range []string{addr, second} {
		snapshot := build(t, fmt.Sprintf("listen: %q\n%s", listen, text.String()))
		envoytest.Start(t, envoytest.Options{GRPC: c.addr, Resources: messages(snapshot), Listen: []string{listen}})
	}
	client := envoytest.Client(t)

	const callers = 60
	var addresses []*http.Client
	for n := range callers {
		addresses = append(addresses, from(t, n+1))
	}
	for kind, ask := range map[string]func(n int, url string, headers ...string) string{
		"user": func(n int, url string, headers ...string) string {
			return by(t, client, url, append(headers, "authorization: user-"+strconv.Itoa(n))...)
		},
		"public": func(n int, url string, headers ...string) string { return by(t, addresses[n], url, headers...) },
	} {
		counts := map[int]int{}
		for n := range callers {
			before := "stable"
			for _, p := range percents {
				path := fmt.Sprintf("/%s%d", kind, p)
				got := ask(n, "http://"+addr+path)
				if again := ask(n, "http://"+second+path+"/other", "x-user-id: mallory-"+strconv.Itoa(n)); again != got {
					t.Errorf("%s %d at %d %%: %s, then %s", kind, n, p, got, again)
				}
				if before == "canary" && got != "canary" {
					t.Errorf("%s %d: at %d %% it is back at %s", kind, n, p, got)
				}
				before = got
				if got == "canary" {
					counts[p]++
				}
			}
		}
		t.Logf("of %d by %s: %v", callers, kind, counts)
		if counts[0] != 0 || counts[100] != callers || counts[10] == 0 || counts[40] <= counts[10] || counts[80] <= counts[40] || counts[80] == callers {
			t.Errorf("by %s: %v of %d", kind, counts, callers)
		}
	}
	got := map[string]int{}
	for range 100 {
		got[by(t, client, "http://"+addr+"/request")]++
	}
	if got["stable"] < 20 || got["canary"] < 20 { // less has a probability of 1 in a thousand millions
		t.Errorf("by request: %v", got)
	}
}

// TestAProxysClientsAreApart: on a public service the address is the one that a trusted proxy names, for a canary and
// for affinity. What a stranger names changes nothing.
func TestAProxysClientsAreApart(t *testing.T) {
	t.Parallel()
	g := startGateway(t, "listen: LISTEN\n"+proxies+"}\n"+fmt.Sprintf(`services:
  - {name: canary, path: /canary, authenticate: false, upstreams: ["PUBLIC"], canary: {upstreams: [%q], percent: 50}}
  - {name: affine, path: /affine, authenticate: false, upstreams: ["PUBLIC", %[1]q], affinity: address}
`, says(t, "other").URL()))
	for _, path := range []string{"/canary", "/affine"} {
		for source, want := range map[string]int{proxy: 2, stranger: 1} {
			reached := map[string]bool{}
			for n := range 40 {
				named := fmt.Sprintf("x-forwarded-for: 192.0.2.%d", n)
				first, again := g.from(source, "", "GET", path, named), g.from(source, "", "GET", path+"/again", named)
				if first.Status != 200 || first.Header.Get("x-by") != again.Header.Get("x-by") {
					t.Errorf("%s, client %d: %d by %q, then by %q", path, n, first.Status, first.Header.Get("x-by"), again.Header.Get("x-by"))
				}
				reached[first.Header.Get("x-by")] = true
			}
			if len(reached) != want {
				t.Errorf("%s, from %s: %d upstreams are reached, want %d", path, source, len(reached), want)
			}
		}
	}
}

// TestAffinityKeepsAClientAtAnUpstream: each kind of key, with another upstream for some other key.
func TestAffinityKeepsAClientAtAnUpstream(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	envoytest.Require(t)
	c := startChecker(t)
	c.answers(func(request *authv3.AttributeContext) *authv3.CheckResponse {
		allowed := allow(request)
		allowed.GetOkResponse().Headers = []*corev3.HeaderValueOption{setHeader("x-user-id", request.GetRequest().GetHttp().GetHeaders()["authorization"])}
		return allowed
	})
	addr := envoytest.Addr(t)
	var ups []string
	for i := range 4 {
		ups = append(ups, strconv.Quote(says(t, strconv.Itoa(i)).URL()))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "listen: %q\nservices:\n", addr)
	for name, more := range map[string]string{
		"cookie": "affinity: cookie, authenticate: false", "address": "affinity: address, authenticate: false", "user": "affinity: user",
		"header": "affinity: {header: X-Tenant}, authenticate: false",
	} {
		fmt.Fprintf(&text, "  - {name: %s, path: /%[1]s, upstreams: [%s], %s}\n", name, strings.Join(ups, ", "), more)
	}
	envoytest.Start(t, envoytest.Options{GRPC: c.addr, Resources: messages(build(t, text.String())), Listen: []string{addr}})
	client := envoytest.Client(t)
	for kind, ask := range map[string]func(n int, url string) string{
		"address": func(n int, url string) string { return by(t, from(t, n+1), url, "x-user-id: "+url) },
		"user": func(n int, url string) string {
			return by(t, client, url, "authorization: user-"+strconv.Itoa(n), "x-user-id: "+url)
		},
		"header": func(n int, url string) string { return by(t, client, url, "x-tenant: "+strconv.Itoa(n)) },
		"cookie": func(n int, url string) string {
			return by(t, client, url, fmt.Sprintf(`cookie: gatepost-cookie="key%d"`, n))
		},
	} {
		reached := map[string]bool{}
		for n := range 30 {
			first := ask(n, "http://"+addr+"/"+kind)
			reached[first] = true
			for _, path := range []string{"/", "/a", "/b/c"} {
				if got := ask(n, "http://"+addr+"/"+kind+path); got != first {
					t.Errorf("by %s, client %d: %s, then %s", kind, n, first, got)
				}
			}
		}
		if len(reached) < 2 {
			t.Errorf("by %s: all clients come to one upstream", kind)
		}
	}
	got, err := envoytest.Send(t.Context(), client, http.MethodGet, "http://"+addr+"/cookie", "")
	cookie := got.Header.Get("Set-Cookie")
	if err != nil || !strings.HasPrefix(cookie, "gatepost-cookie=") || !strings.Contains(cookie, "Path=/cookie") || !strings.Contains(cookie, "HttpOnly") {
		t.Errorf("the cookie of a first request: %q, %v", cookie, err)
	}
}

// TestChangesOfUpstreamsUnderLoadFailNoRequest: the part of the canary, the upstreams, and the health check change.
func TestChangesOfUpstreamsUnderLoadFailNoRequest(t *testing.T) {
	long(t)
	t.Parallel()
	opts := quick
	opts.Lookup = func(context.Context, string) error { return nil }
	ups := []string{says(t, "0").URL(), says(t, "1").URL(), says(t, "2").URL(), says(t, "canary").URL()}
	definitions := func(listen string, i int) *Snapshot {
		more := []string{
			fmt.Sprintf("canary: {upstreams: [%q], percent: %d, by: request}", ups[3], i*7%101),
			"health_check: {path: /healthz, timeout: 1s}, limits: {connections: " + strconv.Itoa(100+i) + "}",
			"affinity: address, retries: " + strconv.Itoa(i%3),
			fmt.Sprintf("canary: {upstreams: [%q], percent: %d}, health_check: {path: /healthz, timeout: 1s}", ups[3], i*7%101),
		}[i%4]
		return build(t, fmt.Sprintf("listen: %q\nservices:\n  - {name: a, path: /a, authenticate: false, upstreams: [%q, %q], %s}\n", listen, ups[i%3], ups[(i+1)%3], more))
	}
	l := startLiveWith(t, opts, func(listen, _ string) *Snapshot { return definitions(listen, 0) })
	sent := l.underLoad(t, http.StatusOK, []string{"/a/x", "/a/x"}, func() {
		for i := range 24 {
			l.serves(definitions(l.addr, i))
		}
	})
	t.Logf("%d requests", sent)
}
