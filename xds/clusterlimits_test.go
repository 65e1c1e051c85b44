package xds

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"gatepost/definitions"
	"gatepost/envoy/envoytest"
	"gatepost/ratelimit"
	"gatepost/redisconn"
	"gatepost/testrun"
	"gatepost/tokens/redistest"
)

// The times are so long that no request is forgotten while a test runs. The services of the outage have limits that
// no request reaches.
const clusterLimited = `
listen: LISTEN
rate_limit_headers: true
` + proxies + `}
services:
  - {name: all, path: /All, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 5, per: 24h, by: service, scope: cluster}]}
  - {name: beside, path: /all/beside, authenticate: false, upstreams: ["PUBLIC"]}
  - {name: address, path: /address, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 2, per: 24h, by: address, scope: cluster}]}
  - {name: burst, path: /burst, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1, per: 24h, burst: 4, by: address, scope: cluster}]}
  - {name: user, path: /user, upstreams: ["SECURED"], rate_limits: [{requests: 3, per: 24h, by: user, scope: cluster}, {requests: 7, per: 24h, by: address, scope: cluster}]}
  - {name: key, path: /key, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1, per: 24h, header: X-Key, scope: cluster}]}
  - {name: calls, path: /calls.Calls, authenticate: false, upstreams: ["h2c://127.0.0.1:9"], grpc: true, rate_limits: [{requests: 1, per: 24h, by: service, scope: cluster}]}
  - {name: both, path: /both, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 3, per: 24h, by: service}, {requests: 4, per: 24h, by: service, scope: cluster}]}
  - {name: open, path: /open, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1000000, by: address, scope: cluster, without_redis: allow}]}
  - {name: closed, path: /closed, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1000000, by: address, scope: cluster, without_redis: refuse}]}
`

// cluster are gateways on one Redis. To it they take turns.
type cluster []*gateway

// startCluster starts gateways. They wait for Redis, and their Envoys for them, as long as the machine needs: a request
// that is not counted in time is allowed.
func startCluster(t *testing.T, server *redistest.Server, text string, n int) (all cluster) {
	t.Helper()
	with := testOptions
	with.ClusterLimits, with.ClusterTimeout = true, envoytest.Deadline
	for range n {
		options, err := redisconn.ParseURL(server.URL())
		if err != nil {
			t.Fatal(err)
		}
		options.Timeout = envoytest.Deadline
		conn := redisconn.Open(options)
		t.Cleanup(func() { _ = conn.Close() })
		limits, err := ratelimit.New(ratelimit.Config{Client: conn.Client(), Timeout: envoytest.Deadline})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, startGatewayWith(t, text, with, limits.Register))
	}
	return all
}

// of is the gateway that gets request i.
func (c cluster) of(i int) *gateway { return c[i%len(c)] }

// TestClusterLimits runs the tests of limits of the cluster on two gateways. Each has a service of its own.
func TestClusterLimits(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	server := redistest.Start(t)
	c := startCluster(t, server, clusterLimited, 2)
	for _, one := range []struct {
		name string
		test func(*testing.T, cluster)
	}{
		{"a service", gatewaysCountAServiceTogether},
		{"addresses", gatewaysCountAddressesTogether},
		{"a burst", gatewaysCountABurstTogether},
		{"made-up addresses", noAddressIsMadeUpForTheCluster},
		{"users", gatewaysCountUsersTogether},
		{"values of a header", gatewaysCountValuesTogether},
		{"beside a limit of Envoy's own", bothKindsOfLimitsCount},
		{"a gRPC call", aCallAboveAClusterLimit},
		{"the answer", theAnswerOfAClusterLimit},
	} {
		t.Run(one.name, func(t *testing.T) {
			var mine cluster
			for _, g := range c {
				mine = append(mine, g.of(t))
			}
			one.test(t, mine)
		})
	}
}

// gatewaysCountAServiceTogether: in any spelling of its path, and no preflight and no other service.
func gatewaysCountAServiceTogether(t *testing.T, c cluster) {
	for i := range 6 {
		if got := c.of(i).do("OPTIONS", "/all", fromShop, "access-control-request-method: GET"); got.Status != 200 {
			t.Errorf("a preflight: %d", got.Status)
		}
		c.of(i).do("PROPFIND", "/all")
	}
	paths := []string{"/all", "/All/5", "/ALL", "/aLL/x", "/all", "/All", "/all/5", "/ALL"}
	want(t, "a service", inTurn(8, func(i int) envoytest.Response { return c.of(i).do("GET", paths[i]) }), "200 200 200 200 200 429 429 429")
	want(t, "one below it", inTurn(6, func(i int) envoytest.Response { return c.of(i).do("GET", "/all/beside") }), "200 200 200 200 200 200")
}

