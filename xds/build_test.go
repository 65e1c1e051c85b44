package xds

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/testrun"
)

// breakRoutes makes the scope of a name into one that Envoy refuses: two virtual hosts for every domain.
func breakRoutes(t testing.TB, s *Snapshot, name string) {
	t.Helper()
	scope := resourcesOf(s, resourcev3.ScopedRouteType)[name].(*routev3.ScopedRouteConfiguration)
	config := scope.GetRouteConfiguration()
	second := proto.CloneOf(config.VirtualHosts[0])
	second.Name = "second"
	config.VirtualHosts = append(config.VirtualHosts, second)
	broken, err := newResource(scope)
	if err != nil {
		t.Fatal(err)
	}
	s.routes = s.routes.with(map[string]*resource{name: broken})
	s.routes.seal()
}

func TestTheSameDefinitionsMakeTheSameVersion(t *testing.T) {
	one := build(t, `services: [{name: a, path: /a, upstreams: ["http://b", "http://a"]}, {name: b, path: /b, upstreams: ["http://c"]}]`)
	two := build(t, `services: [{name: b, path: /b, upstreams: ["http://c"]}, {name: a, path: /a, upstreams: ["http://a", "http://b"]}]`)
	if one.Version != two.Version || one.routes.version != two.routes.version || one.clusters.version != two.clusters.version {
		t.Errorf("versions %s and %s", one.Version, two.Version)
	}
	other := build(t, `services: [{name: a, path: /a, upstreams: ["http://a", "http://b"]}, {name: b, path: /B, upstreams: ["http://c"]}]`)
	if other.Version == one.Version {
		t.Error("another path, the same version")
	}
	if other.clusters.version != one.clusters.version || other.listeners.version != one.listeners.version {
		t.Error("another path changed more than the routes")
	}
}

// TestAChangeOfAServiceLeavesTheListener: connections outlive it.
func TestAChangeOfAServiceLeavesTheListener(t *testing.T) {
	base := build(t, `services: [{name: a, path: /a, upstreams: ["http://a"]}]`)
	for _, text := range []string{
		`services: []`,
		`{identity: {user_header: x-uid}, services: [{name: a, path: /a, upstreams: ["http://a"]}]}`,
		`{cors: {max_age: 5s}, tokens: {path: /login}, services: [{name: a, path: /a, upstreams: ["http://a"]}]}`,
	} {
		if got := build(t, text); got.listeners.version != base.listeners.version || got.Version == base.Version {
			t.Errorf("%s: listener %s, was %s", text, got.listeners.version, base.listeners.version)
		}
	}
}

// TestAClientCertificateOfAServiceLeavesTheListener: whether it needs one is in its routes.
func TestAClientCertificateOfAServiceLeavesTheListener(t *testing.T) {
	options := testOptions
	options.Certificates = []Certificate{{Name: "a.example", ServerNames: []string{"a.example"}}}
	snapshot := func(needed bool) *Snapshot {
		return buildWith(t, fmt.Sprintf(`
tls: {certificates: [{cert_file: c, key_file: k}], client_certificates: {ca_file: c, mode: optional}}
services: [{name: a, path: /a, upstreams: ["http://a"], client_certificate: %v}]
`, needed), options)
	}
	if without, with := snapshot(false), snapshot(true); without.listeners.version != with.listeners.version || without.Version == with.Version {
		t.Errorf("listener %s, was %s", with.listeners.version, without.listeners.version)
	}
}

// TestTheClustersOfGatepostItselfAreThere: they are named, and no service has the name of one.
func TestTheClustersOfGatepostItselfAreThere(t *testing.T) {
	if _, err := Build(parse(t, "services: []"), Options{}); err == nil {
		t.Error("without the clusters of Gatepost itself")
	}
	clash := testOptions
	clash.HTTPCluster = "service/b"
	_, err := Build(parse(t, `services: [{name: a, path: /a, upstreams: ["http://10.0.0.1"]}, {name: b, path: /b, upstreams: ["http://10.0.0.2"]}]`), clash)
	if err == nil || strings.Count(err.Error(), "also one of the bootstrap's") != 1 {
		t.Errorf("a service's cluster with the name of Gatepost's own: %v", err)
	}
}

