package xds

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"

	gatewayv1 "gatepost/proto/gatepost/v1"
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

// TestWhatCannotBeServedIsRefused: also where the definitions' own checks were left out.
func TestWhatCannotBeServedIsRefused(t *testing.T) {
	for _, c := range []struct {
		spoil func(*gatewayv1.Gateway)
		want  string
	}{
		{func(g *gatewayv1.Gateway) { g.Services[1].Name = "a" }, `service "a"`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/A" }, `its path "/A" is that of service "a"`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/token/x" }, `keeps the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/.Gatepost" }, `keeps the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/b/../c" }, `service "b": the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/b/" }, `service "b": the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "/b%2f" }, `service "b": the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Path = "b" }, `service "b": the path`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Authenticate = nil }, `service "b": its defaults`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Timeout = nil }, `service "b": its defaults`},
		{func(g *gatewayv1.Gateway) { g.Services[1].AllowedMethods = nil }, `service "b": its defaults`},
		{func(g *gatewayv1.Gateway) { *g.Services[1].Authenticate = false; g.Services[1].Scopes = []string{"x"} }, `scopes need a token`},
		{func(g *gatewayv1.Gateway) {
			g.Services[1].Websocket, g.Services[1].AllowedMethods = true, []string{"POST"}
		}, `service "b": a WebSocket begins with GET`},
		{func(g *gatewayv1.Gateway) { g.Tokens.Cookie = "session" }, `tokens.cookie needs origins`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"ftp://x"} }, `service "b": upstream`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://x?y=1"} }, `service "b": upstream`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://u:p@x"} }, `service "b": upstream`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://x:0"} }, `service "b": upstream`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://x", "https://y"} }, `differs from the first`},
		{func(g *gatewayv1.Gateway) { g.Services[1].Upstreams = []string{"http://x/a", "http://y/b"} }, `differs from the first`},
		{func(g *gatewayv1.Gateway) { g.Origins = []string{"*"} }, `origin "*"`},
		{func(g *gatewayv1.Gateway) { g.Origins = []string{"null"} }, `origin "null"`},
		{func(g *gatewayv1.Gateway) { g.Cors.AllowCredentials = true }, `needs origins`},
		{func(g *gatewayv1.Gateway) { g.Listen = "localhost:80" }, `listen`},
		{func(g *gatewayv1.Gateway) { g.Listen = "" }, `defaults were not filled in`},
		{func(g *gatewayv1.Gateway) { g.Tokens.Path = "/" }, `tokens.path`},
		{func(g *gatewayv1.Gateway) { g.Identity.UserHeader = "Authorization" }, `identity.user_header`},
		{func(g *gatewayv1.Gateway) { g.Identity.UserHeader = "x y" }, `identity.user_header`},
		{func(g *gatewayv1.Gateway) { g.Identity.UserHeader = ":path" }, `identity.user_header`},
		{func(g *gatewayv1.Gateway) { g.Services[1].AllowedMethods = []string{"GET", "G%T"} }, `service "b": the methods`},
	} {
		g := parse(t, `services: [{name: a, path: /a, upstreams: ["http://10.0.0.1"]}, {name: b, path: /b, upstreams: ["http://10.0.0.2"]}]`)
		c.spoil(g)
		s, err := Build(g, testOptions)
		if s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want an error with %q", err, c.want)
		}
	}
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
				says := new(extauthzv3.ExtAuthzPerRoute)
				if err := rule.UnmarshalTo(says); err != nil {
					t.Fatal(err)
				}
				open := says.GetDisabled()
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