func gatewaysCountAddressesTogether(t *testing.T, c cluster) {
	client := &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(proxy)}}).DialContext}}
	defer client.CloseIdleConnections()
	addresses := manyAddresses()
	for round := range 3 {
		for i := range addresses {
			got, err := envoytest.Send(t.Context(), client, "GET", "http://"+c.of(i+round).addr+"/Address", "", fmt.Sprintf("x-forwarded-for: 10.7.%d.%d", i/250, i%250))
			if err != nil {
				t.Fatal(err)
			}
			if above := round == 2; (got.Status == 429) != above || (got.Status == 200) == above {
				t.Fatalf("round %d, address %d: %d", round, i, got.Status)
			}
		}
	}
}

// gatewaysCountABurstTogether uses the burst up, for theAnswerOfAClusterLimit.
func gatewaysCountABurstTogether(t *testing.T, c cluster) {
	burst := func(i int) envoytest.Response { return c.of(i).do("GET", "/burst") }
	want(t, "a burst", inTurn(6, burst), "200 200 200 200 429 429")
}

func noAddressIsMadeUpForTheCluster(t *testing.T, c cluster) {
	spoofed := func(i int) envoytest.Response {
		return c.of(i).from(stranger, "", "GET", "/address", fmt.Sprintf("x-forwarded-for: 6.6.6.%d", i), fmt.Sprintf("x-envoy-external-address: 7.7.7.%d", i))
	}
	want(t, "a client that names addresses", inTurn(4, spoofed), "200 200 429 429")
	by := func(address string) func(int) envoytest.Response {
		return func(i int) envoytest.Response {
			return c.of(i).from(proxy, "", "GET", "/address", fmt.Sprintf("x-forwarded-for: "+address, i))
		}
	}
	want(t, "a client with a /64", inTurn(4, by("2001:db9:0:7::%d")), "200 200 429 429")
	want(t, "clients with a /64 each", inTurn(4, by("2001:db9:0:1%d::1")), "200 200 200 200")
	want(t, "IPv4 clients in IPv6", inTurn(4, by("::ffff:192.0.2.%d")), "200 200 200 200")
}

func gatewaysCountUsersTogether(t *testing.T, c cluster) {
	answers := func(reply func(*authv3.AttributeContext) *authv3.CheckResponse) {
		for _, g := range c {
			g.answers(reply)
		}
	}
	as := func(user string) {
		answers(func(*authv3.AttributeContext) *authv3.CheckResponse {
			r := allow(nil)
			r.GetOkResponse().Headers[0].Header.Value = user
			return r
		})
	}
	send := func(address string) func(i int) envoytest.Response {
		return func(i int) envoytest.Response {
			return c.of(i).from(address, "", "GET", "/User", fmt.Sprintf("x-user-id: mallory%d", i))
		}
	}
	answers(deny(typev3.StatusCode_Unauthorized, `"no"`))
	want(t, "without a token, counted by address", inTurn(8, send("127.0.0.21")), "401 401 401 401 401 401 401 429")
	as("ada")
	want(t, "ada", inTurn(4, send("127.0.0.22")), "200 200 200 429")
	want(t, "ada from elsewhere", inTurn(1, send("127.0.0.23")), "429")
	as("bob")
	want(t, "bob", inTurn(4, send("127.0.0.24")), "200 200 200 429")
}

// gatewaysCountValuesTogether: a value that is no UTF-8 is one too.
func gatewaysCountValuesTogether(t *testing.T, c cluster) {
	send := func(headers ...string) func(int) envoytest.Response {
		return func(i int) envoytest.Response { return c.of(i).do("GET", "/key", headers...) }
	}
	want(t, "one value", inTurn(2, send("x-key: a")), "200 429")
	want(t, "another", inTurn(2, send("x-key: b")), "200 429")
	want(t, "none", inTurn(2, send()), "200 429")
	want(t, "one behind others", inTurn(2, func(i int) envoytest.Response {
		return c.of(i).do("GET", "/key", fmt.Sprintf("x-key: made up %d", i), "x-key: real")
	}), "200 429")
	want(t, "no text", inTurn(2, send("x-key: \xff\xfe")), "200 429")
}