// TestEveryRouteBearsARule: there is no way around ext_authz but to say so.
func TestEveryRouteBearsARule(t *testing.T) {
	for _, origins := range []string{"", "origins: [\"https://a.example\"]\n"} {
		s := build(t, origins+`services: [{name: a, path: /a, upstreams: ["http://a"]}, {name: b, path: /b, authenticate: false, upstreams: ["http://b"]}]`)
		for name, scope := range resourcesOf(s, resourcev3.ScopedRouteType) {
			frame := scope.(*routev3.ScopedRouteConfiguration).GetRouteConfiguration().GetVirtualHosts()[0].GetTypedPerFilterConfig()
			for _, r := range routesOf(scope) {
				rule := r.GetTypedPerFilterConfig()[filterAuthz]
				if rule == nil { // the scope's, which may only say that there is nothing to ask
					rule = frame[filterAuthz]
				}
				says, off := new(extauthzv3.ExtAuthzPerRoute), new(routev3.FilterConfig)
				if err := rule.UnmarshalTo(says); err != nil && (r.GetName() != "version" || rule.UnmarshalTo(off) != nil) {
					t.Fatal(err)
				}
				open := says.GetDisabled() || off.GetDisabled()
				if !open && says.GetCheckSettings().GetContextExtensions()["authenticate"] == "" {
					t.Errorf("origins %q: %s: route %q bears no rule", origins, name, r.GetName())
				}
				if want := r.GetName() == "version" || origins == "" && r.GetName() != "a"; open != want {
					t.Errorf("origins %q: %s: route %q is open: %v", origins, name, r.GetName(), open)
				}
			}
		}
	}
}

// TestEveryStreamEnds: the listener has no timeout of its own for idle streams, so a route without one has a timeout.
func TestEveryStreamEnds(t *testing.T) {
	s := build(t, `services:
  - {name: quick, path: /quick, upstreams: ["http://a"]}
  - {name: slow, path: /slow, timeout: 3600s, upstreams: ["http://b"]}
  - {name: chat, path: /chat, websocket: true, upstreams: ["http://c"]}
  - {name: lasting, path: /lasting, websocket: true, timeout: 600s, upstreams: ["http://d"]}
  - {name: calls, path: /calls.v1.Calls, grpc: true, upstreams: ["h2c://e"]}
`)
	idle := map[string]time.Duration{}
	for _, r := range allRoutes(s) {
		to := r.GetRoute()
		if to == nil || to.GetCluster() == blackhole { // Envoy answers
			continue
		}
		endless := takesUpgrades(to) || to.GetTimeout() != nil && to.GetTimeout().AsDuration() == 0
		if endless != (to.GetIdleTimeout().AsDuration() > 0) {
			t.Errorf("route %q: its timeout is %v, that of idle streams %v", r.GetName(), to.GetTimeout(), to.GetIdleTimeout())
		}
		idle[r.GetName()] = to.GetIdleTimeout().AsDuration()
	}
	for name, want := range map[string]time.Duration{
		"quick": 0, "slow": 0, "chat": streamIdleTimeout, "lasting": 605 * time.Second, "calls": streamIdleTimeout,
	} {
		if got, there := idle[name]; !there || got != want {
			t.Errorf("%s: idle streams end after %v, not %v", name, got, want)
		}
	}
}

// FuzzBuild: definitions that are valid become valid resources, whatever they are.
func FuzzBuild(f *testing.F) {
	f.Add("orders", "/orders", "http://orderservice/base", "GET,POST", "https://shop.example", "x-user-id", "/token", true, int64(15))
	f.Add("b", "/", "https://[::1]:1", "PURGE", "", "x-caller", "/auth/token", false, int64(1))
	f.Add("a\xff", "/%", "http://\x00", "get", "*", "a:b", "/.gatepost", true, int64(1)<<40)
	f.Fuzz(func(t *testing.T, name, path, upstream, methods, origin, header, tokens string, authenticate bool, timeout int64) {
		m := parse(t, `services: [{name: a, path: /a, upstreams: ["http://a"]}]`).Message()
		m.Services = append(m.Services, &gatewayv1.Service{
			Name: name, Path: path, Upstreams: strings.Split(upstream, " "), Authenticate: &authenticate,
			AllowedMethods: strings.Split(methods, ","), Timeout: &durationpb.Duration{Seconds: timeout},
		})
		m.Identity.UserHeader, m.Tokens.Path = header, tokens
		if origin != "" {
			m.Origins = strings.Split(origin, " ")
		}
		g, err := gatewayOf(m)
		if err != nil {
			t.Skip()
		}
		snapshot, err := Build(g, testOptions)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages(snapshot) {
			validate(t, m)
			if _, err := proto.Marshal(m); err != nil {
				t.Fatal(err)
			}
		}
		slices.Reverse(g.Services)
		if again, err := Build(g, testOptions); err != nil || again.Version != snapshot.Version {
			t.Fatalf("in another order: %v", err)
		}
	})
}