// FuzzBuild: whatever the definitions are, they are refused or make valid resources that lead somewhere.
func FuzzBuild(f *testing.F) {
	f.Add("orders", "/orders", "http://orderservice/base", "GET,POST", "https://shop.example", "x-user-id", "/token", true, int64(15))
	f.Add("", "/", "https://[::1]:1", "", "", "", "", false, int64(-1))
	f.Add("a\xff", "/%", "http://\x00", "get", "*", "a:b", "/.gatepost", true, int64(1)<<40)
	f.Fuzz(func(t *testing.T, name, path, upstream, methods, origin, header, tokens string, authenticate bool, timeout int64) {
		g := parse(t, `services: [{name: a, path: /a, upstreams: ["http://a"]}]`)
		s := proto.CloneOf(g.Services[0])
		s.Name, s.Path, s.Upstreams, s.Authenticate = name, path, strings.Split(upstream, " "), &authenticate
		s.AllowedMethods = strings.Split(methods, ",")
		s.Timeout.Seconds = timeout
		g.Services = append(g.Services, s)
		g.Identity.UserHeader, g.Tokens.Path = header, tokens
		if origin != "" {
			g.Origins = strings.Split(origin, " ")
		}
		snapshot, err := Build(g, testOptions)
		if err != nil {
			if snapshot != nil {
				t.Fatal("an error and a snapshot")
			}
			return
		}
		for _, m := range messages(snapshot) {
			if err := m.(validated).ValidateAll(); err != nil {
				t.Fatal(err)
			}
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

// TestABuilderMakesWhatBuildMakes: byte for byte, whatever it built before, and though it takes over what is the same.
func TestABuilderMakesWhatBuildMakes(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(0, uint64(seed)))
	var b Builder
	g, opts := parse(t, "services: []"), testOptions
	refused, last := 0, build(t, "services: []")
	for range 1000 {
		before := g
		g = &gatewayv1.Gateway{
			Listen: g.Listen, Origins: g.Origins, Cors: g.Cors, Tokens: g.Tokens, Identity: g.Identity, Services: slices.Clone(g.Services),
		}
		for range 1 + random.IntN(3) {
			anotherEdit(t, random, g, &opts)
		}
		got, err := b.Build(g, opts)
		want, wantErr := Build(g, opts)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v: error %v, want %v", g, err, wantErr)
		}
		if err != nil { // and the next one is built as if this had not been
			refused++
			g = before
			continue
		}
		if !sameSnapshot(got, want) {
			t.Fatalf("%v becomes another than from nothing", g)
		}
		if name := changedInPlace(got, last); name != "" {
			t.Fatalf("%v changes the cluster %s, which would have no host until its names are looked up", g, name)
		}
		last = got
	}
	t.Logf("%d refused; the last with %d services", refused, len(g.Services))
}

// anotherEdit does to definitions what their author might, mistakes included. What it does not change stays the same message.
func anotherEdit(t *testing.T, random *rand.Rand, g *gatewayv1.Gateway, opts *Options) {
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	path := func() string { return pick("/", "/a", "/A", "/b", "/B/c", "/b/C", "/a/b/c", "/auth/x", "/token") }
	fresh := func() *gatewayv1.Service {
		name := fmt.Sprint("s", random.IntN(50))
		base := pick("", "", "/base")
		return parse(t, fmt.Sprintf("services: [{name: %s, path: /x, upstreams: [%q]}]", name, pick("http", "https")+"://"+pick("10.0.0.1", "host")+base)).Services[0]
	}
	at := 0
	if len(g.Services) > 0 {
		at = random.IntN(len(g.Services))
	}
	switch what := random.IntN(24); {
	case what == 0:
		g.Origins = [][]string{nil, {"https://a.example"}}[random.IntN(2)]
	case what == 1:
		g.Tokens = proto.CloneOf(g.Tokens)
		g.Tokens.Path = pick("/token", "/auth/token", "/Auth")
	case what == 2:
		g.Identity = &gatewayv1.Identity{UserHeader: pick("x-user-id", "x-uid")}
	case what == 3:
		opts.Withheld = [][]string{nil, {"s1"}, {"s2", "s3"}}[random.IntN(3)]
		opts.Listen = pick("", "127.0.0.1:5501")
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
	case what == 16: // the same in another message
		g.Services[at] = proto.CloneOf(g.Services[at])
	default:
		s, other := proto.CloneOf(g.Services[at]), fresh()
		switch random.IntN(4) {
		case 0:
			s.Name = other.Name
		case 1:
			s.Path = path()
		case 2:
			s.Upstreams = other.Upstreams
		default:
			s.Authenticate = new(!s.GetAuthenticate())
		}
		g.Services[at] = s
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

// TestWhatIsTheSameIsTakenOver: it is not even made, to see that it is.
func TestWhatIsTheSameIsTakenOver(t *testing.T) {
	g := parse(t, `services: [{name: a, path: /a, upstreams: ["http://10.0.0.1"]}, {name: b, path: /b, upstreams: ["http://10.0.0.2"]}]`)
	var b Builder
	both, err := b.Build(g, testOptions)
	if err != nil {
		t.Fatal(err)
	}
	bad := proto.CloneOf(g)
	bad.Services[0].Upstreams = []string{"ftp://x"}
	if _, err := b.Build(bad, testOptions); err == nil {
		t.Fatal("a bad service is built")
	}
	g = &gatewayv1.Gateway{Listen: g.Listen, Cors: g.Cors, Tokens: g.Tokens, Identity: g.Identity, Services: g.Services[:1]}
	alone, err := b.Build(g, testOptions)
	if err != nil {
		t.Fatal(err)
	}
	for name, sets := range map[string][2]set{
		"service/a": {both.clusters, alone.clusters}, "/a": {both.routes, alone.routes}, "/token": {both.routes, alone.routes}, listenerName: {both.listeners, alone.listeners},
	} {
		if sets[0].get(name) == nil || sets[0].get(name) != sets[1].get(name) {
			t.Errorf("%s was made anew", name)
		}
	}
	if alone.clusters.get("service/b") != nil || alone.routes.get("/b") != nil {
		t.Error("what has gone is there still")
	}
	g.Services[0] = proto.CloneOf(g.Services[0])
	g.Services[0].Scopes = []string{"admin"}
	stricter, err := b.Build(g, testOptions)
	if err != nil || stricter.routes.get("/a") == alone.routes.get("/a") {
		t.Errorf("another service in the same list is not seen: %v", err)
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

// addOne adds a service in the middle, as reading a changed file does.
func addOne(g *gatewayv1.Gateway, i int) {
	at := len(g.Services) / 2
	added := proto.CloneOf(g.Services[0])
	added.Name, added.Path = fmt.Sprint("added", i), fmt.Sprint("/added", i)
	g.Services = slices.Insert(slices.Clone(g.Services), at, added)
}

func manyServices(b *testing.B, n int) *gatewayv1.Gateway {
	g := parse(b, `services: [{name: a, path: /a, upstreams: ["http://10.0.0.1:8080"]}]`)
	one := g.Services[0]
	g.Services = nil
	for i := range n {
		s := proto.CloneOf(one)
		s.Name, s.Path = fmt.Sprint("s", i), fmt.Sprint("/s", i)
		g.Services = append(g.Services, s)
	}
	return g
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
		for _, r := range allRoutes(s) {
			if r.GetRoute() == nil || r.GetRoute().GetCluster() == nowhere {
				continue
			}
			rule := new(extauthzv3.ExtAuthzPerRoute)
			if packed := r.GetTypedPerFilterConfig()[filterAuthz]; packed != nil {
				if err := packed.UnmarshalTo(rule); err != nil {
					t.Fatal(err)
				}
			}
			decided := rule.GetCheckSettings().GetContextExtensions()["authenticate"] == "true"
			taken := slices.Contains(r.GetRequestHeadersToRemove(), "x-caller")
			if decided == taken {
				t.Errorf("%s %s: route %q: decided %v, taken out %v", more, r.GetMatch(), r.GetName(), decided, taken)
			}
		}
	}
}