func bothKindsOfLimitsCount(t *testing.T, c cluster) {
	both := func(int) envoytest.Response { return c[0].do("GET", "/both") }
	want(t, "one gateway", inTurn(4, both), "200 200 200 429")
	want(t, "the other", inTurn(2, func(int) envoytest.Response { return c[1].do("GET", "/both") }), "200 429")
}

// TestGatewaysOwnClusterLimits hold over all services, gateways and filter chains: a client that comes directly is
// the same one through a trusted proxy. Envoy counts no request that it answers by itself.
func TestGatewaysOwnClusterLimits(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	limits := "rate_limits: [{requests: 4, per: 24h, by: address, scope: cluster}, {requests: 6, per: 24h, by: gateway, scope: cluster}]\n"
	c := startCluster(t, redistest.Start(t), limits+shop+proxies+"}", 2)
	for i := range 8 {
		if got := c.of(i).do("GET", definitions.VersionPath); got.Status != 200 {
			t.Errorf("the version: %d", got.Status)
		}
		if got := c.of(i).do("OPTIONS", "/items", fromShop, "access-control-request-method: GET"); got.Status != 200 {
			t.Errorf("a preflight: %d", got.Status)
		}
	}
	paths := []string{"/items", "/nobody", "/ORDERS"}
	client := func(i int) envoytest.Response {
		if i%4 < 2 {
			return c.of(i).from(stranger, "", "GET", paths[i%3])
		}
		return c.of(i).from(proxy, "", "GET", paths[i%3], "x-forwarded-for: "+stranger)
	}
	want(t, "a client", inTurn(6, client), "200 404 200 200 404 200")
	want(t, "the client again", inTurn(3, client), "429 404 429")
	want(t, "others", inTurn(3, func(i int) envoytest.Response { return c.of(i).from("127.0.0.41", "", "GET", "/items") }), "200 200 429")
}

// TestHeadersOfSeveralLimitsAreThoseOfOne: of the last one that counted the request, which is the one that refused it.
func TestHeadersOfSeveralLimitsAreThoseOfOne(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	g := startCluster(t, redistest.Start(t), `
listen: LISTEN
rate_limit_headers: true
rate_limits: [{requests: 50, per: 24h, by: gateway}, {requests: 40, per: 24h, by: gateway, scope: cluster}]
services:
  - {name: none, path: /none, authenticate: false, upstreams: ["PUBLIC"]}
  - {name: own, path: /own, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 30, per: 24h, by: service}]}
  - {name: both, path: /both, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 1, per: 24h, by: service}, {requests: 20, per: 24h, by: service, scope: cluster}]}
  - {name: user, path: /user, upstreams: ["SECURED"], rate_limits: [{requests: 10, per: 24h, by: address}, {requests: 1, per: 24h, by: user}]}
  - {name: slow, path: /slow, authenticate: false, upstreams: ["PUBLIC"], rate_limits: [{requests: 3, per: 1h, by: address}, {requests: 30, per: 24h, by: service}]}
`, 1)[0]
	for _, row := range []struct {
		path, limit, remaining string
		status                 int
	}{
		{"/none", "40", "39", 200}, {"/own", "30", "29", 200}, {"/both", "20", "19", 200}, {"/both", "1", "0", 429},
		{"/user", "1", "0", 200}, {"/USER", "1", "0", 429},
		{"/slow", "30", "29", 200}, {"/slow", "30", "28", 200}, {"/slow", "30", "27", 200}, {"/slow", "3", "0", 429},
	} {
		got := g.do("GET", row.path)
		limit, remaining, reset := got.Header.Values("x-ratelimit-limit"), got.Header.Values("x-ratelimit-remaining"), got.Header.Values("x-ratelimit-reset")
		if got.Status != row.status || !slices.Equal(limit, []string{row.limit}) || !slices.Equal(remaining, []string{row.remaining}) || len(reset) != 1 {
			t.Errorf("%s: %d, limit %q, remaining %q, reset %q, want %v", row.path, got.Status, limit, remaining, reset, row)
		}
	}
}

func aCallAboveAClusterLimit(t *testing.T, c cluster) {
	call := func(i int) string {
		return c.of(i).do("POST", "/calls.Calls/Do", "content-type: application/grpc", "te: trailers").Header.Get("grpc-status")
	}
	want(t, "the upstream is away, then the limit", call(0)+" "+call(1), "14 8")
}