// gatewayOf parses a message, as a file with its content would be.
func gatewayOf(m *gatewayv1.Gateway) (*definitions.Gateway, error) {
	text, err := definitions.Marshal(m)
	if err != nil {
		return nil, err
	}
	d, err := definitions.Parse("gateway.yaml", text)
	if err != nil {
		return nil, err
	}
	return d.Gateway, nil
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		g := manyServices(b, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Build(g, testOptions); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestABuilderMakesWhatBuildMakes: byte for byte, whatever it built before, and although it reuses unchanged resources.
func TestABuilderMakesWhatBuildMakes(t *testing.T) {
	testrun.Plain(t)
	t.Parallel()
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(0, uint64(seed)))
	var b Builder
	d, opts := noServices(t), testOptions
	last := build(t, "services: []")
	rounds := 200
	if testing.Short() {
		rounds = 40
	}
	for range rounds {
		for range 1 + random.IntN(3) {
			d = anotherEdit(t, random, d, &opts)
		}
		got, err := b.Build(d.Gateway, opts)
		want, wantErr := Build(d.Gateway, opts)
		if err != nil || wantErr != nil {
			t.Fatalf("%s: %v and %v", d.Text, err, wantErr)
		}
		if !sameSnapshot(got, want) {
			t.Fatalf("%s becomes another snapshot than from nothing", d.Text)
		}
		if name := changedInPlace(got, last); name != "" {
			t.Fatalf("%s changes the cluster %s, which would have no host until its names are looked up", d.Text, name)
		}
		last = got
	}
	t.Logf("the last with %d services", len(d.Gateway.Services))
}

func noServices(t *testing.T) *definitions.Definitions {
	t.Helper()
	d, err := definitions.Parse("gateway.yaml", []byte("services: []"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// anotherEdit makes an edit of a kind that authors make, and parses the result. If that is invalid, it returns d.
func anotherEdit(t *testing.T, random *rand.Rand, d *definitions.Definitions, opts *Options) *definitions.Definitions {
	t.Helper()
	if random.IntN(24) == 0 { // the same services with other pointers
		again, err := definitions.Parse(d.Name, d.Text)
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	m := d.Gateway.Message()
	editMessage(random, m, opts)
	text, err := definitions.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	next, err := d.Next(d.Name, text)
	if err != nil {
		return d
	}
	return next
}

func editMessage(random *rand.Rand, g *gatewayv1.Gateway, opts *Options) {
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	path := func() string { return pick("/", "/a", "/A", "/b", "/B/c", "/b/C", "/a/b/c", "/auth/x", "/token") }
	fresh := func() *gatewayv1.Service {
		base := pick("", "", "/base")
		return &gatewayv1.Service{
			Name: fmt.Sprint("s", random.IntN(50)), Path: "/x", Upstreams: []string{pick("http", "https") + "://" + pick("10.0.0.1", "host") + base},
		}
	}
	at := 0
	if len(g.Services) > 0 {
		at = random.IntN(len(g.Services))
	}
	switch what := random.IntN(23); {
	case what == 0:
		g.Origins = [][]string{nil, {"https://a.example"}}[random.IntN(2)]
	case what == 1:
		g.Tokens.Path = pick("/token", "/auth/token", "/Auth")
	case what == 2:
		g.Identity.UserHeader = pick("x-user-id", "x-uid")
	case what == 3:
		opts.Withheld = [][]string{nil, {"s1"}, {"s2", "s3"}}[random.IntN(3)]
		opts.Listen = []netip.AddrPort{{}, netip.MustParseAddrPort("127.0.0.1:5501")}[random.IntN(2)]
		opts.CAFile = pick("", "/roots.pem")
	case what < 10 || len(g.Services) == 0:
		s := fresh()
		s.Path = path() + pick("", "/d", "/"+s.Name, "/"+s.Name, "/"+s.Name)
		s.Path = "/" + strings.TrimLeft(s.Path, "/")
		g.Services = slices.Insert(g.Services, at, s)
	case what < 13:
		g.Services = slices.Delete(g.Services, at, at+1)
	case what < 16:
		random.Shuffle(len(g.Services), func(i, j int) { g.Services[i], g.Services[j] = g.Services[j], g.Services[i] })
	default:
		s, other := g.Services[at], fresh()
		switch random.IntN(5) {
		case 0:
			s.Name = other.Name
		case 3:
			s.RateLimits = [][]*gatewayv1.RateLimit{nil, {{Requests: 1, By: "address"}}}[random.IntN(2)]
		case 1:
			s.Path = path()
		case 2:
			s.Upstreams = other.Upstreams
		default:
			s.Authenticate = new(!s.GetAuthenticate())
		}
	}
}

// changedInPlace returns a cluster with names that has another content in another snapshot.
func changedInPlace(now, before *Snapshot) string {
	for _, c := range now.clusters.all {
		if was := before.clusters.get(c.name); c.looksUp && was != nil && was.version != c.version {
			return c.name
		}
	}
	return ""
}

func sameSnapshot(one, other *Snapshot) bool {
	same := one.Version == other.Version
	for _, typeURL := range order {
		a, b := one.of(typeURL), other.of(typeURL)
		same = same && a.version == b.version && slices.EqualFunc(a.all, b.all, func(a, b named) bool {
			return a.name == b.name && a.version == b.version && a.looksUp == b.looksUp && bytes.Equal(a.raw, b.raw)
		})
	}
	return same
}

// TestUnchangedResourcesAreReused: also after a build that failed.
func TestUnchangedResourcesAreReused(t *testing.T) {
	g := parse(t, `services: [{name: a, path: /a, upstreams: ["http://10.0.0.1"]}, {name: b, path: /b, upstreams: ["http://10.0.0.2"]}]`)
	var b Builder
	both, err := b.Build(g, testOptions)
	if err != nil {
		t.Fatal(err)
	}
	clash := testOptions
	clash.HTTPCluster = "service/b"
	if _, err := b.Build(g, clash); err == nil {
		t.Fatal("a cluster with the name of Gatepost's own is built")
	}
	one := *g
	one.Services = g.Services[:1]
	alone, err := b.Build(&one, testOptions)
	if err != nil {
		t.Fatal(err)
	}
	for name, sets := range map[string][2]set{
		"service/a": {both.clusters, alone.clusters}, "/a": {both.routes, alone.routes}, "/token": {both.routes, alone.routes}, ListenerName: {both.listeners, alone.listeners},
	} {
		if sets[0].get(name) == nil || sets[0].get(name) != sets[1].get(name) {
			t.Errorf("%s was built again", name)
		}
	}
	if alone.clusters.get("service/b") != nil || alone.routes.get("/b") != nil {
		t.Error("the removed service still has resources")
	}
	admin := *g.Services[0]
	admin.Scopes = []string{"admin"}
	one.Services = []*definitions.Service{&admin}
	stricter, err := b.Build(&one, testOptions)
	if err != nil || stricter.routes.get("/a") == alone.routes.get("/a") {
		t.Errorf("a changed service has its old routes: %v", err)
	}
}

// BenchmarkBuildAgain: to so many services one is added.
func BenchmarkBuildAgain(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			g := manyServices(b, n)
			var builder Builder
			if _, err := builder.Build(g, testOptions); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				addOne(g, i)
				if _, err := builder.Build(g, testOptions); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// addOne adds a service in the middle, as parsing a changed file does.
func addOne(g *definitions.Gateway, i int) {
	added := *g.Services[0]
	added.Name, added.Path = fmt.Sprint("added", i), fmt.Sprint("/added", i)
	g.Services = slices.Insert(slices.Clone(g.Services), len(g.Services)/2, &added)
}

func manyServices(b *testing.B, n int) *definitions.Gateway {
	text := new(strings.Builder)
	for i := range n {
		fmt.Fprintf(text, "  - {name: s%d, path: /s%d, upstreams: [\"http://10.0.0.1:8080\"]}\n", i, i)
	}
	return parse(b, "services:\n"+text.String())
}

// TestNoRouteLeavesTheUsersIdToTheClient: where no decision writes over the header, the route takes it out.
func TestNoRouteLeavesTheUsersIdToTheClient(t *testing.T) {
	for _, more := range []string{"", `origins: ["https://a.example"]`, `tokens: {cookie: s}
origins: ["https://a.example"]`} {
		s := build(t, more+`
identity: {user_header: x-caller}
services:
  - {name: secured, path: /a, upstreams: ["http://a"]}
  - {name: public, path: /a/b, authenticate: false, upstreams: ["http://b"]}
  - {name: live, path: /live, authenticate: false, websocket: true, upstreams: ["http://c"]}
  - {name: root, path: /, upstreams: ["http://d"]}
`)
		for r, vhost := range hostOfRoute(s) {
			if r.GetRoute() == nil || r.GetRoute().GetCluster() == blackhole {
				continue
			}
			rule := new(extauthzv3.ExtAuthzPerRoute)
			if packed := r.GetTypedPerFilterConfig()[filterAuthz]; packed != nil {
				if err := packed.UnmarshalTo(rule); err != nil {
					t.Fatal(err)
				}
			}
			decided := rule.GetCheckSettings().GetContextExtensions()["authenticate"] == "true"
			taken := slices.Contains(slices.Concat(r.GetRequestHeadersToRemove(), vhost.GetRequestHeadersToRemove()), "x-caller")
			if decided == taken {
				t.Errorf("%s %s: route %q: decided %v, taken out %v", more, r.GetMatch(), r.GetName(), decided, taken)
			}
		}
	}
}