// theAnswerOfAClusterLimit is that of Envoy's own limits, which a page can read.
func theAnswerOfAClusterLimit(t *testing.T, c cluster) { aboveTheLimit(t, c[0], "4") }

// TestClusterLimitsWithoutRedis: and without Gatepost, whose answer Envoy then does without. When Redis is back,
// requests count again.
func TestClusterLimitsWithoutRedis(t *testing.T) {
	long(t)
	testrun.Plain(t)
	t.Parallel()
	server := redistest.Start(t)
	g := startCluster(t, server, clusterLimited, 1)[0]
	services := func() string {
		return inTurn(2, func(i int) envoytest.Response { return g.do("GET", []string{"/open", "/closed"}[i], fromShop) })
	}
	above := func(int) envoytest.Response { return g.do("GET", "/key") }
	want(t, "with Redis", services(), "200 200")
	want(t, "a client", inTurn(2, above), "200 429")
	server.Kill()
	want(t, "without", services(), "200 503")
	want(t, "the client that is above its limit", inTurn(2, above), "429 429")
	got := g.do("GET", "/closed", fromShop)
	if !strings.Contains(got.Body, "cannot tell") || got.Header.Get("retry-after") != "1" || got.Header.Get("access-control-allow-origin") != "https://shop.example" {
		t.Errorf("%d %s %v", got.Status, got.Body, got.Header)
	}
	server.Restart()
	envoytest.Eventually(t, "requests that count", func() bool {
		return services() == "200 200" && g.do("GET", "/open").Header.Get("x-ratelimit-limit") != ""
	})
	g.server.Stop()
	want(t, "without Gatepost", services(), "200 503")
}

// TestClusterLimitsSurviveARestartOfGateways: Redis has the counts.
func TestClusterLimitsSurviveARestartOfGateways(t *testing.T) {
	long(t)
	testrun.Plain(t)
	t.Parallel()
	server := redistest.Start(t)
	before, after := startCluster(t, server, clusterLimited, 1)[0], startCluster(t, server, clusterLimited, 1)[0]
	want(t, "before", inTurn(1, func(int) envoytest.Response { return before.do("GET", "/key", "x-key: a") }), "200")
	want(t, "after", inTurn(1, func(int) envoytest.Response { return after.do("GET", "/key", "x-key: a") }), "429")
}

func TestClusterLimitsNeedRedis(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"rate_limits: [{requests: 1, by: gateway, scope: cluster}]\nservices: []",
		`services: [{name: a, path: /a, authenticate: false, upstreams: ["http://a"], rate_limits: [{requests: 1, by: service, scope: cluster}]}]`,
	} {
		if _, err := Build(parse(t, text), testOptions); !errors.Is(err, errNoClusterLimits) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestAClusterLimitTouchesNoListener: neither the first one of a service, nor a change of it.
func TestAClusterLimitTouchesNoListener(t *testing.T) {
	t.Parallel()
	with := testOptions
	with.ClusterLimits = true
	listeners := func(limits string) string {
		s := buildWith(t, `services: [{name: a, path: /a, authenticate: false, upstreams: ["http://a"]`+limits+`}]`, with)
		return s.listeners.version
	}
	none := listeners("")
	for _, limits := range []string{
		`, rate_limits: [{requests: 1, by: service, scope: cluster}]`, `, rate_limits: [{requests: 2, by: address, scope: cluster, without_redis: refuse}]`,
	} {
		if listeners(limits) != none {
			t.Errorf("%s changes the listener", limits)
		}
	}
}

// TestAHeaderCalledUserCountsNoUser: clients choose its value, and could use up the limit of a user.
func TestAHeaderCalledUserCountsNoUser(t *testing.T) {
	b := &builder{gw: &definitions.Gateway{Identity: definitions.Identity{UserHeader: "x-user-id"}}}
	counterOf := func(l definitions.RateLimit) string {
		l.Requests, l.Per, l.Burst, l.Cluster = 1, time.Second, 1, true
		return b.countedByCluster(l)[0].GetActions()[0].GetGenericKey().GetDescriptorValue()
	}
	if user, header := counterOf(definitions.RateLimit{By: definitions.LimitByUser}), counterOf(definitions.RateLimit{Header: "user"}); user == header {
		t.Errorf("both are counted as %q", user)
	}
}
